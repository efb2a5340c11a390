"""The exceptions, by what the caller can do.

OrchestratorError
├── ConfigError            correct the configuration, then start again
├── InvalidJob             correct the named field, then enqueue again
├── DuplicateKey           a job with this unique_key exists
├── NotFound               no such job or queue
│   └── NoDatabase         no such file: create it, or name another
├── NotAllowed             the job's state does not allow the verb
├── SchemaMismatch         run the command that the text names
├── LeaseLost              another worker owns the job: stop quietly
├── StoreUnavailable       the database cannot be reached: try later
│   └── StoreDamaged       its file is no database: put the right one there
├── JobFailed              the job settled without completing
└── JobInDoubt             the job may have started a run; a person decides
"""

from __future__ import annotations


class OrchestratorError(Exception):
    """The root of everything that this package raises on purpose."""

    exit_code = 1
    """What the command line ends with when this error reaches it."""


class ConfigError(OrchestratorError):
    """A setting is missing or wrong; the text names the key, the value and the remedy."""

    exit_code = 78


class InvalidJob(OrchestratorError):
    """A job would be refused by the server or by the schema; nothing was written.

    `number` says which of several jobs it is, counted from 1.
    """

    exit_code = 2

    def __init__(
        self, field: str, value: object, remedy: str, *, number: int | None = None
    ) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        self.number = number
        where = f"job {number} of those given: " if number is not None else ""
        super().__init__(f"{where}{field}: {_shown(value)}: {remedy}")


class DuplicateKey(OrchestratorError):
    """A job with this `unique_key` exists, and its request or the caller's wish differs.

    `job_id` is 0 if that job is one of the same call.
    """

    exit_code = 2

    def __init__(self, unique_key: str, job_id: int, why: str) -> None:
        self.unique_key = unique_key
        self.job_id = job_id
        holder = f"job {job_id}" if job_id else "another job of this call"
        super().__init__(f"unique_key: {_shown(unique_key)}: {holder} has it already; {why}")


class NotFound(OrchestratorError):
    """There is no such job or queue."""

    exit_code = 2


class NoDatabase(NotFound):
    """There is no file of the name that the configuration gives."""

    exit_code = 78


class NotAllowed(OrchestratorError):
    """The verb does not apply to the job as it stands; nothing was changed."""


class SchemaMismatch(OrchestratorError):
    """The database's schema is older or newer than this program knows."""

    exit_code = 78


class LeaseLost(OrchestratorError):
    """A guarded write hit no row: another worker owns the job, or its state moved on."""


class StoreUnavailable(OrchestratorError):
    """The database cannot be reached or written now."""

    exit_code = 75


class StoreDamaged(StoreUnavailable):
    """The file is no database, or damaged. A worker keeps what it knows: it may be put back."""

    exit_code = 78


class JobFailed(OrchestratorError):
    """The job settled as failed or cancelled. `error_kind` is from the fixed list."""

    exit_code = 3

    def __init__(self, job_id: int, state: str, error_kind: str | None, error: str | None) -> None:
        self.job_id = job_id
        self.state = state
        self.error_kind = error_kind
        self.error = error
        super().__init__(f"job {job_id} {state} ({error_kind}): {error}")


class JobInDoubt(JobFailed):
    """The job may have started a run; `resolve` decides what becomes of it."""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a very deep list
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
