"""The stub's answers, prepared as bytes around the number of a run.

Nothing here is of the client that is measured: shapes and texts are written out by hand, and the
stored message is not made by folding the chunks.
"""

from __future__ import annotations

import json
from typing import Any

_FRAME = 7
"""Chunks of a stream that are not text deltas."""

_RUN = "wrun_01K0000000"
_CHAT = "c4a70000-0000-4000-8000-"
_SESSION = "5e551000-0000-4000-8000-"
_AT = "2026-01-01T00:00:00.000Z"
_DIGITS = {"run": 16, "uuid": 12}

_USAGE = {
    "inputTokens": 1200,
    "inputTokenDetails": {"noCacheTokens": 1200},
    "outputTokens": 240,
    "outputTokenDetails": {"textTokens": 240},
    "totalTokens": 1440,
}
_METADATA = {
    "selectedModelId": "moonshotai/kimi-k3",
    "modelId": "moonshotai/kimi-k3",
    "lastStepUsage": _USAGE,
    "totalMessageUsage": _USAGE,
    "lastStepCost": 0.0042,
    "totalMessageCost": 0.0042,
    "lastStepFinishReason": "stop",
    "lastStepRawFinishReason": "end_turn",
    "stepFinishReasons": [{"finishReason": "stop", "rawFinishReason": "end_turn"}],
}


def run_number(name: bytes) -> int:
    """The number in a run, chat or session id; -1 if there is none."""
    digits = name[-_DIGITS["run"] :] if name.startswith(b"wrun_") else name[-_DIGITS["uuid"] :]
    return int(digits) if digits.isdigit() else -1


def run_id(number: int) -> str:
    """`wrun_` and a ULID that ends in the number."""
    return f"{_RUN}{number:016d}"


def chat_id(number: int) -> str:
    """A UUID that ends in the number."""
    return f"{_CHAT}{number:012d}"


def session_id(number: int) -> str:
    """A UUID that ends in the number."""
    return f"{_SESSION}{number:012d}"


def message_id(number: int) -> str:
    """The id of the run's one message."""
    return f"msg_{number:012d}"


class Answers:
    """Whole answers, head and body; streams have `chunks` chunks and then `[DONE]`."""

    def __init__(self, chunks: int = 20) -> None:
        if chunks <= _FRAME:
            raise ValueError(f"chunks: {chunks}: a message with text takes {_FRAME + 1} or more")
        self.chunks = chunks
        self.deltas = [f"word {index} of the answer, " for index in range(chunks - _FRAME)]
        self.not_found = _answer(404, "Not Found", {"status": "error", "error": "Run not found"})
        self.nothing_to_stream = b"HTTP/1.1 204 No Content\r\n\r\n"
        self.stream_end = _piece(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self._later_chunks = [_event(chunk) for chunk in self.all_chunks(0)[1:]]
        marked = json.dumps(self.stored(0), separators=(",", ":"))
        self._before_id, self._after_id = marked.split(message_id(0))

    def all_chunks(self, number: int) -> list[dict[str, Any]]:
        """The chunks of a run's stream; only the first tells one run from another."""
        deltas = [{"type": "text-delta", "id": "0", "delta": delta} for delta in self.deltas]
        return [
            {"type": "start", "messageId": message_id(number)},
            {"type": "start-step"},
            {"type": "text-start", "id": "0"},
            *deltas,
            {"type": "text-end", "id": "0"},
            {"type": "finish-step"},
            {"type": "message-metadata", "messageMetadata": _METADATA},
            {"type": "finish", "finishReason": "stop"},
        ]

    def stored(self, number: int) -> dict[str, Any]:
        """The message as the chat keeps it."""
        return {
            "id": message_id(number),
            "role": "assistant",
            "parts": [
                {"type": "step-start"},
                {"type": "text", "text": "".join(self.deltas), "state": "done"},
            ],
            "metadata": _METADATA,
        }

    # --- answers ------------------------------------------------------------------------------

    def json(self, body: bytes) -> bytes:
        """A 200 with this JSON."""
        return _with_body(200, "OK", body)

    def started(self, number: int) -> bytes:
        """The 202 of a run."""
        run = run_id(number)
        body = {"runId": run, "chatId": chat_id(number), "sessionId": session_id(number)}
        return _answer(202, "Accepted", body, location=f"/api/chat/runs/{run}")

    def status(self, number: int, over: bool) -> bytes:
        """A run's status."""
        return self.json(
            b'{"runId":"%b","status":"%b"}'
            % (run_id(number).encode(), b"completed" if over else b"running")
        )

    def chat(self, number: int, over: bool) -> bytes:
        """The chat: its message once the run is over, and the run that it points at before."""
        message = f"{self._before_id}{message_id(number)}{self._after_id}" if over else ""
        active = "null" if over else f'"{run_id(number)}"'
        last = f'"{_AT}"' if over else "null"
        body = (
            f'{{"chat":{{"id":"{chat_id(number)}","sessionId":"{session_id(number)}",'
            f'"title":"Benchmark","modelId":"moonshotai/kimi-k3","activeStreamId":{active},'
            f'"lastAssistantMessageAt":{last},"createdAt":"{_AT}","updatedAt":"{_AT}"}},'
            f'"isStreaming":{"false" if over else "true"},"messages":[{message}]}}'
        )
        return self.json(body.encode())

    def stream_head(self, number: int) -> bytes:
        """The head of a stream."""
        return (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
            b"x-vercel-ai-ui-message-stream: v1\r\nx-workflow-run-id: %b\r\n"
            b"x-workflow-stream-tail-index: %d\r\ntransfer-encoding: chunked\r\n\r\n"
        ) % (run_id(number).encode(), self.chunks - 1)

    def chunk(self, number: int, index: int) -> bytes:
        """One chunk of a run's stream, as a piece of the body."""
        if index == 0:
            return _piece(_event({"type": "start", "messageId": message_id(number)}))
        return _piece(self._later_chunks[index - 1])

    def whole_stream(self, number: int, start: int) -> bytes:
        """A stream from the chunk `start` to its end, in one piece."""
        first = [] if start else [_event({"type": "start", "messageId": message_id(number)})]
        events = b"".join(first + self._later_chunks[max(0, start - 1) :])
        return self.stream_head(number) + (_piece(events) if events else b"") + self.stream_end


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode()


def _piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _answer(status: int, reason: str, body: dict[str, Any], **headers: str) -> bytes:
    return _with_body(status, reason, json.dumps(body, separators=(",", ":")).encode(), **headers)


def _with_body(status: int, reason: str, body: bytes, **headers: str) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode("ascii") + body
