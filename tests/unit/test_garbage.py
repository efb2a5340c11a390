"""The collector of cycles looks seldom in a worker, and is left as it was found."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from orchestrator.recoup import MessageFold
from orchestrator.worker.garbage import SELDOM, YOUNG, seldom_collected


@pytest.fixture
def nothing_frozen() -> Iterator[None]:
    """Take back what the test run froze, for a while."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("nothing_frozen")
def test_the_collector_is_left_as_it_was_found() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    with seldom_collected():
        assert gc.get_threshold() == (YOUNG, SELDOM, SELDOM)
        assert gc.get_freeze_count() > before[1] + 10_000
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_fold_needs_no_collector_to_be_freed() -> None:
    fold = MessageFold()
    chunks = ("start", "start-step", "text-start", "text-delta", "text-end", "finish")
    for kind in chunks:
        fold.feed({"type": kind, "id": "1", "delta": "a"})
    assert fold.finished
    gone = weakref.ref(fold)
    gc.disable()
    try:
        del fold
        assert gone() is None
    finally:
        gc.enable()
