"""The settings: sections and keys, their types, defaults and cross checks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from orchestrator.config.key import KeySource
from orchestrator.config.values import (
    BaseUrl,
    Count,
    CountFromZero,
    DatabaseUrl,
    Duration,
    FinishReasons,
    KeyPath,
    Level,
    Limit,
    OptionalDatabaseUrl,
    OptionalWord,
    Positive,
    ProxyUrl,
    Word,
    Words,
    safe_url,
)

URL_KEYS = frozenset({"base_url", "listen_url", "proxy", "url"})
"""Keys whose values may hold a password, and are shown through `safe_url`."""


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        for name, value in super().__repr_args__():
            shown = name in URL_KEYS and isinstance(value, str)
            yield name, safe_url(value) if shown else value


class Api(_Section):
    """The remote API: its address, and where the key is."""

    base_url: BaseUrl = "https://api.recoupable.com"
    api_key_file: KeyPath = None
    proxy: ProxyUrl = None

    def key_source(self, environ: Mapping[str, str] | None = None) -> KeySource:
        """Say where the key is found; `environ` is by default the process's own."""
        return KeySource(os.environ if environ is None else environ, self.api_key_file)


class Database(_Section):
    """The SQL database that holds the jobs."""

    url: DatabaseUrl = "sqlite:///orchestrator.db"
    listen_url: OptionalDatabaseUrl = None

    @field_validator("listen_url")
    @classmethod
    def _is_for_postgresql(cls, value: str | None, info: ValidationInfo) -> str | None:
        url = info.data.get("url") or ""
        if value is not None and not (
            value.startswith("postgresql:") and url.startswith("postgresql:")
        ):
            raise ValueError(
                "is for a PostgreSQL behind a transaction pooler, and leads to the same database"
            )
        return value


class Worker(_Section):
    """One daemon process. Durations are in seconds."""

    concurrency: Count = 100
    queues: Words = ()
    poll_interval: Positive = 1.0
    priority_step: Duration = 1_800.0
    drain_timeout: Duration = 150.0
    heartbeat: Positive = 10.0
    dead_after: Positive = 60.0

    @field_validator("dead_after")
    @classmethod
    def _survives_one_lost_beat(cls, value: float, info: ValidationInfo) -> float:
        beat = info.data.get("heartbeat")
        if beat is not None and value <= 2 * beat:
            raise ValueError(f"must be longer than twice worker.heartbeat ({beat:g} s)")
        return value


class Submit(_Section):
    """Starting runs. `timeout` is in seconds; `max_per_minute` None means no limit."""

    concurrency: Count = 8
    timeout: Positive = 150.0
    max_per_minute: Limit = None
    on_in_doubt: Literal["hold", "resubmit", "fail"] = "hold"


class Generate(_Section):
    """The synchronous endpoint. `timeout` is in seconds."""

    timeout: Positive = 3_600.0


class Follow(_Section):
    """Following runs to their end. Durations are in seconds."""

    mode: Literal["auto", "stream", "poll"] = "auto"
    trial_streams: CountFromZero = 4
    run_timeout: Positive = 21_600.0
    stall_timeout: Positive = 5_400.0
    poll_min: Positive = 1.0
    poll_max: Positive = 30.0
    checkpoint_every: Positive = 5.0

    @field_validator("poll_max")
    @classmethod
    def _not_below_minimum(cls, value: float, info: ValidationInfo) -> float:
        least = info.data.get("poll_min")
        if least is not None and value < least:
            raise ValueError(f"must not be shorter than follow.poll_min ({least:g} s)")
        return value


class Collect(_Section):
    """Judging finished runs: finish reasons that count as good besides `stop`."""

    accept_finish: FinishReasons = ()


class Defaults(_Section):
    """What a job gets that does not say otherwise; `model` None leaves the choice to the server."""

    model: OptionalWord = None
    queue: Word = "default"
    max_attempts: Count = 1


class Log(_Section):
    """The daemon's log."""

    level: Level = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Settings(BaseSettings):
    """All settings, frozen. The constructor reads nothing but its arguments."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    api: Api = Api()
    database: Database = Database()
    worker: Worker = Worker()
    submit: Submit = Submit()
    generate: Generate = Generate()
    follow: Follow = Follow()
    collect: Collect = Collect()
    defaults: Defaults = Defaults()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the library passes all by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments only: `load_settings` reads the rest, to name the source of a mistake."""
        return (init_settings,)
