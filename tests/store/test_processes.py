"""What only whole processes show: sharing a file, and coming to an end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .desk import Desk

BOUND_S = 60

ENQUEUE_MANY = """
import sys
import anyio
from orchestrator import Orchestrator

async def main(url, name):
    async with Orchestrator(url) as orc:
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(40):
            await orc.enqueue(f"{name}-{number}")

anyio.run(main, *sys.argv[1:])
"""

WAYS_OUT = {
    "undisposed": """
orc = Orchestrator(sys.argv[1])
await orc.enqueue("x")
""",
    "raised": """
async with Orchestrator(sys.argv[1]) as orc:
    await orc.enqueue("x")
    raise SystemExit(0)
""",
    "left in a watch": """
async with Orchestrator(sys.argv[1]) as orc:
    job = await orc.enqueue("x")
    async for _ in job.watch():
        break
""",
    "cancelled": """
async with Orchestrator(sys.argv[1]) as orc:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await orc.enqueue("x")
""",
}


def test_two_processes_write_to_one_file(desk: Desk, database_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENQUEUE_MANY, database_url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=BOUND_S)
    assert [process.returncode for process in processes] == [0, 0]
    found = {row["prompt"] for row in desk.rows("SELECT prompt FROM jobs")}
    assert found == {f"{name}-{number}" for name in "ab" for number in range(40)}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_process_ends(database_url: str, tmp_path: Path, way: str) -> None:
    body = "".join(f"    {line}\n" for line in WAYS_OUT[way].strip().splitlines())
    script = tmp_path / "ends.py"
    script.write_text(
        "import sys\nimport anyio\nfrom orchestrator import Orchestrator\n\n"
        f"async def main():\n{body}\nanyio.run(main)\nprint('the end')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), database_url],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
