"""Who may call: the keys that are valid now and the accounts that they belong to."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from aiohttp import web

from orchestrator.devserver.answers import Refused

_NAMESPACE: Final = uuid.UUID("6a0b1c2d-3e4f-4a5b-8c6d-7e8f90a1b2c3")


def account_of(key: str) -> str:
    """Give the account id that a key has when none is named."""
    return str(uuid.uuid5(_NAMESPACE, key))


class Keys:
    """The valid keys. `keys` names them, or maps each to its account id."""

    def __init__(self, keys: Iterable[str] | Mapping[str, str]) -> None:
        self._accounts: dict[str, str] = (
            dict(keys) if isinstance(keys, Mapping) else {key: account_of(key) for key in keys}
        )

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._accounts))

    def allow(self, key: str, account: str | None = None) -> None:
        """Make a key valid, now or again."""
        self._accounts[key] = account or account_of(key)

    def revoke(self, key: str) -> None:
        """Make a key invalid."""
        self._accounts.pop(key, None)

    def account(self, request: web.Request) -> str:
        """Give the account that a request is made for; raises `Refused` with 401."""
        key = request.headers.get("x-api-key")
        authorization = request.headers.get("Authorization")
        if (key is None) == (authorization is None):
            raise Refused(401, "Exactly one of x-api-key or Authorization must be provided")
        if authorization is not None:
            scheme, _, key = authorization.partition(" ")
            if scheme.lower() != "bearer":
                raise Refused(401, "Authorization must be a Bearer token")
        account = self._accounts.get((key or "").strip())
        if account is None:
            raise Refused(401, "Unauthorized", key="message")
        return account

    def own_account(self, request: web.Request) -> str:
        """The same for routes that take `?account_id=`; raises `Refused` with 401 or 403."""
        account = self.account(request)
        if request.query.get("account_id", account) != account:
            raise Refused(403, "Access denied to specified account_id")
        return account
