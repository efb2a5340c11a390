"""The collector of cycles, in a process that is a worker and nothing else."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 10_000
"""How many more containers are made than let go before the youngest are looked at."""

SELDOM = 20
"""How many looks at one generation make a look at the next."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for cycles seldom while the block runs, and never at what was made before it.

    Not to be nested: the end of the block thaws whatever is frozen.

    The collector's defaults walk through everything that is alive again and again, which for
    a worker are its modules and the runs that it holds: a fifth of its CPU. What is let go
    outside a cycle is freed at once in any case.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, SELDOM, SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
