"""Small runs of `benchmarks.live` and `benchmarks.polling`: that they measure, not what."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.live import bare, ours
from benchmarks.polling import Sample, fixed, followed
from tests.simulation.database import Database


@pytest.mark.parametrize("subject", ["bare streams", "stream", "poll"])
def test_a_few_runs_live_at_once_are_watched_to_their_ends(tmp_path: Path, subject: str) -> None:
    if subject == "bare streams":
        figures = bare(runs=12, mode="stream", seconds=0.5, run_s=4.0)
    else:
        log = tmp_path / "worker.log"
        figures = ours(None, mode=subject, log=log, runs=12, seconds=0.5, run_s=4.0)
    assert figures.extras["missed"] == 0
    assert figures.extras["files"] > 3
    assert -1.0 < figures.extras["delay_max_s"] < 30.0


def test_polls_are_counted_and_delays_taken_in_virtual_time() -> None:
    sample, database = Sample(300.0, 4, 0), Database()
    stream, poll = (followed(sample, mode, database) for mode in ("stream", "poll"))
    every_5_s = fixed(sample, 5.0)
    assert stream.extras["status_a_run"] < poll.extras["status_a_run"]
    assert poll.extras["status_a_run"] < every_5_s.extras["status_a_run"] + 1
    assert stream.extras["delay_max_s"] < 1.0
    assert poll.extras["delay_max_s"] < 7.0
    assert every_5_s.extras["delay_max_s"] < 5.5
    # The lengths are the seed's, whatever follows them.
    assert fixed(sample, 5.0).extras == every_5_s.extras
