"""The jobs of the demo, and how each of them must end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from orchestrator.states import ErrorKind, State

BATCH: Final = "demo"


@dataclass(frozen=True, slots=True)
class Scene:
    """A prompt with the dev server's directives in brackets, and the end that it must have."""

    prompt: str
    ends: State = State.COMPLETED
    kind: ErrorKind | None = None
    priority: int = 0
    tags: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """The job as `enqueue_many` takes it."""
        return {
            "prompt": self.prompt,
            "batch": BATCH,
            "priority": self.priority,
            "tags": list(self.tags) or None,
        }


SCENES: Final = (
    Scene("Say hello.", priority=10),
    Scene("Name three good titles for a song about trains.", priority=10),
    Scene("Write a limerick about SQL. [tokens=40 delay=0.03]", tags=("verse",)),
    Scene(
        "Find two venues in Lisbon. "
        '[steps=3 tool=web_search tool_time=2 delay=0.05 text="Musicbox, then Galeria Ze."]',
        tags=("tools",),
    ),
    Scene("Compare four booking agents. [reasoning tokens=60 delay=0.09]", tags=("reasoning",)),
    Scene("Sum up a quarter of streams. [steps=4 tools=2 tool_time=1.5 tokens=30 delay=0.03]"),
    Scene("Draft a press release, at length. [tokens=180 delay=0.04]"),
    Scene("Send the tour dates. [steps=2 tool=send_email tool_time=6 tool_error tokens=20]"),
    Scene("Cite sources for the artist's page. [sources=3 tokens=60 delay=0.1]"),
    Scene("Keep the catalogue's notes in the repository. [tokens=50 delay=0.1 commit tail=1]"),
    Scene(
        "Audit the catalogue; the model breaks down. [steps=3 fail=2 tool_time=4 delay=0.05]",
        ends=State.FAILED,
        kind=ErrorKind.RUN_FAILED,
    ),
    Scene(
        "Write the whole biography, beyond the limit. [tokens=90 delay=0.08 finish=length]",
        ends=State.FAILED,
        kind=ErrorKind.INCOMPLETE,
    ),
)
"""A dozen: short and long ones, tools, reasoning, sources, one that fails, one that is cut off."""

LIVE_AT_THE_KILL: Final = 6
"""The worker is killed once nothing waits and at least so many runs are live."""
