"""`python -m airflow_provider_agents`: the commands of `airflow agents`, also where Airflow does not take them in."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from airflow_provider_agents.cli import commands

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAM = "python -m airflow_provider_agents"


def main(given: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        given: the command's arguments; those of the process if None.

    Returns:
        0.

    Raises:
        SystemExit: with any other `ExitCode`, or 2 if the arguments are wrong.
    """
    parser = argparse.ArgumentParser(prog=_PROGRAM, description="Look at hosted AI agents, and run them.")
    added = parser.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    for command in commands():
        one = added.add_parser(
            command.name,
            help=command.help,
            description=command.description or command.help,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument in command.args:
            argument.add_to_parser(one)
        one.set_defaults(func=command.func, program=_PROGRAM)
    args = parser.parse_args(given)
    args.func(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
