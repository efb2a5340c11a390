"""The laboratory, made once for all simulations of a test process."""

from __future__ import annotations

import pytest

from .world import Laboratory


@pytest.fixture(scope="session")
def laboratory() -> Laboratory:
    return Laboratory()
