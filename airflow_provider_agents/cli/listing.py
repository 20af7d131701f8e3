"""`airflow agents list` and `airflow agents runs`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_provider_agents.api import endpoints, flow
from airflow_provider_agents.api.models import schedule_in_words
from airflow_provider_agents.cli.command import client_of, command_of
from airflow_provider_agents.cli.exit_codes import ExitCode
from airflow_provider_agents.cli.output import print_rows, run_rows
from airflow_provider_agents.runs.listing import pending_then_newest
from airflow_provider_agents.runs.matching import is_before, is_young

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from airflow_provider_agents.api.flow import Flow, Response
    from airflow_provider_agents.api.models import Agent, ExecutionEvent, Page


@command_of
def list_agents(args: Namespace) -> ExitCode:
    """Print the account's agents."""
    with client_of(args) as client:
        agents = client.run_flow(flow.paginate(endpoints.list_agents())).value
    records = [agent.to_json() for agent in agents]
    print_rows(args.output, records, [_agent_row(agent) for agent in agents], "The account has no agents.")
    return ExitCode.DONE


@command_of
def list_runs(args: Namespace) -> ExitCode:
    """Print an agent's newest runs."""
    with client_of(args) as client:
        events = client.run_flow(newest_runs(args.agent_id, status=args.status, since=args.since, limit=args.limit))
    empty = "No such runs." if args.status or args.since else "The agent has no runs."
    print_rows(args.output, [event.to_json() for event in events], run_rows(events), empty)
    return ExitCode.DONE


def newest_runs(agent_id: str, *, status: str | None, since: datetime | None, limit: int) -> Flow[list[ExecutionEvent]]:
    """An agent's newest `limit` runs that were created since a moment, newest first.

    The API's own `startedAfter` is not used: a run that waits to begin may have no `startedAt`, and then be left out.
    """

    def stop() -> Callable[[Response[Page[ExecutionEvent]]], bool]:
        left = limit

        def is_enough(answer: Response[Page[ExecutionEvent]]) -> bool:
            nonlocal left
            left -= sum(is_young(event, since) for event in answer.value.data)
            return left <= 0 or any(is_before(event, since) for event in answer.value.data)

        return is_enough

    def call(wanted: str | None) -> flow.ApiCall[Page[ExecutionEvent]]:
        return endpoints.list_agent_events(agent_id, status=wanted, limit=min(limit, flow.MAX_LIMIT))

    if status is None:
        pending, listed = yield from pending_then_newest(call, stop(), stop_pending=stop())
        rows = [*pending.value, *listed.value]
    else:
        rows = (yield from flow.paginate(call(status), stop())).value
    found = {event.id: event for event in rows if is_young(event, since)}
    undated = datetime.max.replace(tzinfo=UTC)
    return sorted(found.values(), key=lambda event: event.created_by or undated, reverse=True)[:limit]


def _agent_row(agent: Agent) -> dict[str, str]:
    return {
        "id": agent.id,
        "name": agent.name or "",
        "status": agent.status or "" if agent.unreadable is None else f"unreadable ({agent.unreadable})",
        "schedule": schedule_in_words(agent.schedule),
    }
