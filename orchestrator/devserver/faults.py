"""What can go wrong, as values, and the switchboard that every place where it can asks.

A fault says what happens, where, and how often. The middleware asks before and after each
handler; the stream, the chat and the run ask at their own points. Nothing else decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from random import Random
from types import MappingProxyType
from typing import Any, Final


class Kind(StrEnum):
    """What happens."""

    DELAY = "delay"
    """The request (`when="before"`) or its answer (`"after"`) waits for `delay` seconds."""
    ANSWER = "answer"
    """The answer is `status`, `headers` and `body`."""
    CLOSE = "close"
    """The connection is closed in place of an answer."""
    RESET = "reset"
    """The connection is reset in place of an answer."""
    BREAK_BODY = "break_body"
    """The head of the true answer goes out and half of its body; then the connection closes."""
    CUT = "cut"
    """A stream ends cleanly while its run goes on, after `chunks` chunks or `after` seconds."""
    DROP = "drop"
    """A stream's connection breaks inside a chunk, after `chunks` chunks or `after` seconds."""
    SLOW = "slow"
    """A stream waits for `delay` seconds before each chunk that it sends."""
    NO_STREAM = "no_stream"
    """The stream route answers 204 although the run goes on."""
    LONE_FINISH = "lone_finish"
    """Where the stream route would answer 204, it sends one made-up `finish`."""
    OTHER_RUN = "other_run"
    """A stream names another run in its head."""
    NO_TAIL = "no_tail"
    """A stream does not say the index of its tail."""
    NO_MESSAGES = "no_messages"
    """The chat reads as empty."""
    MISSING_STEP = "missing_step"
    """The chat's last message lacks its last step."""
    STUCK = "stuck"
    """The run never ends: when its work is done its status stays `running`."""
    CANCEL_ON_LEAVE = "cancel_on_leave"
    """A reader that leaves its stream cancels the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, and how often.

    `route` is one of `ROUTES` or `*`; `prompt` limits the fault to requests about a prompt that
    contains it. `times` counts the cases that it strikes (None: no limit), after `skip` cases
    are let by; each strikes with `probability`; `seconds` is how long it lasts from when it is
    switched on. The other fields are explained at the kinds that read them.
    """

    kind: Kind
    route: str = "*"
    when: str = "before"
    prompt: str | None = None
    times: int | None = None
    skip: int = 0
    probability: float = 1.0
    seconds: float | None = None
    status: int = 500
    error: str = "Internal server error"
    """The sentence in the API's own envelope, where `body` is None."""
    key: str = "error"
    """The field of the envelope that holds the sentence."""
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    chunks: int | None = None
    after: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", Kind(self.kind))
        if self.route != "*" and self.route not in ROUTES:
            raise ValueError(f"route: {self.route!r}: one of {', '.join(sorted(ROUTES))} or *")
        if self.when not in {"before", "after"}:
            raise ValueError(f"when: {self.when!r}: before or after the request is worked on")


ROUTES: Final = frozenset(
    {"start", "status", "stream", "stop", "chat", "chats", "room", "generate"}
)
"""The names of the API's routes."""


def _page(status: int, title: str, **headers: str) -> Fault:
    body = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"
    return Fault(
        kind=Kind.ANSWER,
        status=status,
        body=body,
        headers={"Content-Type": "text/html; charset=utf-8", **headers},
    )


def _envelope(status: int, error: str, key: str = "error", **headers: str) -> Fault:
    return Fault(kind=Kind.ANSWER, status=status, error=error, key=key, headers=headers)


