"""The fold's benchmark: streams that fold to what they were made of, with or without Node."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fold


@pytest.mark.parametrize("read", fold.READS.values())
def test_both_ways_of_reading_give_the_same_message(read: int) -> None:
    text, tool = fold.text_stream(40), fold.tool_stream(30, 2000)
    for body in (text, tool):
        reads = fold.reads_of(body, read)
        assert b"".join(reads) == body
        assert fold.folded(reads) == fold.folded([body])
    assert fold.folded([text])["parts"][1]["text"].startswith(" the run of an artist.\n\n naïve")
    call = fold.folded([tool])["parts"][1]
    assert len(call["input"]["rows"]) == 6
    assert call["state"] == "output-available"


def test_ours_is_measured_by_the_chunk() -> None:
    measured = fold.our_run(fold.text_stream(50), 0, seconds=0.0)
    assert (measured.name, measured.jobs) == ("ours", 56)
    assert measured.seconds > 0


def test_without_the_package_ours_is_measured_alone(tmp_path: Path) -> None:
    assert fold.missing(None) == "no --node-modules given"
    assert fold.missing(tmp_path) is not None
