"""The dev server's control routes, and its process."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio.streams.buffered import BufferedByteReceiveStream

from benchmarks.soak.plan import KEY


class Remote:
    """The API as the harness sees it: the switches, not the routes that workers use."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self._client = client

    async def add(self, **fault: Any) -> int:
        """Switch a fault on and return its number."""
        return int((await self._post("faults", fault)).json()["id"])

    async def clear(self) -> None:
        """Switch all faults off."""
        (await self._client.delete("/_dev/faults")).raise_for_status()

    async def revoke(self) -> None:
        """Make the workers' key invalid."""
        await self._post("keys", {"revoke": [KEY]})

    async def allow(self) -> None:
        """Make it valid again."""
        await self._post("keys", {"allow": [KEY]})

    async def refuse(self, seconds: float) -> None:
        """Refuse connections for so long."""
        await self._post("refuse", {"seconds": seconds})

    async def _post(self, what: str, body: dict[str, Any]) -> httpx.Response:
        answer = await self._client.post(f"/_dev/{what}", json=body)
        answer.raise_for_status()
        return answer


@asynccontextmanager
async def dev_server(ledger: Path, seed: int) -> AsyncIterator[Remote]:
    """Run the dev server as a process; at the end of the block it has written its ledger."""
    command = [sys.executable, "-m", "benchmarks.soak.server"]
    arguments = ["--ledger", str(ledger), "--seed", str(seed)]
    async with await anyio.open_process([*command, *arguments], stderr=None) as process:
        try:
            assert process.stdout is not None
            said = BufferedByteReceiveStream(process.stdout)
            url = (await said.receive_until(b"\n", 200)).decode().strip()
            # A fresh connection each time: one that is kept breaks when the door is closed.
            limits = httpx.Limits(max_keepalive_connections=0)
            async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
                yield Remote(url, client)
        finally:
            process.terminate()
            with anyio.CancelScope(shield=True), anyio.move_on_after(120):
                await process.wait()
