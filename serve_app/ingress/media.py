"""Image fetching: failures are errors of the request, and only public addresses are contacted.

vLLM's connector fetches whatever URL a request names: also this cluster's dashboard, or a cloud's metadata service, and
its answer tells open ports from closed ones. And it answers 500 to an image that is too large to be decoded and to an
address without a server: a client takes that for a broken server and retries. This connector is vLLM's own, registered
at its extension point. It contacts no private address unless the configuration names the host
(`ingress.allowed_media_hosts`), and answers 400 with the reason.
"""

from __future__ import annotations

import asyncio
import functools
import io
import ipaddress
import re
import socket
import threading
from collections.abc import Collection
from typing import Any, Final

import aiohttp
from PIL import Image
from PIL.Image import DecompressionBombError, DecompressionBombWarning
from vllm.connections import HTTPConnection
from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.image import ImageMediaIO
from yarl import URL

from serve_app.ingress.seen_images import Load, SeenImages
from serve_app.router.request_context import CURRENT, RequestContext

NAME: Final = "http"
"""The name of vLLM's default connector, which ours replaces in this process. `VLLM_MEDIA_CONNECTOR` selects another
one; to set it here would make the processes that this one starts look for a connector that they do not have."""

FETCH_TIMEOUT_S: Final = 30.0
"""For all redirects and retries of one image. vLLM's own retries may take two minutes."""

MAX_BYTES: Final = 64 << 20
"""Largest download; the body limit bounds data URLs (`ingress.max_body_bytes`)."""

MAX_PIXELS: Final = 64 << 20
"""Largest image: 8,192 x 8,192, as other services take. Decoding and resizing it takes some 0.5 GB and seconds; its
file may have 8 kB."""

MAX_REQUEST_PIXELS: Final = 128 << 20
"""Pixels of all images of a request, which are all held until the last one is read: 0.4 GB. 64 of 1,920 x 1,080."""

MAX_RATIO: Final = 200
"""Largest ratio of an image's sides. Step's image processor pads a narrow image to a square: 60,000 x 1 took 14 GB."""

DECODERS: Final = 2
"""How many images are decoded at a time; vLLM's own threads are eight, each of which may hold a large one twice."""

MAX_REDIRECTS: Final = 5
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class MediaRefused(VLLMValidationError):  # type: ignore[misc]  # vLLM is not read by mypy
    """A URL leads to an address that must not be contacted. The message tells nothing of what is there."""


FETCH_ERRORS = (
    DecompressionBombError,
    DecompressionBombWarning,
    aiohttp.ClientError,
    OSError,
    TimeoutError,
    RuntimeError,
    SyntaxError,
    ValueError,
    VLLMUnprocessableEntityError,
    MediaRefused,
)
"""`ValueError`: vLLM's for what is no image and no address; it says 400 to that itself, but not which field is meant.
`RuntimeError`: vLLM's for a local file, and Python's `NotImplementedError` for a data URL that is not base64.
`SyntaxError`: Pillow's for a broken PNG. `DecompressionBombWarning`: where warnings are errors."""

REFUSED: Final = "Images are fetched from hosts with public addresses only."

NUMERIC_HOST: Final = re.compile(r"(0x[0-9a-f]+|\d+)(\.(0x[0-9a-f]+|\d+)){0,3}")
"""An address in one of the old ways of writing one (127.1, 0x7f000001, 0177.0.0.1), which aiohttp does not take."""

NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is public. An IPv6 address that stands for an IPv4 one is judged by that."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address.teredo is not None:
            embedded = address.teredo[1]
        if embedded is None and address in NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class GuardedConnection(HTTPConnection):  # type: ignore[misc]  # vLLM is not read by mypy
    """vLLM's HTTP client, connecting to public addresses and `allowed_hosts` only.

    The address is checked when the socket is made, so a name cannot resolve to one address for the check and to another
    for the connection. Each redirect is a request of its own. A proxy from the environment is not used: it would
    resolve names where we do not see it.
    """

    def __init__(self, allowed_hosts: Collection[str] = ()) -> None:
        super().__init__(reuse_client=False)
        self._allowed = frozenset(host.lower().strip("[]") for host in allowed_hosts)

    def get_response(self, url: str, **_: Any) -> Any:
        """vLLM's blocking method, which only its offline API uses."""
        raise MediaRefused(REFUSED, parameter="image_url", value=url)

    async def async_get_bytes(
        self,
        url: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # vLLM's signature
        allow_redirects: bool = True,
        max_bytes: int | None = None,
        request_budget: Any = None,
    ) -> bytes:
        """See vLLM's. Raises `MediaRefused` for an address that must not be contacted.

        `request_budget` is 0.33's: the bytes that all images of one request may have.
        """
        limit = MAX_BYTES if max_bytes is None else min(max_bytes, MAX_BYTES)
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            for _ in range(MAX_REDIRECTS + 1):
                url, data = await self._follow(url, timeout, limit, request_budget)
                if data is not None:
                    return data
                if not allow_redirects:
                    break
        raise ValueError("it is redirected too often")

    async def _follow(self, url: str, total_s: float | None, limit: int, budget: Any) -> tuple[str, bytes | None]:
        """One request: the redirect's target, or the body."""
        self._validate_http_url(url)
        refused: list[str] = []
        guard = functools.partial(_guarded_socket, refused)
        allowed = (URL(url).host or "").lower() in self._allowed
        connector = aiohttp.TCPConnector(socket_factory=None if allowed else guard)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, trust_env=False) as session,
                session.get(
                    url,
                    headers=self._headers(),
                    timeout=aiohttp.ClientTimeout(total=total_s),
                    allow_redirects=False,
                ) as response,
            ):
                location = response.headers.get("location")
                if response.status in REDIRECTS and location is not None:
                    return str(response.url.join(URL(location))), None
                response.raise_for_status()
                return url, await _read(response, limit, budget)
        except (OSError, aiohttp.InvalidURL) as error:
            # An unknown name is refused in the same words: which internal names there are is nobody's business.
            if (
                refused
                or isinstance(error, aiohttp.ClientConnectorDNSError)
                or (isinstance(error, aiohttp.InvalidURL) and NUMERIC_HOST.fullmatch(URL(url).host or ""))
            ):
                raise MediaRefused(REFUSED, parameter="image_url", value=url) from error
            raise


