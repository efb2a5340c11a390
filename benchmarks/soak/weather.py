"""The faults of the API: those that are always on at some rate, and episodes of the whole API."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, Final

import anyio

from benchmarks.soak.journal import Deed, Journal
from benchmarks.soak.plan import SUBMIT_TIMEOUT_S
from benchmarks.soak.remote import Remote

Fault = Mapping[str, Any]

_HTML: Final = "<html><body>Request Timeout</body></html>"

_SUBMISSION: Final[tuple[Fault, ...]] = (
    {"preset": "busy", "route": "start", "probability": 0.01},
    {"preset": "rate-limited", "route": "start", "probability": 0.02},
    {"kind": "answer", "route": "start", "status": 408, "body": _HTML, "probability": 0.005},
    {"kind": "answer", "route": "start", "status": 425, "body": _HTML, "probability": 0.002},
    {"preset": "forbidden", "route": "start", "probability": 0.001},
    {"preset": "not-found", "route": "start", "probability": 0.001},
    {"preset": "server-error", "route": "start", "probability": 0.003},
    {"preset": "proxy-502", "route": "start", "probability": 0.002},
    {"preset": "proxy-503", "route": "start", "probability": 0.002},
    {"preset": "proxy-504", "route": "start", "when": "after", "probability": 0.003},
    {"preset": "not-started", "probability": 0.003},
    {"preset": "lost-answer", "probability": 0.004},
    {"preset": "started-but-500", "probability": 0.003},
    {"preset": "broken-body", "probability": 0.005},
    {"kind": "close", "route": "start", "when": "after", "probability": 0.002},
    {
        "kind": "answer",
        "route": "start",
        "when": "after",
        "status": 202,
        "body": "{",
        "probability": 0.002,
    },
    {"kind": "delay", "route": "start", "delay": 1.0, "probability": 0.05},
    {
        "kind": "delay",
        "route": "start",
        "when": "after",
        "delay": SUBMIT_TIMEOUT_S + 14,
        "probability": 0.002,
    },
    {"preset": "rate-limited", "route": "generate", "probability": 0.02},
    {"preset": "proxy-504", "route": "generate", "when": "after", "probability": 0.01},
    {"kind": "reset", "route": "generate", "when": "after", "probability": 0.01},
    {"kind": "break_body", "route": "generate", "when": "after", "probability": 0.01},
)

_FOLLOWING: Final[tuple[Fault, ...]] = (
    *(
        {"preset": preset, "route": route, "probability": 0.01}
        for preset in ("server-error", "proxy-502", "proxy-503", "rate-limited", "not-found")
        for route in ("status", "stream", "chat")
    ),
    *(
        {"kind": kind, "route": route, "when": "after", "probability": 0.01}
        for kind in ("reset", "close", "break_body")
        for route in ("status", "chat")
    ),
    *(
        {"kind": "delay", "route": route, "delay": 1.0, "probability": 0.03}
        for route in ("status", "stream", "chat", "stop")
    ),
    {"preset": "status-unreadable", "route": "status", "probability": 0.01},
    {"preset": "run-not-found", "probability": 0.01},
    {"preset": "forbidden", "route": "stream", "probability": 0.01},
    {"preset": "proxy-403", "route": "chat", "probability": 0.01},
    {"preset": "cut", "chunks": 7, "probability": 0.1},
    {"preset": "cut", "after": 0.5, "chunks": None, "probability": 0.05},
    {"preset": "drop", "chunks": 9, "probability": 0.1},
    {"preset": "drop", "after": 0.3, "chunks": None, "probability": 0.05},
    {"kind": "slow", "route": "stream", "delay": 0.05, "probability": 0.03},
    {"preset": "no-stream", "probability": 0.05},
    {"preset": "lone-finish", "probability": 0.2},
    {"kind": "other_run", "route": "stream", "probability": 0.01},
    {"kind": "no_tail", "route": "stream", "probability": 0.05},
    {"preset": "no-messages", "probability": 0.05},
    {"preset": "missing-step", "prompt": " missing step ", "probability": 0.3},
    {"preset": "cancel-on-leave", "prompt": " leaver ", "probability": 0.5},
    {"preset": "proxy-502", "route": "stop", "probability": 0.1},
    {"preset": "proxy-504", "route": "stop", "probability": 0.1},
    {"kind": "reset", "route": "stop", "when": "after", "probability": 0.1},
)

STUCK: Final[Fault] = {"preset": "stuck", "prompt": " stuck "}
"""Switched on even in a soak without faults: the recipe of that name is made by it."""

EPISODES: Final[Mapping[str, Fault]] = {
    "401 storm": {"preset": "unauthorized", "seconds": 3},
    "one 401": {"preset": "unauthorized", "times": 1},
    "429 storm": {"preset": "rate-limited", "seconds": 4},
    "502 storm": {"preset": "proxy-502", "seconds": 3},
    "404 page": {"preset": "proxy-404", "route": "start", "times": 1},
    "redirect": {"preset": "redirect", "route": "start", "times": 1},
    "slow": {"kind": "delay", "delay": 2.0, "seconds": 5},
    "reset storm": {"kind": "reset", "seconds": 2},
}
"""Faults of the whole API that last a while, by name. `seconds` bounds them."""

_REFUSES: Final = "refuses connections"

_RARE: Final[Mapping[str, Fault]] = {
    "402": {"preset": "payment-required", "route": "start", "times": 1},
}
"""What holds all work back for a minute, and so is not a matter of chance: once in a soak."""


async def switch_on(remote: Remote, *, faults: bool) -> None:
    """Switch the steady faults on."""
    for fault in (STUCK, *((*_SUBMISSION, *_FOLLOWING) if faults else ())):
        await remote.add(**fault)


async def episodes(remote: Remote, journal: Journal, chance: Random, every_s: float) -> None:
    """Let one episode follow another, until cancelled."""
    rare = dict(_RARE)
    while True:
        await anyio.sleep(chance.expovariate(1 / every_s))
        name = chance.choice((*EPISODES, _REFUSES, *rare))
        if name == _REFUSES:
            seconds = chance.uniform(0.5, 6.0)
            await _refuse(remote, journal, seconds)
            continue
        fault = EPISODES.get(name) or rare.pop(name)
        act = journal.begin(Deed.EPISODE, detail=name)
        await remote.add(**fault)
        await anyio.sleep(float(fault.get("seconds", 1)))
        journal.end(act)


async def _refuse(remote: Remote, journal: Journal, seconds: float) -> None:
    act = journal.begin(Deed.NO_API, detail=f"{seconds:.1f} s")
    try:
        await remote.refuse(seconds)
    finally:
        journal.end(act)
