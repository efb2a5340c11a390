"""From the bytes of a stream to its message: `python -m benchmarks.fold --node-modules FOLDER`.

Ours are the worker's event parser, response reader and fold. Theirs is the npm package `ai`, in
`benchmarks/fold.mjs`: its transport with its reader, which clones the message after each chunk;
the same without the clones, up to the last value; and that without the check of each chunk
against its schema. All get the same bytes in the same reads, and the messages must be equal.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common.machine import machine
from benchmarks.common.measured import Measured, Stopwatch
from benchmarks.common.process import ChildFailedError
from benchmarks.common.results import add_save, save, table
from benchmarks.common.rounds import interleaved, median_of
from orchestrator.recoup import EventParser, MessageFold
from orchestrator.recoup.fold.dialect import AI_VERSION
from orchestrator.recoup.fold.values import parse_json
from orchestrator.recoup.resume import ResponseReader

WAYS = ("reader", "final", "unchecked")
TARGETS = {"reader": 10, "final": 5}
READS = {"64 KiB": 65536, "one event": 0}
_SCRIPT = Path(__file__).with_suffix(".mjs")
_WORDS = (" the", " run", " of", " an", " artist", ".", "\n\n", " naïve", " 音楽", " 🎧", ' "so"')


# --- the streams ----------------------------------------------------------------------------


def text_stream(deltas: int) -> bytes:
    """An answer of one text in so many deltas."""
    words = [_WORDS[number % len(_WORDS)] for number in range(deltas)]
    return _stream(
        [
            {"type": "text-start", "id": "txt-0"},
            *({"type": "text-delta", "id": "txt-0", "delta": word} for word in words),
            {"type": "text-end", "id": "txt-0"},
        ]
    )


def tool_stream(deltas: int, size: int) -> bytes:
    """One call, whose input of about `size` characters comes in so many deltas."""
    call = {"toolCallId": "call_1", "toolName": "write"}
    note = 'What is "known" of this artist, in a line or two.\n' * 5
    rows = [
        {"id": number, "name": f"Artist {number}", "note": note} for number in range(size // 315)
    ]
    given = {"path": "report.json", "rows": rows}
    text = json.dumps(given, separators=(",", ":"))
    cuts = [len(text) * number // deltas for number in range(deltas + 1)]
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    return _stream(
        [
            {"type": "tool-input-start", **call},
            *(
                {"type": "tool-input-delta", "toolCallId": "call_1", "inputTextDelta": piece}
                for piece in pieces
            ),
            {"type": "tool-input-available", **call, "input": given},
            {"type": "tool-output-available", "toolCallId": "call_1", "output": {"ok": True}},
        ]
    )


def _stream(chunks: Sequence[Mapping[str, Any]]) -> bytes:
    head = [{"type": "start", "messageId": "msg-1"}, {"type": "start-step"}]
    texts = [
        json.dumps(chunk, separators=(",", ":"), ensure_ascii=False)
        for chunk in (*head, *chunks, {"type": "finish-step"}, {"type": "finish"})
    ]
    return "".join(f"data: {text}\n\n" for text in (*texts, "[DONE]")).encode()


def reads_of(body: bytes, read: int) -> list[bytes]:
    """Cut `body` as a socket might give it: in reads of so many bytes, or of one event each."""
    if read:
        return [body[start : start + read] for start in range(0, len(body), read)]
    return [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]


# --- both sides -----------------------------------------------------------------------------


def folded(reads: Sequence[bytes]) -> Any:
    """Read one response to its end as the worker does."""
    parser, fold = EventParser(), MessageFold()
    reader = ResponseReader(own_run=True, turn_open=False)
    for data in reads:
        for chunk in reader.feed(parser.feed(data)):
            fold.feed(chunk)
    assert fold.finished, fold.errors
    return fold.message


def our_run(body: bytes, read: int, *, seconds: float) -> Measured:
    """Fold again and again for `seconds`; the median pass."""
    reads = reads_of(body, read)
    folded(reads)
    passes: list[tuple[float, float]] = []
    begun = time.perf_counter()
    while not passes or time.perf_counter() - begun < seconds:
        watch = Stopwatch()
        folded(reads)
        passes.append(watch.read())
    walls, cpus = zip(*passes, strict=True)
    return _measured("ours", body, statistics.median(walls), statistics.median(cpus))


class Theirs:
    """The package on the same streams, in a process of its own for each run."""

    def __init__(self, node_modules: Path, *, seconds: float, limit_s: float) -> None:
        self._node_modules = node_modules
        self._seconds = seconds
        self._limit_s = limit_s

    def run(self, way: str, body: bytes, read: int) -> Measured:
        """Give the median pass; one that takes longer than the limit is stopped and says so.

        Raises ChildFailedError if Node fails, and AssertionError if its message is not ours.
        """
        with tempfile.NamedTemporaryFile(suffix=".sse") as file:
            file.write(body)
            file.flush()
            numbers = [file.name, str(read), way, str(self._seconds)]
            before = _children_cpu_s()
            try:
                line = self._node([str(self._node_modules.absolute()), *numbers])
            except subprocess.TimeoutExpired:
                cpu_s = _children_cpu_s() - before
                return _measured(way, body, self._limit_s, cpu_s, over_limit=True)
        answer = parse_json(line)
        assert answer["version"] == AI_VERSION, f"ai {answer['version']} is not {AI_VERSION}"
        assert answer["message"] == folded([body]), f"the message of {way} is another"
        return _measured(way, body, answer["seconds"], answer["cpu_s"])

    def _node(self, arguments: Sequence[str]) -> str:
        ended = subprocess.run(  # noqa: S603  # our own script
            ["node", "--max-old-space-size=3000", str(_SCRIPT), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
            timeout=self._limit_s,
        )
        if ended.returncode != 0:
            raise ChildFailedError(f"node ended with {ended.returncode}:\n{ended.stderr[-4000:]}")
        return ended.stdout


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _measured(name: str, body: bytes, seconds: float, cpu_s: float, **extras: Any) -> Measured:
    chunks = body.count(b"\n\n") - 1  # the last is [DONE]
    us = round(seconds / chunks * 1e6, 3)
    return Measured(name, chunks, seconds, cpu_s, {"us_per_chunk": us, **extras})


def missing(node_modules: Path | None) -> str | None:
    """Say why the package cannot be run, or None if it can."""
    if node_modules is None:
        return "no --node-modules given"
    if shutil.which("node") is None:
        return "no node on the PATH"
    if not (node_modules / "ai" / "package.json").exists():
        return f"no ai in {node_modules}: npm install ai@{AI_VERSION}"
    return None


# --- rounds and what they say ----------------------------------------------------------------


def cases(given: argparse.Namespace) -> dict[str, tuple[bytes, int]]:
    """The streams and how they are read, by name."""
    found = {
        f"{deltas:,} text deltas, {label} a read": (text_stream(deltas), read)
        for deltas in given.deltas
        for label, read in READS.items()
    }
    if given.tool_deltas:
        body = tool_stream(given.tool_deltas, given.tool_chars)
        name = f"{given.tool_chars:,} characters of input in {given.tool_deltas:,} deltas"
        found[f"{name}, 64 KiB a read"] = (body, READS["64 KiB"])
    return found


def runs_of(
    case: tuple[bytes, int], theirs: Theirs | None, seconds: float
) -> dict[str, Callable[[], Measured]]:
    """What is compared on one stream, by name."""
    body, read = case
    runs: dict[str, Callable[[], Measured]] = {
        "ours": partial(our_run, body, read, seconds=seconds)
    }
    if theirs is not None:
        runs.update({way: partial(theirs.run, way, body, read) for way in WAYS})
    return runs


def measure_case(runs: dict[str, Callable[[], Measured]], rounds: int) -> dict[str, list[Measured]]:
    """Run the rounds; what went over the limit once is not run again."""
    measured: dict[str, list[Measured]] = {name: [] for name in runs}

    def once(name: str) -> Measured:
        last = measured[name][-1:]
        return last[0] if last and "over_limit" in last[0].extras else runs[name]()

    for name, figure in interleaved(rounds, {name: partial(once, name) for name in runs}):
        measured[name].append(figure)
        print(name, figure.line(), flush=True)
    return measured


def ratios(measured: Mapping[str, Mapping[str, Sequence[Measured]]]) -> str:
    """How many times as quick ours is, by the wall and by CPU, of the medians."""
    lines = [
        f"| ours ÷ | {' | '.join(WAYS)} |",
        f"| --- | {' | '.join('---' for _ in WAYS)} |",
    ]
    for case, by_way in measured.items():
        own = median_of(by_way["ours"])
        cells = []
        for way in WAYS:
            other = median_of(by_way[way])
            over = "at least " if "over_limit" in other.extras else ""
            wall, cpu = other.seconds / own.seconds, other.cpu_s / own.cpu_s
            cells.append(f"{over}{wall:.1f} (CPU {cpu:.1f})")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    wanted = ", ".join(f"{times} times {way}" for way, times in TARGETS.items())
    return "\n".join([*lines, f"wanted at 20,000: {wanted}"])


def flatness(measured: Mapping[str, Mapping[str, Sequence[Measured]]]) -> str:
    """The cost of a chunk of each text stream, as a share of the shortest stream's."""
    lines = []
    for label in READS:
        costs = {
            case.partition(" ")[0]: median_of(by_way["ours"]).cpu_ms
            for case, by_way in measured.items()
            if f"text deltas, {label} " in case
        }
        first = next(iter(costs.values()), 0.0)
        shown = ", ".join(f"{deltas}: {cost / first:.2f}" for deltas, cost in costs.items())
        lines.append(f"CPU of a chunk, {label} a read: {shown}")
    return "\n".join(lines)


def main() -> int:
    """Read the arguments, run, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fold", description=__doc__)
    parser.add_argument("--node-modules", type=Path, help="the folder in which `ai` is installed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deltas", type=int, nargs="*", default=[5000, 20_000, 200_000])
    parser.add_argument("--tool-deltas", type=int, default=20_000, help="0: no tool input")
    parser.add_argument("--tool-chars", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=0.5, help="to repeat passes for")
    parser.add_argument("--limit-s", type=float, default=120.0, help="for one run of the package")
    add_save(parser)
    given = parser.parse_args()
    why = missing(given.node_modules)
    theirs = None
    if why is None:
        theirs = Theirs(given.node_modules, seconds=given.seconds, limit_s=given.limit_s)
    else:
        print(f"left out: ai: {why}", file=sys.stderr)
    facts = machine(ai=None if theirs is None else AI_VERSION)
    measured = {}
    for name, case in cases(given).items():
        print(name, flush=True)
        measured[name] = measure_case(runs_of(case, theirs, given.seconds), given.rounds)
    flat = {f"{way}: {case}": rows for case, by in measured.items() for way, rows in by.items()}
    print(table(flat))
    if theirs is not None:
        print(ratios(measured))
    print(flatness(measured))
    save(given.save, "fold", flat, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
