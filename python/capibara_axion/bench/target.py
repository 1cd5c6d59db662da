# SPDX-License-Identifier: Apache-2.0
"""The server that is measured: what it is, whether it is well, and an operator's orders to it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import aiohttp

from capibara_axion.bench.errors import UsageError
from capibara_axion.bench.results import Server

_TIMEOUT = aiohttp.ClientTimeout(total=5)
_POLL_S = 0.02
# Where a version is: vLLM's, ours, llama.cpp's.
_VERSIONS = (
    ("/version", "version"),
    ("/openapi.json", "info", "version"),
    ("/props", "build_info"),
)
_UNLOAD_TIMEOUT_S = 60.0


class Target:
    """One server, of whatever make.

    Args:
        session: of `client.http_session`.
        url: without a path of the protocol.
        key: of a client.
        admin_key: of an operator, for `unload`.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        key: str | None = None,
        admin_key: str | None = None,
    ) -> None:
        self._session = session
        self._url = url
        self._key = key
        self._admin_key = admin_key
        self._has_health = True

    async def describe(self) -> Server:
        """Find out what there is.

        Raises:
            UsageError: nobody who speaks OpenAI's protocol answers there.
        """
        try:
            names = [card["id"] for card in await self._cards()]
            health, version = await self._status("/health"), await self._version()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UsageError(f"--url: no server answers at {self._url}: {reason}") from None
        self._has_health = health not in (401, 403, 404, 405)
        return Server(
            url=self._url,
            models=names,
            health=str(health) if self._has_health else None,
            version=version,
        )

    async def state_of(self, model: str) -> str | None:
        """`status.value` of a model; None where the server does not tell, or not now."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, UsageError):
            for card in await self._cards():
                if card["id"] == model and isinstance(card.get("status"), dict):
                    return str(card["status"].get("value"))
        return None

    async def illness(self) -> str | None:
        """What keeps the server from being sent more; None: nothing."""
        if not self._has_health:
            return None
        try:
            status = await self._status("/health")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"/health: {error or type(error).__name__}"
        return None if status == 200 else f"/health answers {status}"

    async def unload(self, model: str) -> None:
        """Have a model unloaded, and wait until it is.

        Raises:
            UsageError: the server has no such route, refuses the key, or does not do it.
        """
        headers = {"Authorization": f"Bearer {self._admin_key}"}
        try:
            async with asyncio.timeout(_UNLOAD_TIMEOUT_S):
                url, body = f"{self._url}/models/unload", {"model": model}
                async with self._session.post(url, json=body, headers=headers) as response:
                    status = response.status
                    # llama.cpp refuses to unload what is not loaded.
                    is_done = status == 400 and await self.state_of(model) == "unloaded"
                    if status != 200 and not is_done:
                        raise UsageError(
                            "--cold: expected a server with POST /models/unload that takes the "
                            f"key in CAPIBARA_AXION_ADMIN_KEY; it answered {status}"
                        )
                # Of another process: it can be asked, and there is nothing here to wait for.
                while await self.state_of(model) != "unloaded":  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or f"not within {_UNLOAD_TIMEOUT_S:.0f} s"
            raise UsageError(f"--cold: {model} could not be unloaded: {reason}") from None

    async def _cards(self) -> list[dict[str, Any]]:
        path = "/v1/models"
        async with self._get(path) as response:
            if response.status in (401, 403):
                raise UsageError(
                    f"--url: {path} answers {response.status}; expected a valid key in "
                    "CAPIBARA_AXION_API_KEY or OPENAI_API_KEY"
                )
            if response.status == 503:  # llama.cpp's while it loads its model
                raise UsageError(f"--url: {self._url} is not ready yet: {path} answers 503")
            try:
                cards = (await response.json(content_type=None))["data"]
                if response.status == 200 and all(isinstance(card["id"], str) for card in cards):
                    return list(cards)
            except (ValueError, KeyError, TypeError):
                pass
            raise UsageError(
                f"--url: expected an OpenAI-compatible server; {self._url}{path} answers "
                f"{response.status} and no list of models"
            )

    async def _version(self) -> str | None:
        for path, *names in _VERSIONS:
            async with self._get(path) as response:
                if response.status != 200:
                    continue
                try:
                    found = await response.json(content_type=None)
                    for name in names:
                        found = found[name]
                    return str(found)
                except (ValueError, KeyError, TypeError):
                    continue
        return None

    async def _status(self, path: str) -> int:
        async with self._get(path) as response:
            return int(response.status)

    def _get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return self._session.get(self._url + path, headers=headers, timeout=_TIMEOUT)
