"""`airflow agents usage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_agents.cli.command import client_of, command_of
from airflow_provider_agents.cli.exit_codes import ExitCode
from airflow_provider_agents.cli.output import clock_time, length_in_words, print_rows
from airflow_provider_agents.runs.usage import add_up, add_up_by, runs_between

if TYPE_CHECKING:
    from argparse import Namespace

    from airflow_provider_agents.runs.usage import Usage

#: The head of the column of groups.
_HEADS = {"agent": "agent", "day": "day (UTC)", "model": "model"}


@command_of
def usage(args: Namespace) -> ExitCode:
    """Print what runs have used."""
    with client_of(args) as client:
        events = client.run_flow(runs_between(args.agent_id, args.since))
    total = add_up(events)
    groups = add_up_by(events, args.by) if args.by is not None else {}
    records = [{args.by: name or None, **one.to_json()} for name, one in groups.items()]
    rows = [{_HEADS[args.by]: name, **_row(one, total)} for name, one in groups.items()]
    if args.by is None:
        records = [total.to_json()]
        rows = [_row(total, total)]
    else:
        rows.append({_HEADS[args.by]: "total", **_row(total, total)})
    print_rows(args.output, records, rows if events else [], f"No runs since {clock_time(args.since)} UTC.")
    return ExitCode.DONE


def _row(one: Usage, total: Usage) -> dict[str, str]:
    """A row of the table. The column of unreadable rows is there only if there are any."""
    row = {
        "runs": str(one.runs),
        "completed": str(one.completed),
        "failed": str(one.failed),
        "active": str(one.active),
        "unreadable": str(one.unreadable),
        "browser": length_in_words(one.browser_seconds),
        "steps": f"{one.browser_steps:g}" if isinstance(one.browser_steps, float) else str(one.browser_steps),
        "mean": "" if one.mean_seconds is None else length_in_words(one.mean_seconds),
        "longest": "" if one.longest_seconds is None else length_in_words(one.longest_seconds),
    }
    if not total.unreadable:
        del row["unreadable"]
    return row
