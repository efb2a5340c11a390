"""A server that answers at once what one job's life asks, so that it is never the bottleneck.

Run `python -m benchmarks.stub [--port 0] [--latency-ms 0] [--stream-s 0] [--chunks 20]`. It
prints `{"base_url": ...}` when it listens and, on SIGTERM, one line with what it counted. `GET
/counts` gives the same meanwhile. It speaks HTTP/1.1 at the level of the protocol, from prepared
bytes, and keeps three numbers for each run. `GET /ends` gives, in the order of the runs, when each
ended by the wall clock, 0 for one that goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from benchmarks.common.loops import add_loop, run
from benchmarks.stub_answers import Answers, run_number

_ROUTES = ("start", "status", "stream", "chat", "other")


@dataclass(frozen=True, slots=True)
class Plan:
    """How the stub behaves. `by_time`: runs end by the clock, not when their stream was read."""

    latency_s: float = 0.0
    stream_s: float = 0.0
    chunks: int = 20
    by_time: bool = False


class Service:
    """What all connections share: the runs, the counts and the prepared answers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.answers = Answers(plan.chunks)
        self.counts = dict.fromkeys(_ROUTES, 0)
        self.connections = 0
        self.streams_open = 0
        self.streams_left = 0
        self._began: list[float] = []
        self._ended: list[float] = []
        self._over = bytearray()
        self._cpu = time.process_time()

    def start(self) -> int:
        """Begin a run; give its number."""
        self._began.append(time.monotonic())
        self._ended.append(time.time() + self.plan.stream_s if self.plan.by_time else 0.0)
        self._over.append(0)
        return len(self._over) - 1

    def knows(self, number: int) -> bool:
        """True for the number of a run that was started."""
        return 0 <= number < len(self._over)

    def is_over(self, number: int) -> bool:
        """True if the run's status is `completed`."""
        if self.plan.by_time:
            return time.monotonic() - self._began[number] >= self.plan.stream_s
        return self._over[number] == 1

    def read_to_end(self, number: int) -> None:
        """Note that a stream of the run was delivered whole."""
        self._over[number] = 1
        self._ended[number] = self._ended[number] or time.time()

    def ends(self) -> bytes:
        """When each run ended, as JSON; by the clock, also those that are still to come."""
        return json.dumps(self._ended).encode()

    def report(self) -> bytes:
        """What was counted so far, as JSON."""
        counted = {
            **self.counts,
            "connections": self.connections,
            "streams_open": self.streams_open,
            "streams_left": self.streams_left,
            "cpu_s": round(time.process_time() - self._cpu, 3),
        }
        return json.dumps(counted).encode()


