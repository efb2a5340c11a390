"""How work ended that somebody else did: with a result, or with an error to raise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False, kw_only=True)
class Ended(Generic[T]):
    """A result or an error, for whoever waits for it."""

    result: T | None = None
    error: BaseException | None = None

    def result_or_raise(self) -> T:
        """Return the result, or raise the error and forget it.

        A raised error knows the frames that it passes, and those know this: kept here, only the
        collector of cycles could free it, and all that the frames hold.
        """
        error, self.error = self.error, None
        if error is None:
            return self.result  # type: ignore[return-value] # None only where that is the result
        try:
            raise error
        finally:
            del error
