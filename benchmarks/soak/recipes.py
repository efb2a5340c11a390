"""The jobs of a soak: what each asks for, and how it may end. Pure: a seed and a number give a job.

`batch` holds the recipe's name, so that SQL can group by it; the prompt begins with the number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from types import MappingProxyType
from typing import Any, Final

_COMPLETED: Final = frozenset({"completed"})
_TRAPS: Final = (
    r'text="NUL \u0000, half a pair \ud83d, whole \ud83d\ude00, \u202eturned\u202c, \u001b[31m"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A kind of job. `ends` are `completed` or error kinds that are right for it."""

    name: str
    share: int
    directives: str = ""
    ends: frozenset[str] = _COMPLETED
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    as_messages: bool = False
    scheduled_in_s: float | None = None
    expires_in_s: float | None = None


def _only(*kinds: str) -> frozenset[str]:
    return frozenset(kinds)


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(name="plain", share=320),
            Recipe(name="tools", share=120, directives="steps=3 tool=search tool_time=0.2"),
            Recipe(name="rich", share=60, directives="reasoning sources files commit"),
            Recipe(name="unicode", share=30, directives=_TRAPS),
            Recipe(name="cut-deltas", share=20, directives=_TRAPS + " split=1"),
            Recipe(name="retried-step", share=30, directives="retry_step steps=2"),
            Recipe(name="error-chunk", share=15, directives="error_chunk"),
            Recipe(name="tool-error", share=20, directives="tool_error tools=2"),
            Recipe(name="no-stream", share=20, directives="no_stream"),
            Recipe(name="no-metadata", share=15, directives="no_metadata"),
            Recipe(name="status-queued", share=20, directives="queued=1 provision=0.3"),
            Recipe(name="silent", share=20, directives="silence=3"),
            Recipe(name="tail", share=20, directives="tail=2 commit commit_time=1"),
            Recipe(name="long", share=20, directives="steps=4 tokens=150 delay=0.03"),
            Recipe(name="as-messages", share=30, as_messages=True),
            Recipe(name="scheduled", share=15, scheduled_in_s=20.0),
            Recipe(name="generate", share=50, options={"endpoint": "generate"}),
            # Polled, the chat's earlier state is all that can be known of the message.
            Recipe(
                name="missing step",
                share=20,
                directives="steps=2",
                ends=_only("completed", "incomplete"),
            ),
            Recipe(
                name="fails",
                share=30,
                directives="fail=1 attempts=2",
                ends=_only("run_failed"),
            ),
            Recipe(name="fails early", share=10, directives="fail=0", ends=_only("run_failed")),
            Recipe(
                name="fails again",
                share=20,
                directives="fail=2 steps=2 attempts=1",
                options={"max_attempts": 3},
                ends=_only("run_failed"),
            ),
            Recipe(name="cut off", share=10, directives="finish=length", ends=_only("incomplete")),
            Recipe(
                name="model-error", share=10, directives="finish=error", ends=_only("model_error")
            ),
            Recipe(name="skipped", share=5, directives="skipped", ends=_only("no_output")),
            Recipe(name="no-message", share=5, directives="no_message", ends=_only("no_output")),
            Recipe(
                name="hangs",
                share=8,
                directives="hang",
                options={"run_timeout": 6.0},
                ends=_only("timed_out"),
            ),
            # Each new worker listens anew: after many deaths the minute may pass unstopped.
            Recipe(
                name="stalls",
                share=8,
                directives="silence=60",
                options={"stall_timeout": 5.0},
                ends=_only("stalled", "completed"),
            ),
            Recipe(
                name="stuck",
                share=8,
                options={"run_timeout": 6.0},
                ends=_only("timed_out"),
            ),
            Recipe(
                name="leaver",
                share=20,
                directives="tokens=60 delay=0.03",
                options={"max_attempts": 2},
                ends=_only("completed", "cancelled_by_disconnect", "cancelled_remotely"),
            ),
            Recipe(name="expires", share=15, expires_in_s=30.0, ends=_only("completed", "expired")),
        )
    }
)
"""All recipes by name. Faults that only some jobs may meet find them by the name in the prompt."""

_QUEUES: Final = {"default": 40, "news": 30, "bulk": 17, "lane": 10, "narrow": 3}


def job(seed: int, number: int, now: datetime, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the options of a job; the same seed and number give the same, times apart.

    `names` are the recipes to choose from; empty means all.
    """
    chance = Random(f"{seed}/{number}")  # noqa: S311 - a repeatable mix, no secret
    recipes = [RECIPES[name] for name in names or RECIPES]
    (recipe,) = chance.choices(recipes, [each.share for each in recipes])
    directives = recipe.directives
    if "delay=" not in directives:
        pace = f"delay={chance.uniform(0.005, 0.03):.3f}"
        directives = f"{directives} {pace}".strip()
    if "tokens=" not in directives and "text=" not in directives:
        directives += f" tokens={chance.randint(5, 40)}"
    words = f"soak {number:06d} {recipe.name} [{directives}]"
    content: dict[str, Any] = {"prompt": words}
    if recipe.as_messages:
        content = {"messages": [{"id": f"m{number}", "content": words}]}
    wishes: dict[str, Any] = {}
    if recipe.scheduled_in_s is not None:
        wishes["scheduled_at"] = now + timedelta(seconds=recipe.scheduled_in_s)
    if recipe.expires_in_s is not None:
        wishes["expires_at"] = now + timedelta(seconds=recipe.expires_in_s)
    return {
        **content,
        **wishes,
        **recipe.options,
        "queue": chance.choices(list(_QUEUES), list(_QUEUES.values()))[0],
        "priority": chance.choice((0, 0, 0, 0, 1, 2, 5)),
        "batch": recipe.name,
        "unique_key": f"soak/{seed}/{number}",
    }


_NUMBER: Final = re.compile(r"soak (\d{6}) ")


def number_of(prompt: str) -> int | None:
    """Return the number of the job that a prompt belongs to; None for one that is not ours."""
    found = _NUMBER.match(prompt)
    return int(found[1]) if found else None
