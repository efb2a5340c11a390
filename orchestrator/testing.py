"""A Recoup API for your own tests, on loopback and in the loop of the test.

```python
async def test_my_queue(tmp_path):
    async with DevServer() as server:
        orc = Orchestrator(f"sqlite:///{tmp_path}/jobs.db")
        ...  # work against server.url with server.key
        server.faults.add("proxy-502", route="status", times=3)
        ...
        assert server.stats.posts_by_prompt["my prompt"] == 1
```

`DevServer` is opened with `async with`; `server.url` and `server.key` are what a client needs.
`server.faults` switches faults on and off, `server.stats` tells what arrived, `server.runs` are
the runs themselves, and directives in a prompt, such as `[steps=3 tool=search fail=2]`, say how
its run goes.
"""

from __future__ import annotations

from orchestrator.devserver import (
    PRESETS,
    Call,
    DevServer,
    Fault,
    Faults,
    Kind,
    Pace,
    Record,
    Timing,
)

__all__ = [
    "PRESETS",
    "Call",
    "DevServer",
    "Fault",
    "Faults",
    "Kind",
    "Pace",
    "Record",
    "Timing",
]