def _guarded_socket(refused: list[str], address_info: Any) -> socket.socket:
    family, kind, protocol, _, (host, *_) = address_info
    if not is_public(ipaddress.ip_address(host)):
        refused.append(host)
        raise PermissionError(REFUSED)
    return socket.socket(family, kind, protocol)


async def _read(response: aiohttp.ClientResponse, limit: int, budget: Any) -> bytes:
    body = bytearray()
    if (response.content_length or 0) <= limit:
        async for chunk in response.content.iter_chunked(1 << 16):  # as decompressed
            body += chunk
            if budget is not None:
                budget.charge(len(chunk))
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise ValueError(f"it is larger than {limit >> 20} MiB")


class RefusingConnector(MediaConnector):  # type: ignore[misc]  # vLLM is not read by mypy
    """`MediaConnector` whose failures are errors of the request."""

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        """See vLLM's. Raises `VLLMValidationError` where the image cannot be fetched."""
        try:
            return await super().fetch_image_async(image_url, image_mode=image_mode)
        except FETCH_ERRORS as error:
            address = image_url if len(image_url) <= 80 else image_url[:40] + "..."
            reason = REFUSED if isinstance(error, MediaRefused) else _reason(error)
            raise VLLMValidationError(
                f"The image {address!r} cannot be used: {reason}", parameter="image_url"
            ) from error

    async def load_from_url_async(self, url: str, media_io: Any, **options: Any) -> Any:
        """See vLLM's. Raises `ValueError` for an image that is too large, before it is decoded."""
        if isinstance(media_io, ImageMediaIO):
            # Its own methods decode through this attribute.
            decode = functools.partial(_decode, media_io.load_bytes, _decoding())
            settings = repr((media_io.image_mode, media_io.rgba_background_color))
            media_io.load_bytes = functools.partial(_load, decode, settings, _seen(), CURRENT.get())
        return await super().load_from_url_async(url, media_io, **options)


@functools.cache
def _decoding() -> threading.Semaphore:
    """One for the process, whose threads decode."""
    return threading.Semaphore(DECODERS)


@functools.cache
def _seen() -> SeenImages:
    """One for the process, as vLLM's cache of processed images is."""
    return SeenImages()


def _load(decode: Load, settings: str, seen: SeenImages, context: RequestContext | None, data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    check_size(width, height)
    if context is not None:
        context.image_pixels += width * height
        if context.image_pixels > MAX_REQUEST_PIXELS:
            limit = MAX_REQUEST_PIXELS >> 20
            raise ValueError(
                f"the request's images have more than {limit} megapixels in all; send fewer or smaller ones"
            )
    return seen.load(decode, settings, data)


def _decode(load: Load, decoding: threading.Semaphore, data: bytes) -> Any:
    with decoding:
        return load(data)


def check_size(width: int, height: int) -> None:
    """Raises `ValueError` for an image that takes too much to read."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels; at most {MAX_PIXELS >> 20} megapixels are read")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"it has {width} x {height} pixels; one side may be {MAX_RATIO} times the other at most")


def _reason(error: BaseException) -> str:
    """The cause of it. vLLM's 422 for a URL hides what was wrong with it."""
    if isinstance(error, VLLMUnprocessableEntityError) and isinstance(error.__cause__, ValueError):
        error = error.__cause__
    return str(error) or type(error).__name__


def use(allowed_hosts: Collection[str] = ()) -> None:
    """Register the connector for vLLM's renderers in this process, unless the operator has chosen another one by
    name."""
    connector = functools.partial(RefusingConnector, connection=GuardedConnection(allowed_hosts))
    MEDIA_CONNECTOR_REGISTRY.register(NAME)(connector)
