"""The text of a job so far: its result, or what the saved chunks of its stream fold to."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.job import Job
from orchestrator.message import answer_text
from orchestrator.recoup import MessageFold
from orchestrator.states import State
from orchestrator.store.verbs import streams


class PartialText:
    """Reads a job's text again and again, folding only the chunks that came since."""

    def __init__(self) -> None:
        self._attempt = 0
        self._fold = MessageFold()
        self._count = 0

    def read(self, connection: Connection, job: Job) -> str:
        """Return the text as far as the database has it; empty where there is none yet."""
        if job.state is not State.RUNNING:
            return job.result_text or ""
        if job.attempt != self._attempt:
            self._attempt, self._fold, self._count = job.attempt, MessageFold(), 0
        for segment in streams.segments(connection, job.id, job.attempt, self._count):
            for chunk in segment.chunks:
                self._fold.feed(chunk)
            self._count += len(segment.chunks)
        message = self._fold.message
        return answer_text(message) if isinstance(message, dict) else ""
