"""The server's address: parse its URL, resolve its host, and write the head of a request."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtest.errors import TargetError, UsageError


@dataclass(frozen=True)
class Address:
    """A server's base URL, split. `path` is the part before `/v1/...`."""

    tls: bool
    host: str
    port: int
    path: str = ""

    @property
    def url(self) -> str:
        """The base URL with an explicit port and without a trailing slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"

    @property
    def host_header(self) -> str:
        """Value of the `Host` header; the port is left out where it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def parse_url(url: str) -> Address:
    """Parse `host:port`, a base URL, or a base URL that ends in /v1, as OpenAI clients take it. Raises UsageError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"not a server's URL: {url!r}", "Give it as http://host:8000")
    try:
        port = parts.port
    except ValueError as bad:
        raise UsageError(f"not a port in {url!r}", "Give it as http://host:8000") from bad
    tls = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(tls=tls, host=parts.hostname, port=port or (443 if tls else 80), path=path)


def resolve(address: Address) -> list[str]:
    """The host's IP addresses, in the resolver's order. Raises TargetError.

    Resolved once per run, because a run measures the server and not the DNS.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as bad:
        raise TargetError(f"no address for the name {address.host!r} ({bad.strerror or bad})", "Check --url") from bad
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def tls_context(address: Address, *, verify: bool, ca_file: str | None) -> ssl.SSLContext | None:
    """TLS settings for the server; None where the URL is plain http. Raises UsageError for an unreadable CA file."""
    if not address.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as bad:
        raise UsageError(
            f"cannot read the CA file {ca_file!r} ({bad.strerror or bad})", "Give --ca-file a PEM file"
        ) from bad
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def request_head(
    address: Address, method: str, path: str, headers: Mapping[str, str], body_bytes: int | None = None
) -> bytes:
    """Request line and headers; with `body_bytes`, those of a JSON body. HTTP/1.1 keeps connections open by default."""
    lines = [f"{method} {address.path}{path} HTTP/1.1", f"Host: {address.host_header}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body_bytes is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {body_bytes}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
