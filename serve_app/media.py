"""Images that cannot be had or read are the request's fault: vLLM's connector, with its errors as refusals.

vLLM answers 500 to an image that is too large to be decoded, to an address where nobody answers, and to a local file
that may not be read: to a client that looks like a broken server, and it tries again. This connector is vLLM's own,
registered by its own extension point, and says 400 with the reason.
"""

from __future__ import annotations

import os
from typing import Any

from aiohttp import ClientError
from PIL.Image import DecompressionBombError
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

NAME = "step"
ENVIRONMENT_VARIABLE = "VLLM_MEDIA_CONNECTOR"

NOT_TO_BE_HAD = (DecompressionBombError, ClientError, OSError, TimeoutError, RuntimeError, ValueError)
"""`ValueError`: vLLM's for what is no image and no address; it says 400 to that itself, but not which field is meant.
`RuntimeError`: vLLM's for a local file, and Python's `NotImplementedError` for a data URL that is not base64."""


@MEDIA_CONNECTOR_REGISTRY.register(NAME)
class RefusingConnector(MediaConnector):  # type: ignore[misc]  # vLLM is not read by mypy
    """`MediaConnector` whose failures are the client's to mend."""

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        """See vLLM's. Raises `VLLMValidationError` where the image cannot be had."""
        try:
            return await super().fetch_image_async(image_url, image_mode=image_mode)
        except NOT_TO_BE_HAD as error:
            address = image_url if len(image_url) <= 80 else image_url[:40] + "..."
            raise VLLMValidationError(
                f"The image {address!r} cannot be used: {str(error) or type(error).__name__}", parameter="image_url"
            ) from error


def use() -> None:
    """Have vLLM's renderers in this process use it, unless the operator has chosen another one."""
    os.environ.setdefault(ENVIRONMENT_VARIABLE, NAME)
