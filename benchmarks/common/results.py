"""Where figures go: one JSON file for each benchmark, with the machine and the command."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.measured import Measured
from benchmarks.common.rounds import median_of, spread

FOLDER = Path(__file__).parent.parent / "results"


def add_save(parser: argparse.ArgumentParser) -> None:
    """Add the option `--save [FILE]`."""
    parser.add_argument(
        "--save",
        type=Path,
        nargs="?",
        const=FOLDER,
        help="keep rounds, medians and facts about the machine; default: benchmarks/results",
    )


def save(
    target: Path | None,
    name: str,
    measured: Mapping[str, Sequence[Measured]],
    machine: Mapping[str, Any],
    **more: Any,
) -> None:
    """Write all rounds and their medians to `target`, or to NAME.json in it if it is a folder.

    Without a target nothing is written.
    """
    if target is None:
        return
    path = target / f"{name}.json" if target == FOLDER or target.is_dir() else target
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {
        "benchmark": name,
        "command": command(),
        "machine": dict(machine),
        **more,
        "medians": {key: median_of(rounds).as_json() for key, rounds in measured.items()},
        "rounds": {key: [each.as_json() for each in rounds] for key, rounds in measured.items()},
    }
    path.write_text(json.dumps(written, indent=1) + "\n", "utf-8")


def table(measured: Mapping[str, Sequence[Measured]]) -> str:
    """The medians as a table in Markdown, with the slowest and the quickest round."""
    lines = [
        "| what | jobs | rounds | jobs/s | slowest to quickest | CPU ms/job | more |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, rounds in measured.items():
        middle, (low, high) = median_of(rounds), spread(rounds)
        more = ", ".join(
            f"{name} {value:g}"
            for name, value in middle.extras.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        )
        lines.append(
            f"| {key} | {middle.jobs:,} | {len(rounds)} | {middle.per_s:,.0f}"
            f" | {low:,.0f} to {high:,.0f} | {middle.cpu_ms:.3f} | {more} |"
        )
    return "\n".join(lines)


def command() -> str:
    """How this run was started, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    return shlex.join(["python", "-m", module, *sys.argv[1:]])
