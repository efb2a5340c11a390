"""What the databases say of how they would find rows: the plans of statements, in one form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, event

from orchestrator.store.schema import metadata
from orchestrator.store.sqlite import WRITE

from .desk import Desk

BIG = frozenset({"jobs", "job_events", "messages", "attempts", "stream_checkpoints"})
"""The tables that grow with the number of jobs."""

_SMALL = frozenset({"workers", "queues", "gates", "w", "q", "g"})
"""The others, and what the views call them."""

_NO_WORK = re.compile(r"\s*(BEGIN|SAVEPOINT|RELEASE|ROLLBACK|SELECT set_config|SELECT pg_notify)")
_READS = re.compile(r"(SCAN|SEARCH) (\S+)(?: USING (?:COVERING )?INDEX (\S+))?")


@dataclass(frozen=True)
class Asked:
    """A statement as the driver was given it, with one set of its values."""

    statement: str
    values: Any


@dataclass(frozen=True)
class Step:
    """One step of a plan: the table that it reads, and the index that leads it there.

    `rows` is how many it is expected to give, where the database says; `path` names the steps
    that it stands under, from the outermost on, and on PostgreSQL itself.
    """

    kind: str
    table: str | None
    index: str | None
    path: tuple[str, ...]
    rows: float = 0


def asked(desk: Desk, act: Callable[[Connection], object]) -> list[Asked]:
    """The statements that an act sends; what it did is taken back."""
    found: list[Asked] = []

    def take(_c: Any, _cursor: Any, statement: str, values: Any, _x: Any, many: bool) -> None:
        if not _NO_WORK.match(statement):
            found.append(Asked(statement, values[0] if many else values))

    with desk.engine.connect() as connection:
        event.listen(desk.engine, "before_cursor_execute", take)
        try:
            act(connection)
        finally:
            event.remove(desk.engine, "before_cursor_execute", take)
            connection.rollback()
    assert found
    return found


def plans(desk: Desk, each: Asked, *, writes: bool = False) -> list[list[Step]]:
    """The plans of a statement: on PostgreSQL the one for its values, and the one for any.

    The second is what a prepared statement comes to, which the server may keep. `writes` asks in
    a transaction that writes, as a worker's do.
    """
    if desk.engine.dialect.name == "sqlite":
        return [_of_sqlite(desk, each)]
    with desk.engine.connect().execution_options(**{WRITE: writes}) as connection:
        explained = f"EXPLAIN (FORMAT JSON) {each.statement}"
        made = [connection.exec_driver_sql(explained, each.values).scalar_one()]
        if each.values:
            driver: Any = connection.connection.driver_connection
            explained = f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {_numbered(each)}"
            made.append(driver.execute(explained).fetchone()[0])
    return [list(_of_postgres(plan[0]["Plan"], ())) for plan in made]


def _numbered(each: Asked) -> str:
    """The statement with `$1` for its first value: so the server is told of none."""
    numbers = {name: at for at, name in enumerate(each.values, 1)}
    named = re.sub(r"%\((\w+)\)s", lambda found: f"${numbers[found[1]]}", each.statement)
    return named.replace("%%", "%")


def _of_postgres(node: dict[str, Any], above: tuple[str, ...]) -> Iterator[Step]:
    path = (*above, f"{node.get('Parent Relationship', '')} {node['Node Type']}")
    table, index = node.get("Relation Name"), node.get("Index Name")
    yield Step(node["Node Type"], table, index, path, node["Plan Rows"])
    for child in node.get("Plans", ()):
        yield from _of_postgres(child, path)


def _of_sqlite(desk: Desk, each: Asked) -> list[Step]:
    with desk.engine.connect() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {each.statement}", each.values).all()
    above = {row[0]: row[1] for row in rows}
    told = {row[0]: str(row[3]) for row in rows}
    tables = {
        alias: name for name, alias in re.findall(r"(?:FROM|JOIN|,) (\w+) (\w)\b", each.statement)
    }
    steps = []
    for number, words in told.items():
        found = _READS.match(words)
        if found is not None:
            kind, name, index = found.groups()
            table = tables.get(name, name)
            if "INTEGER PRIMARY KEY" in words:
                index = f"{table}_pkey"
            path = tuple(f"{parent} {told[parent]}" for parent in _above(number, above))
            steps.append(Step(kind, table, _as_elsewhere(index), path))
    return steps


def _above(number: int, above: dict[int, int]) -> list[int]:
    parent = above[number]
    return [] if parent == 0 else [*_above(parent, above), parent]


def _as_elsewhere(index: str | None) -> str | None:
    """A key's index by the name that PostgreSQL gives it."""
    own = re.fullmatch(r"sqlite_autoindex_(\w+)_1", index or "")
    return f"{own[1]}_pkey" if own else index


_OF_BIG = re.compile(rf"({'|'.join(sorted(BIG))})_")
assert set(metadata.tables) >= BIG


def scans(steps: Sequence[Step]) -> list[Step]:
    """The steps that read all of a table that grows."""
    return [
        step
        for step in steps
        if step.kind in ("Seq Scan", "SCAN") and step.index is None and step.table in BIG
    ]


def indexes(steps: Sequence[Step]) -> set[str]:
    """The indexes of such tables that the steps go by."""
    return {step.index for step in steps if step.index and _OF_BIG.match(step.index)}


def repeated(steps: Sequence[Step]) -> list[Step]:
    """The steps that read all of a table that grows once for each row of another step."""
    found = []
    begun: set[tuple[str, ...]] = set()
    for step in steps:
        within = any(
            outer.endswith("Nested Loop") and inner.startswith("Inner")
            for outer, inner in zip(step.path, step.path[1:], strict=False)
        ) or any(re.search(r"^SubPlan|\bCORRELATED", name) for name in step.path)
        if step.kind in ("SCAN", "SEARCH") and step.path in begun:
            within = True  # SQLite joins by loops in loops, the outermost first
        begun.add(step.path)
        if within and step.kind in ("Seq Scan", "SCAN") and step.table not in _SMALL:
            found.append(step)
    return found
