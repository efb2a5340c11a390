"""The command line: one module for each group of commands, and no logic of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orchestrator.cli.app import root
from orchestrator.cli.frame import Frame


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    `args` are by default those of the process. 0: done; 1: something unexpected; 2: the command
    or its input is wrong; 3: some jobs did not complete; 75: try again later; 78: the
    configuration is wrong; 130: interrupted.
    """
    frame = Frame()
    try:
        code = root.main(args, prog_name="orchestrator", standalone_mode=False, obj=frame)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - the last place where one can be told in a sentence
        from orchestrator.cli.failures import told  # not needed by a command that goes well

        return told(error, traceback=frame.verbosity > 0)
    return code if isinstance(code, int) else 0


__all__ = ["main"]
