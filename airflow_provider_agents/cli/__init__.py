"""The command line: `airflow agents` (Airflow 3.2 and later) and `python -m airflow_provider_agents` (every Airflow).

`airflow` loads this module at each of its starts, whatever the command, so it imports only what `airflow` has loaded by
then. Each command has a module of its own, which is imported when the command runs.

What a command found goes to the standard output, alone. Everything else goes to the standard error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ARG_OUTPUT, ActionCommand, GroupCommand, lazy_load_command

from airflow_provider_agents.cli.arguments import (
    AGENT,
    AGENT_OR_ALL,
    BY,
    CONN_ID,
    DRY_RUN,
    LIMIT,
    OLDER_THAN,
    PERIOD,
    POLL_INTERVAL,
    REPORT_OUTPUT,
    RUNS,
    SHARED,
    SINCE,
    STATUS,
    TIMEOUT,
    WAIT,
    YES,
)
from airflow_provider_agents.cli.exit_codes import EXIT_CODES, PROBE_EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.cli.cli_config import CLICommand


def _lazy(place: str) -> Callable[..., Any]:
    return lazy_load_command(f"{__name__}.{place}")


def commands() -> tuple[ActionCommand, ...]:
    """The commands and their arguments."""
    return (
        ActionCommand(
            name="list", help="List the agents of the account", func=_lazy("listing.list_agents"), args=SHARED
        ),
        ActionCommand(
            name="runs",
            help="List the newest runs of an agent",
            func=_lazy("listing.list_runs"),
            args=(AGENT, STATUS, SINCE, LIMIT, *SHARED),
        ),
        ActionCommand(
            name="usage",
            help="Add up what runs have used",
            func=_lazy("usage.usage"),
            args=(AGENT_OR_ALL, PERIOD, BY, *SHARED),
        ),
        ActionCommand(
            name="run",
            help="Start a run of an agent",
            description="Start one run of an agent. It costs money and cannot be cancelled.",
            epilog=EXIT_CODES,
            func=_lazy("run.run"),
            args=(AGENT, WAIT, TIMEOUT, POLL_INTERVAL, *SHARED),
        ),
        ActionCommand(
            name="check",
            help="Check the connection",
            description="Say what of the connection works, and what to do about the rest. Starts nothing. "
            "The exit code is 0 only if all works.",
            func=_lazy("check.check"),
            args=SHARED,
        ),
        ActionCommand(
            name="probe",
            help="Find out how the platform behaves, by a few runs",
            description="Start a few runs of an agent, one after the other, and report what the API's documentation "
            "leaves open, with the connection's extras that fit. Each run costs money and cannot be cancelled.",
            epilog=PROBE_EXIT_CODES,
            func=_lazy("probe.probe"),
            args=(AGENT, RUNS, YES, CONN_ID, REPORT_OUTPUT),
        ),
        ActionCommand(
            name="forget",
            help="Delete left-over copies of tasks' records",
            description="Delete the copies of tasks' records that no longer matter, and list them. On Airflow 3.4 and "
            "later, a task keeps such a copy in an Airflow Variable while its run is under way. The copy is left over "
            "if the task is marked as successful meanwhile, or if its DAG run is deleted. No run is affected.",
            func=_lazy("forget.forget"),
            args=(OLDER_THAN, DRY_RUN, ARG_OUTPUT),
        ),
    )


def get_agents_cli_commands() -> list[CLICommand]:
    """What Airflow's command line takes in."""
    return [GroupCommand(name="agents", help="Look at hosted AI agents, and run them", subcommands=commands())]