class Connection(asyncio.Protocol):
    """One client connection: requests in turn, each answered before the next is looked at."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers = service.answers
        self._pending = b""
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._service.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the protocol's
        """Stop what was still to be written; count a reader that left."""
        if self._timer is not None:
            self._timer.cancel()
        if self._streaming:
            self._service.streams_open -= 1
            self._service.streams_left += 1

    def data_received(self, data: bytes) -> None:
        """Answer every whole request; a body may come after its head."""
        self._pending = self._pending + data if self._pending else data
        while not self._busy and self._take():
            pass

    def _take(self) -> bool:
        head, separator, rest = self._pending.partition(b"\r\n\r\n")
        if not separator:
            return False
        if head.startswith(b"POST"):
            length = _content_length(head)
            if len(rest) < length:
                return False
            rest = rest[length:]
        self._pending = rest
        method, target = head.split(b" ", 2)[:2]
        self._route(method, target)
        return bool(self._pending)

    def _route(self, method: bytes, target: bytes) -> None:
        path, _, query = target.partition(b"?")
        parts = path.split(b"/")
        match method, parts[1:]:
            case b"POST", [b"api", b"chat", b"runs"]:
                self._start()
            case b"GET", [b"api", b"chat", b"runs", run_id]:
                self._status(run_number(run_id))
            case b"GET", [b"api", b"chat", chat_id, b"stream"]:
                self._stream(run_number(chat_id), _start_index(query))
            case b"GET", [b"api", b"sessions", session_id, b"chats", chat_id]:
                number = run_number(chat_id)
                self._chat(number if run_number(session_id) == number else -1)
            case b"GET", [b"counts"]:
                self._transport.write(self._answers.json(self._service.report()))
            case b"GET", [b"ends"]:
                self._transport.write(self._answers.json(self._service.ends()))
            case _:
                self._service.counts["other"] += 1
                self._later(self._answers.not_found)

    # --- the routes ---------------------------------------------------------------------------

    def _start(self) -> None:
        self._service.counts["start"] += 1
        self._later(self._answers.started(self._service.start()))

    def _status(self, number: int) -> None:
        self._service.counts["status"] += 1
        if not self._service.knows(number):
            self._later(self._answers.not_found)
        else:
            self._after_latency(
                lambda: self._write(self._answers.status(number, self._service.is_over(number)))
            )

    def _chat(self, number: int) -> None:
        self._service.counts["chat"] += 1
        if not self._service.knows(number):
            self._later(self._answers.not_found)
        else:
            self._after_latency(
                lambda: self._write(self._answers.chat(number, self._service.is_over(number)))
            )

    def _stream(self, number: int, start: int) -> None:
        self._service.counts["stream"] += 1
        if not self._service.knows(number):
            self._later(self._answers.not_found)
        elif self._service.is_over(number):
            self._later(self._answers.nothing_to_stream)
        elif self._service.plan.stream_s:
            self._streaming = True
            self._service.streams_open += 1
            self._after_latency(lambda: self._begin_slow(number, start))
        else:
            self._after_latency(lambda: self._whole(number, start))

    def _whole(self, number: int, start: int) -> None:
        self._service.read_to_end(number)
        self._write(self._answers.whole_stream(number, start))

    def _begin_slow(self, number: int, start: int) -> None:
        self._transport.write(self._answers.stream_head(number))
        self._next_chunk(number, start, time.monotonic())

    def _next_chunk(self, number: int, index: int, due: float) -> None:
        if index >= self._answers.chunks:
            self._streaming = False
            self._service.streams_open -= 1
            self._service.read_to_end(number)
            self._write(self._answers.stream_end)
            return
        self._transport.write(self._answers.chunk(number, index))
        # Against the first chunk's time, so that a busy loop does not stretch the run.
        due += self._service.plan.stream_s / self._answers.chunks
        wait_s = max(0.0, due - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(
            wait_s, self._next_chunk, number, index + 1, due
        )

    # --- writing ------------------------------------------------------------------------------

    def _later(self, answer: bytes) -> None:
        self._after_latency(lambda: self._write(answer))

    def _after_latency(self, act: Callable[[], None]) -> None:
        self._busy = True
        latency_s = self._service.plan.latency_s
        if latency_s:
            self._timer = asyncio.get_running_loop().call_later(latency_s, act)
        else:
            act()

    def _write(self, answer: bytes) -> None:
        self._transport.write(answer)
        self._busy = False
        if self._service.plan.latency_s or self._service.plan.stream_s:
            # The loop that took the request has ended long ago.
            while not self._busy and self._take():
                pass


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


def _start_index(query: bytes) -> int:
    _, found, value = query.partition(b"startIndex=")
    return int(value.split(b"&", 1)[0]) if found else 0


async def serve(plan: Plan, port: int) -> None:
    """Listen on loopback until SIGTERM or SIGINT; print where, and at the end what was counted."""
    service = Service(plan)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", port, backlog=4096)
    bound = server.sockets[0].getsockname()[1]
    print(json.dumps({"base_url": f"http://127.0.0.1:{bound}"}), flush=True)
    await ended.wait()
    print(service.report().decode(), flush=True)
    server.close()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="added to every answer")
    parser.add_argument("--stream-s", type=float, default=0.0, help="how long a stream lasts")
    parser.add_argument("--chunks", type=int, default=20, help="chunks of a stream, 8 or more")
    parser.add_argument(
        "--by-time",
        action="store_true",
        help="a run is over stream-s after its start, read or not; else when its stream was read",
    )
    add_loop(parser)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plan = Plan(given.latency_ms / 1000, given.stream_s, given.chunks, given.by_time)
    run(serve(plan, given.port), given.loop)


if __name__ == "__main__":
    main()
