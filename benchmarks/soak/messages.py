"""Compare what a job kept with what the server has: the message, and the answer in the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.devserver.plan import Pace, plan_run
from orchestrator.devserver.script import read_script
from orchestrator.recoup.fold import fold_message

Row = Mapping[str, Any]


def difference(job: Row, rows: Sequence[Row], run: Row | None) -> str | None:
    """Say how what a job kept differs from the truth; None if it does not.

    `rows` are the job's messages, `run` the server's run of its last attempt.
    """
    if job["state"] != "completed":
        return None if run is None else _unless_server_has_it(job, rows, run)
    if job["endpoint"] == "generate":
        return None if job["result_text"] == _planned(job["prompt"]) else "another text"
    if run is None or not rows:
        return "completed without a message"
    if job["result_text"] != _in_a_column(_answer(rows[0]["message"])):
        return "result_text is not the answer of the message"
    return _unless_server_has_it(job, rows, run)


def _unless_server_has_it(job: Row, rows: Sequence[Row], run: Row) -> str | None:
    if not rows:
        return None
    if len(rows) != 1:
        return f"{len(rows)} messages"
    kept, truth = rows[0]["message"], run["message"]
    if rows[0]["source"] == "stream":
        folded = fold_message(run["chunks"]).message
        same = _solid(kept) == _solid(folded) or job["state"] != "completed"
        return None if same or _solid(kept) == _solid(truth) else "the fold differs from the stream"
    if kept == truth:
        return None
    if job["batch"] == "missing step" and _is_beginning(kept, truth):
        return None
    if _without_commit(kept) == _without_commit(truth):
        return None
    return "the message differs from the server's"


def _is_beginning(kept: Row, truth: Row) -> bool:
    """Tell whether a message lacks the last step only, as the fault of that name makes it."""
    have, want = kept["parts"], truth["parts"]
    return len(have) < len(want) and list(want[: len(have)]) == list(have)


def _without_commit(message: Row | None) -> Any:
    """The message but for its commit, whose outcome comes after the answer."""
    if message is None:
        return None
    parts = [part for part in message["parts"] if not part["type"].startswith("data-")]
    return {**message, "parts": parts}


def _solid(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return None
    parts = [part for part in message["parts"] if not part["type"].startswith("data-")]
    while parts and parts[-1]["type"] == "step-start":
        parts.pop()
    return parts


def _answer(message: Row) -> str:
    last: list[str] = []
    for part in message["parts"]:
        if part["type"] == "step-start":
            last = []
        elif part["type"] == "text":
            last.append(part["text"])
    return "".join(last)


def _planned(prompt: str) -> str:
    """The text that the scripted model gives for a prompt."""
    plan = plan_run(read_script(prompt), message_id="", model="", pace=Pace())
    message = next(beat.message for beat in reversed(plan.beats) if beat.message is not None)
    return _in_a_column(_answer(message))


def _in_a_column(text: str) -> str:
    """The text as a text column can hold it."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\x00", "\ufffd")
