"""The API key: where it is found, and how keys are told apart without storing one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.printable import printable, redacted

KEY_VARIABLE = "RECOUP_API_KEY"

_LONGEST_FILE = 4096
"""Bytes that are read of a key file; a longer one holds something else."""


def fingerprint(key: str) -> str:
    """Tell API keys apart without storing them: the first 12 hex digits of the key's SHA-256."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the API key is found. Holds no key, so that a rotated one counts at once."""

    environ: Mapping[str, str] = field(repr=False)
    path: Path | None = None

    def read_key(self) -> str:
        """Read the API key: the variable `RECOUP_API_KEY`, or else the file, opened each time.

        Returns:
            The key without surrounding white space: printable ASCII, not empty.

        Raises:
            ConfigError: there is none, or it cannot be a header's value. The text says where the
                key was looked for and never shows it.
        """
        found = self.environ.get(KEY_VARIABLE, "").strip()
        if found:
            return _checked_key(found, f"the variable {KEY_VARIABLE}")
        if self.path is None:
            raise ConfigError(
                f"no API key: the variable {KEY_VARIABLE} is not set and api.api_key_file names"
                " no file; set one of them"
            )
        where = f"the file {printable(redacted(str(self.path)))} (api.api_key_file)"
        try:
            with self.path.expanduser().open("rb") as file:
                content = file.read(_LONGEST_FILE + 1)
        except (OSError, RuntimeError) as error:  # RuntimeError: a ~ without a home directory
            reason = getattr(error, "strerror", None) or "it cannot be read"
            raise ConfigError(f"no API key: {where}: {reason}") from None
        if len(content) > _LONGEST_FILE:
            raise ConfigError(f"no API key: {where} is longer than {_LONGEST_FILE} bytes")
        return _checked_key(content.decode("latin-1").strip(), where)


def _checked_key(key: str, where: str) -> str:
    if not key:
        raise ConfigError(f"no API key: {where} is empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"no API key: {where} holds white space or characters that are not printable ASCII;"
            " it must hold the key and nothing else"
        )
    return key