PRESETS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        "unauthorized": _envelope(401, "Unauthorized", "message"),
        "payment-required": _envelope(402, "insufficient_credits"),
        "forbidden": _envelope(403, "Forbidden"),
        "not-found": _envelope(404, "Not found"),
        "run-not-found": replace(_envelope(404, "Run not found"), route="status"),
        "rate-limited": _page(429, "429 Too Many Requests", **{"Retry-After": "1"}),
        "redirect": _page(307, "307 Temporary Redirect", Location="/moved"),
        "server-error": _envelope(500, "Internal server error"),
        "status-unreadable": _envelope(502, "Failed to read the run's status"),
        "proxy-403": _page(403, "403 Forbidden"),
        "proxy-404": _page(404, "404 Not Found"),
        "proxy-502": _page(502, "502 Bad Gateway"),
        "proxy-503": _page(503, "503 Service Unavailable"),
        "busy": _page(503, "503 Service Unavailable", **{"Retry-After": "1"}),
        "proxy-504": _page(504, "504 Gateway Timeout"),
        "lost-answer": Fault(kind=Kind.RESET, route="start", when="after"),
        "not-started": Fault(kind=Kind.RESET, route="start", when="before"),
        "started-but-500": replace(
            _envelope(500, "Internal server error"), route="start", when="after"
        ),
        "broken-body": Fault(kind=Kind.BREAK_BODY, route="start", when="after"),
        "cut": Fault(kind=Kind.CUT, route="stream", chunks=5),
        "drop": Fault(kind=Kind.DROP, route="stream", chunks=5),
        "no-stream": Fault(kind=Kind.NO_STREAM, route="stream"),
        "lone-finish": Fault(kind=Kind.LONE_FINISH, route="stream"),
        "no-messages": Fault(kind=Kind.NO_MESSAGES, route="chat"),
        "missing-step": Fault(kind=Kind.MISSING_STEP, route="chat"),
        "stuck": Fault(kind=Kind.STUCK),
        "cancel-on-leave": Fault(kind=Kind.CANCEL_ON_LEAVE),
    }
)
"""Faults with a name, to be switched on as they are or with fields replaced."""


@dataclass(slots=True)
class _Switch:
    fault: Fault
    left: int | None
    skip: int
    until: float


class Faults:
    """The faults that are switched on.

    `clock` gives seconds on a scale of its own. `seed` makes probabilities repeatable.
    """

    def __init__(self, *, clock: Callable[[], float], seed: int = 0) -> None:
        self._clock = clock
        self._random = Random(seed)  # noqa: S311 - faults must repeat, not surprise
        self._switches: dict[int, _Switch] = {}
        self._last = 0

    def add(self, fault: Fault | str, **changes: Any) -> int:
        """Switch on a fault, or the preset of that name, with `changes` to its fields.

        Returns the number that `remove` takes. Raises KeyError for an unknown preset, ValueError
        or TypeError for a field that makes no sense.
        """
        chosen = replace(PRESETS[fault] if isinstance(fault, str) else fault, **changes)
        until = float("inf") if chosen.seconds is None else self._clock() + chosen.seconds
        self._last += 1
        self._switches[self._last] = _Switch(chosen, chosen.times, chosen.skip, until)
        return self._last

    def remove(self, number: int) -> None:
        """Switch one fault off; nothing happens if it is off already."""
        self._switches.pop(number, None)

    def clear(self) -> None:
        """Switch all faults off."""
        self._switches.clear()

    def take(
        self, *kinds: Kind, route: str = "*", prompt: str | None = None, when: str | None = None
    ) -> Fault | None:
        """Give the first fault of `kinds` that strikes here and now, and count the case."""
        now = self._clock()
        for switch in self._switches.values():
            if (
                switch.fault.kind in kinds
                and _applies(switch.fault, route, prompt, when)
                and self._strikes(switch, now)
            ):
                return switch.fault
        return None

    def listed(self) -> list[dict[str, Any]]:
        """Give the faults that are on, with their numbers and the cases left, as JSON values."""
        now = self._clock()
        return [
            {
                "id": number,
                **asdict(switch.fault),
                "left": switch.left,
                "active": switch.left != 0 and now < switch.until,
            }
            for number, switch in self._switches.items()
        ]

    def _strikes(self, switch: _Switch, now: float) -> bool:
        if switch.left == 0 or now >= switch.until:
            return False
        if switch.skip > 0:
            switch.skip -= 1
            return False
        if switch.fault.probability < 1 and self._random.random() >= switch.fault.probability:
            return False
        if switch.left is not None:
            switch.left -= 1
        return True


def _applies(fault: Fault, route: str, prompt: str | None, when: str | None) -> bool:
    return (
        (fault.route == "*" or route in ("*", fault.route))
        and (when is None or fault.when == when)
        and (fault.prompt is None or (prompt is not None and fault.prompt in prompt))
    )
