"""From a script to the whole life of its run, beat by beat.

A plan is a pure function of the script and the run's ids. So a run is its plan and how far it
has come: the chunks written, the message stored and the status all follow from that position,
and a server that starts again makes the same chunks at the same indexes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from orchestrator.devserver.script import MADE_UP, Script
from orchestrator.devserver.usage import Meter, Usage
from orchestrator.devserver.wire import Chunk, Json

FOREVER: Final = float("inf")
"""The pause of a run that hangs."""

_PHRASES: Final = (
    "The catalog shows steady growth",
    "across the main playlists,",
    "with the newest single ahead of every earlier release",
    "and most saves coming from three cities.",
)


@dataclass(frozen=True, slots=True)
class Beat:
    """One moment of a run: after a pause of `after` seconds, all that is not None happens."""

    after: float = 0.0
    chunk: Chunk | None = None
    """Written to the stream."""
    message: Json | None = None
    """Stored as the chat's assistant message, in place of what was stored before."""
    status: str | None = None
    """The run's status from now on."""
    leaves_slot: bool = False
    """The run's own clean-up: the chat points at no run any more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The beats of a run, in order, and the chunks among them."""

    beats: tuple[Beat, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast runs go where their script does not say; seconds."""

    chunk: float = 0.01
    """Before each chunk."""
    early_failure: float = 3.3
    """Until a run whose input no model accepts has used up its four attempts."""


def plan_run(script: Script, *, message_id: str, model: str, pace: Pace) -> Plan:
    """Lay out the run of `script`."""
    return _Writer(script, message_id, model, pace).run()


def plan_early_failure(pace: Pace) -> Plan:
    """Lay out the run of an input that no model accepts: no chunk, no message, no reason."""
    return Plan((Beat(after=pace.early_failure, status="failed"),), ())


class _Writer:
    """Writes beats, and beside them the parts of the message that the server stores."""

    def __init__(self, script: Script, message_id: str, model: str, pace: Pace) -> None:
        self.script = script
        self.message_id = message_id
        self.meter = Meter(model, script.cost)
        self.pace = pace.chunk if script.delay is None else script.delay
        self.early_failure = pace.early_failure
        self.beats: list[Beat] = []
        self.parts: list[Chunk] = []
        self.metadata: Json | None = None
        self.waiting = 0.0

    # --- the run ------------------------------------------------------------------------

    def run(self) -> Plan:
        script = self.script
        if script.queued:
            self.beats.append(Beat(status="queued"))
            self.beats.append(Beat(after=script.queued, status="running"))
        if script.skipped:
            self.end("completed")
        elif script.fail == 0:
            self.beats.append(Beat(after=self.early_failure, status="failed"))
        else:
            self.turn()
        return Plan(
            tuple(self.beats),
            tuple(beat.chunk for beat in self.beats if beat.chunk is not None),
        )

    def turn(self) -> None:
        script = self.script
        self.pause(script.first)
        self.write({"type": "start", "messageId": self.message_id})
        for number in range(1, script.steps + 1):
            if number == script.fail:
                for attempt in range(1, script.attempts + 1):
                    self.half_step(number, attempt)
                self.write({"type": "finish"})
                self.end("failed")
                return
            if number == script.hang:
                self.half_step(number, 1)
                self.beats.append(Beat(after=FOREVER, status="failed"))
                return
            if number == script.retry_step:
                self.half_step(number, 1)
                self.write({"type": "error", "errorText": "The model call broke off."})
            self.step(number)
        self.write({"type": "finish"})
        self.commit()
        self.pause(script.tail)
        self.end("completed")

    def end(self, status: str) -> None:
        self.beats.append(Beat(after=self.take_pause(), status=status, leaves_slot=True))

    def commit(self) -> None:
        outcome = self.script.commit
        if outcome is None:
            return
        part: Chunk = {"type": "data-commit", "id": f"{self.message_id}:commit"}
        self.parts.append({**part, "data": _commit("pending")})
        self.write(self.parts[-1], message=self.stored())
        self.pause(self.script.commit_time)
        self.parts[-1] = {**part, "data": _commit(outcome)}
        self.write(self.parts[-1], message=self.stored())

    # --- one model call -----------------------------------------------------------------

    def step(self, number: int) -> None:
        script = self.script
        last = number == script.steps
        reason = script.finish if last else "tool-calls"
        text = self.answer() if last else script.talk
        self.part({"type": "step-start"}, chunk={"type": "start-step"})
        if script.reasoning is not None:
            self.prose("reasoning", "0", script.reasoning)
        if last:
            self.attachments()
        self.prose("text", "1", text, silence=script.silence if last else 0.0)
        if last and script.error_chunk is not None:
            self.write({"type": "error", "errorText": script.error_chunk})
        if reason == "tool-calls":
            self.tool_calls(number)
        for chunk in script.extra if last else ():
            self.write(chunk)
        self.write({"type": "finish-step"})
        self.account(number, text, reason)

    def half_step(self, number: int, attempt: int) -> None:
        """Write what a model call leaves that breaks off; the server stores none of it."""
        words = _pieces(self.script.talk, self.script.split)
        self.write({"type": "start-step"})
        self.write({"type": "text-start", "id": "1"})
        for word in words[: len(words) // 2 + 1]:
            self.write({"type": "text-delta", "id": "1", "delta": word})
        call = f"{self.call_id(number, 1)}_{attempt}"
        start = {"type": "tool-input-start", "toolCallId": call, "toolName": self.script.tool}
        self.write(start)
        self.write({"type": "tool-input-delta", "toolCallId": call, "inputTextDelta": '{"com'})

    def account(self, number: int, text: str, reason: str) -> None:
        if not self.script.no_metadata:
            fresh = 200 + len(self.script.subject) // 4
            usage = Usage(
                input=fresh * number,
                cached=fresh * (number - 1),
                text=max(1, len(text.split())),
                reasoning=len((self.script.reasoning or "").split()),
            )
            self.metadata = self.meter.call(usage, reason)
            self.write({"type": "message-metadata", "messageMetadata": self.metadata})
        self.beats.append(Beat(message=self.stored()))

    # --- parts --------------------------------------------------------------------------

    def prose(self, kind: str, part_id: str, text: str, *, silence: float = 0.0) -> None:
        pieces = _pieces(text, self.script.split)
        self.write({"type": f"{kind}-start", "id": part_id})
        for index, piece in enumerate(pieces):
            if silence and index == len(pieces) // 2:
                self.pause(silence)
            self.write({"type": f"{kind}-delta", "id": part_id, "delta": piece})
        self.part(
            {"type": kind, "text": text, "state": "done"},
            chunk={"type": f"{kind}-end", "id": part_id},
        )

    def attachments(self) -> None:
        for number in range(1, self.script.sources + 1):
            url = f"https://example.org/source/{number}?a=b&c=d"
            self.part(
                {"type": "source-url", "sourceId": f"s{number}", "url": url, "title": "A page"}
            )
        for _ in range(self.script.files):
            self.part(
                {"type": "file", "mediaType": "text/plain", "url": "data:text/plain;base64,aGk="}
            )

    def tool_calls(self, number: int) -> None:
        script = self.script
        calls = [self.call_id(number, index) for index in range(1, script.tools + 1)]
        given = {"command": f"make step{number}"} if script.input is MADE_UP else script.input
        text = json.dumps(given, separators=(",", ":"))
        for call in calls:
            named = {"toolCallId": call, "toolName": script.tool}
            self.write({"type": "tool-input-start", **named})
            for start in range(0, len(text), 6):
                delta = text[start : start + 6]
                self.write(
                    {"type": "tool-input-delta", "toolCallId": call, "inputTextDelta": delta}
                )
            self.write({"type": "tool-input-available", **named, "input": given})
        self.pause(script.tool_time)
        for call in calls:
            result, state = self.tool_result(number)
            part = {"type": f"tool-{script.tool}", "toolCallId": call, "state": f"output-{state}"}
            self.part(
                {**part, "input": given, **result},
                chunk={"type": f"tool-output-{state}", "toolCallId": call, **result},
            )

    def tool_result(self, number: int) -> tuple[Chunk, str]:
        if self.script.tool_error is not None:
            return {"errorText": self.script.tool_error}, "error"
        made_up = {"stdout": f"ran make step{number}\n", "stderr": "", "exitCode": 0}
        return {
            "output": made_up if self.script.output is MADE_UP else self.script.output
        }, "available"

    # --- beats --------------------------------------------------------------------------

    def part(self, part: Chunk, *, chunk: Chunk | None = None) -> None:
        """Add a part to the message; write the chunk that brings it (by default the same)."""
        self.write(part if chunk is None else chunk)
        self.parts.append(part)

    def write(self, chunk: Chunk, *, message: Json | None = None) -> None:
        self.beats.append(Beat(self.take_pause() + self.pace, chunk=chunk, message=message))

    def pause(self, seconds: float) -> None:
        self.waiting += seconds

    def take_pause(self) -> float:
        waiting, self.waiting = self.waiting, 0.0
        return waiting

    def stored(self) -> Json | None:
        if self.script.no_message:
            return None
        message = {"id": self.message_id, "role": "assistant", "parts": list(self.parts)}
        return message if self.metadata is None else {**message, "metadata": self.metadata}

    def call_id(self, number: int, index: int) -> str:
        return f"call_{self.message_id[-6:]}_{number}{chr(96 + index)}"

    def answer(self) -> str:
        script = self.script
        if script.text is not None:
            return script.text
        if script.tokens is not None:
            words = " ".join(_PHRASES).split()
            return " ".join(words[index % len(words)] for index in range(script.tokens))
        about = script.subject if len(script.subject) <= 200 else f"{script.subject[:199]}…"
        return f"Here is my answer to “{about}”: it looks good, and nothing stands in the way."


def _pieces(text: str, units: int) -> list[str]:
    if not units:
        return re.findall(r"\S+\s*|\s+", text)
    raw = text.encode("utf-16-le", "surrogatepass")
    return [
        raw[at : at + 2 * units].decode("utf-16-le", "surrogatepass")
        for at in range(0, len(raw), 2 * units)
    ]


def _commit(status: str) -> Json:
    if status != "success":
        return {"status": status, "committed": False, "pushed": False}
    return {
        "status": status,
        "committed": True,
        "pushed": True,
        "commitMessage": "feat: add the answer",
        "commitSha": "abc123",
        "url": "https://example.org/owner/repository/commit/abc123",
    }
