"""Run a soak: `python -m benchmarks.soak --jobs 20000`. Exit code 1 if an invariant is broken."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import anyio
from sqlalchemy import URL

from benchmarks.soak.database import Stoppable
from benchmarks.soak.plan import Plan
from benchmarks.soak.recipes import RECIPES
from benchmarks.soak.report import Report
from benchmarks.soak.run import Soak, folder_of
from orchestrator.store.engine import parse_url


def arguments() -> argparse.ArgumentParser:
    """Describe the command line; each number of a plan is an option."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument(
        "--database",
        help="an empty PostgreSQL database; by default one of ours,"
        " which is also stopped and started at random",
    )
    parser.add_argument("--json", type=Path, help="write the report to a file, as JSON")
    parser.add_argument("--folder", type=Path, help="keep the workers' logs in this folder")
    parser.add_argument("--no-faults", action="store_true", help="the API behaves")
    defaults = Plan()
    for each in fields(Plan):
        default = getattr(defaults, each.name)
        if isinstance(default, int | float) and not isinstance(default, bool):
            flag = "--" + each.name.replace("_", "-")
            parser.add_argument(flag, type=type(default), default=default, help=f"{default:g}")
    parser.add_argument(
        "--revoke-at",
        type=float,
        nargs="*",
        default=defaults.revoke_at,
        help="revoke the key at these shares of the jobs",
    )
    parser.add_argument(
        "--recipes", nargs="*", default=(), choices=RECIPES, help="the kinds of jobs; default: all"
    )
    return parser


@contextmanager
def database(named: str | None) -> Iterator[tuple[URL, Stoppable | None]]:
    """Give the named database, or one on a server of our own."""
    if named is not None:
        yield parse_url(named), None
        return
    from tests import postgres  # the server of the test package, with the means to stop it

    with postgres.own_server() as server, postgres.database(server) as url:
        yield url, server


async def soak(given: argparse.Namespace, plan: Plan) -> Report:
    """Run one soak."""
    with database(given.database) as (url, server), folder_of(given.folder) as folder:
        return await Soak(plan=plan, url=url, server=server, folder=folder).run()


def main() -> int:
    """Read the arguments, run, print the report."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell's background job ignores SIGINT, and SIGTERM would leave workers and database.
        signal.signal(number, signal.default_int_handler)
    given = arguments().parse_args()
    names = {each.name for each in fields(Plan)} - {"faults"}
    values = {name: getattr(given, name) for name in names}
    lists = {"revoke_at": tuple(given.revoke_at), "recipes": tuple(given.recipes)}
    plan = Plan(**{**values, **lists}, faults=not given.no_faults)
    report = anyio.run(soak, given, plan)
    print(report.as_text())
    if given.json is not None:
        given.json.write_text(report.as_json(), "utf-8")
    return 0 if report.held else 1


if __name__ == "__main__":
    sys.exit(main())
