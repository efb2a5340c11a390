from __future__ import annotations

import dataclasses

import pytest

from orchestrator.job import Job
from orchestrator.states import Endpoint, ErrorKind, OnInDoubt, State
from orchestrator.store.schema import jobs
from tests.builders import a_job


def test_a_job_has_the_columns_of_its_table() -> None:
    assert [field.name for field in dataclasses.fields(Job)] == [c.key for c in jobs.columns]


def test_a_row_becomes_a_job_with_its_enums() -> None:
    row = dataclasses.asdict(a_job(state=State.FAILED, error_kind=ErrorKind.EXPIRED))
    row |= {"state": "failed", "endpoint": "generate", "error_kind": "expired"}
    row |= {"on_in_doubt": "fail", "a_later_column": 1}
    job = Job.from_row(row)
    assert job.state is State.FAILED
    assert job.endpoint is Endpoint.GENERATE
    assert job.error_kind is ErrorKind.EXPIRED
    assert job.on_in_doubt is OnInDoubt.FAIL


def test_what_is_null_stays_none() -> None:
    job = Job.from_row(dataclasses.asdict(a_job()))
    assert (job.error_kind, job.on_in_doubt) == (None, None)
    assert job == a_job()


def test_a_word_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="'paused' is not a valid State"):
        Job.from_row(dataclasses.asdict(a_job()) | {"state": "paused"})
