# SPDX-License-Identifier: Apache-2.0
"""Images and other media in a request: what it may bring along, and from where.

vLLM is set up to keep the same limits (`settings`); the checks here come first, for they tell the
client what it did wrong, and refuse before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from capibara_axion.server.errors import ApiError
from capibara_axion.server.launcher import WorkerSpec

# Pixels of one image: 192 MB once it is decoded.
MAX_PIXELS = 64_000_000

_KINDS = ("image_url", "video_url", "audio_url")


def settings(spec: WorkerSpec) -> dict[str, str]:
    """Environment variables that make vLLM keep the limits."""
    return {
        "VLLM_MAX_IMAGE_PIXELS": str(MAX_PIXELS),
        "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB": str(-(-spec.max_image_bytes // 2**20)),
        # An allowed host could otherwise send the server on to one that is not.
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }


def check_media(fields: Mapping[str, Any], spec: WorkerSpec) -> None:
    """See that a request keeps the limits.

    Raises:
        ApiError: 400: too many media, or from where they may not come; 413: too large.
    """
    media = list(_media_in(fields.get("messages"))) + list(_media_in(fields.get("input")))
    if len(media) > spec.max_images:
        text = f"a request may have {spec.max_images} images (max_images), this one has"
        raise ApiError(400, f"{text} {len(media)}", code="too_many_images", param="messages")
    for kind, url in media:
        if url[:5].lower() == "data:":
            _check_size(kind, url, spec.max_image_bytes)
        else:
            _check_origin(kind, url, spec.allowed_media_domains)


def _media_in(messages: Any) -> Iterator[tuple[str, str]]:
    """Kind and URL of every media part of messages, or of lists of messages."""
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, list):
            yield from _media_in(message)
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            for kind in _KINDS if isinstance(part, dict) else ():
                media = part.get(kind)
                url = media.get("url") if isinstance(media, dict) else media
                if isinstance(url, str):
                    yield kind, url


def _check_size(kind: str, url: str, limit: int) -> None:
    comma = url.find(",")
    if not url[:comma].endswith(";base64"):
        text = "a data: URL must be 'data:<media type>;base64,<data>'"
        raise ApiError(400, text, code="invalid_media_url", param=kind)
    size = (len(url) - comma - 1) * 3 // 4 - url[-2:].count("=")
    if size > limit:
        text = f"an image of {size} bytes exceeds the limit of {limit} bytes (max_image_bytes)"
        raise ApiError(413, text, code="image_too_large", param=kind)


def _check_origin(kind: str, url: str, domains: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        allowed = parts.scheme in ("http", "https") and parts.hostname in domains
    except ValueError:
        allowed = False
    if not allowed:
        accepted = "only data: URLs are accepted for media"
        if domains:
            accepted += f", and http(s) URLs of {', '.join(domains)}"
        text = f"{accepted}; got {url[:40]!r}"
        raise ApiError(400, text, code="invalid_media_url", param=kind)
