"""The remote client, as the configuration wants it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from orchestrator.config import Settings
from orchestrator.errors import ConfigError
from orchestrator.recoup.client import RecoupClient

_FEWEST_STREAMS = 1024


@asynccontextmanager
async def client_for(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[RecoupClient]:
    """Open a client of the configured API. Raises ConfigError for a key or setting of no use."""
    source = settings.api.key_source(environ)
    source.read_key()
    live = settings.worker.concurrency
    try:
        client = RecoupClient(
            base_url=settings.api.base_url,
            key=source.read_key,
            proxy=settings.api.proxy,
            submit_timeout=settings.submit.timeout,
            generate_timeout=settings.generate.timeout,
            stream_idle_timeout=settings.follow.stall_timeout,
            max_calls=max(64, min(live, 1024)),
            # Adoption is not bounded by `concurrency`, so neither are the streams.
            max_streams=max(_FEWEST_STREAMS, 4 * live),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    async with client:
        yield client
