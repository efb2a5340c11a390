"""Answers in the API's own form, and the exception that stands for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from orchestrator.devserver.wire import Json, stringify

CORS: Final[Mapping[str, str]] = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Authorization, x-api-key",
}


class Refused(Exception):
    """The request is answered with an error in the API's envelope.

    `key` is the field that holds the sentence; `fields` are further fields of the envelope.
    """

    def __init__(self, status: int, sentence: str, *, key: str = "error", **fields: Json) -> None:
        self.status = status
        self.envelope = {"status": "error", key: sentence, **fields}
        super().__init__(f"{status} {sentence}")

    def answer(self) -> web.Response:
        """Give the answer itself."""
        return answer(self.envelope, status=self.status)


def answer(
    body: Json, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer with JSON."""
    return web.Response(
        status=status,
        text=stringify(body),
        content_type="application/json",
        headers={**CORS, **(headers or {})},
    )


def not_found_page() -> web.Response:
    """Answer as the platform does where no route is: with a page, not with the envelope."""
    return web.Response(
        status=404,
        text="<!DOCTYPE html><html><body><h1>404</h1>This page could not be found.</body></html>",
        content_type="text/html",
    )
