"""The dev server of a soak, as a process: seeded, and it writes what it saw to a file at its end.

Run as `python -m benchmarks.soak.server --ledger FILE [--seed N]`; it prints its address.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import deque
from dataclasses import asdict
from pathlib import Path

import anyio

from benchmarks.soak.plan import KEY
from orchestrator.testing import Call, DevServer, Pace, Timing

_SUBMISSIONS = frozenset({"start", "generate"})


class Submissions(deque[Call]):
    """The calls that may start a run: all of them, where the server's own record keeps the last
    calls of every kind."""

    def append(self, call: Call) -> None:
        """Keep a submission."""
        if call.route in _SUBMISSIONS:
            super().append(call)


async def serve(ledger: Path, seed: int) -> None:
    """Serve until SIGTERM or SIGINT, then write the ledger."""
    # The stream route gives up sooner than the live service's two minutes: resumed often.
    timing = Timing(pace=Pace(early_failure=1.0), stream_limit=4.0, stop_limit=2.0)
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with DevServer(keys=(KEY,), seed=seed, timing=timing) as server:
            server.stats.calls = Submissions()
            sys.stdout.write(server.url + "\n")
            sys.stdout.flush()
            await anext(aiter(signals))
            write_ledger(server, ledger)


def write_ledger(server: DevServer, path: Path) -> None:
    """Write one JSON line for each run and each submission, and one with the counters."""
    with path.open("w", encoding="utf-8") as file:
        for run in server.runs:
            order = run.order
            line = {
                "run_id": order.run_id,
                "chat_id": order.chat_id,
                "session_id": order.session_id,
                "prompt": order.prompt,
                "status": run.status,
                "created_at": order.created_at,
                "message": run.message,
                "chunks": run.chunks,
            }
            file.write(json.dumps({"run": line}) + "\n")
        for call in server.stats.calls:
            file.write(json.dumps({"submission": asdict(call)}) + "\n")
        answers = [
            {"route": route, "status": status, "count": count}
            for (route, status), count in server.stats.statuses.items()
        ]
        counters = {
            "runs_by_prompt": server.stats.runs_by_prompt,
            "answers": answers,
            "max_open_streams": server.stats.max_open_streams,
            "stops": len(server.stats.stops),
        }
        file.write(json.dumps({"counters": counters}) + "\n")


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    anyio.run(serve, given.ledger, given.seed)


if __name__ == "__main__":
    main()
