"""`airflow agents check`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from airflow_provider_agents.api import endpoints
from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    InvalidConnectionError,
    PermissionDeniedError,
)
from airflow_provider_agents.cli.command import command_of
from airflow_provider_agents.cli.exit_codes import ExitCode
from airflow_provider_agents.cli.output import length_in_words, print_rows
from airflow_provider_agents.clock import now
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.runs.matching import DATE_RESOLUTION, TOLERANCE
from airflow_provider_agents.validation import PLATFORM

if TYPE_CHECKING:
    from argparse import Namespace

#: What is checked, in the order in which one needs the other.
_CHECKS = ("connection", "server", "API key", "clock", "events")


#: How a check went, and the rest in words.
_Finding = tuple[Literal["ok", "failed"], str]


@command_of
def check(args: Namespace) -> ExitCode:
    """Print what of a connection works."""
    findings = _findings(args.conn_id)
    rows = []
    for name in _CHECKS:
        result, detail = findings.get(name, ("not tried", ""))
        rows.append({"check": name, "result": result, "detail": detail})
    print_rows(args.output, rows, rows, "")
    return ExitCode.DONE if all(row["result"] == "ok" for row in rows) else ExitCode.NOT_DONE


def _findings(conn_id: str) -> dict[str, _Finding]:
    """What was found for each of the checks, as far as they could be tried."""
    try:
        settings = AgentsHook(conn_id).settings()
        # One try of each call: a person is waiting, and a failure that passes is worth knowing.
        client = Client(settings, attempts=1)
        proxy = settings.proxy_in_use()
    except InvalidConnectionError as error:
        return {"connection": ("failed", str(error))}
    route = f" through the proxy {proxy.address} ({proxy.source})" if proxy is not None else ""
    waiting = "".join(
        f"; {name} {str(value).lower() if isinstance(value, bool) else f'{value:g} s'}"
        for name in PLATFORM
        if (value := getattr(settings, name)) is not None
    )
    findings: dict[str, _Finding] = {"connection": ("ok", f"{conn_id} leads to {settings.base_url}{route}{waiting}")}
    with client:
        began_at = now()
        try:
            answer = client.send(endpoints.list_agents(limit=1))
        except (AuthenticationError, PermissionDeniedError) as error:
            return findings | {"server": ("ok", "answers"), "API key": ("failed", str(error))}
        except AgentsError as error:
            return findings | {"server": ("failed", str(error))}
        findings |= {
            "server": ("ok", "answers"),
            "API key": ("ok", f"is accepted in the header {settings.auth_header}"),
            "clock": compare_clocks(answer.server_time, began_at, now()),
        }
        try:
            events = client.send(endpoints.list_events(limit=50)).value.data
        except AgentsError as error:
            return findings | {"events": ("failed", str(error))}
        odd = [f"event {event.id} ({event.unreadable})" for event in events if event.unreadable is not None]
        if odd:
            return findings | {
                "events": (
                    "failed",
                    f"{len(odd)} of {len(events)} on the first page cannot be read: {'; '.join(odd[:5])}",
                )
            }
        return findings | {"events": ("ok", f"can be read: {len(events)} on the first page")}


def compare_clocks(
    server_time: datetime | None, began_at: datetime, ended_at: datetime
) -> tuple[Literal["ok", "failed"], str]:
    """How far the server's clock is from ours, and what that means.

    Args:
        server_time: the `Date` of the response.
        began_at: our clock before the request.
        ended_at: our clock after its response.
    """
    if server_time is None:
        return "failed", (
            "the responses have no Date header, so runs that start at about the same time are harder to tell apart. "
            "Let the gateway in between hand that header on"
        )
    # The server cuts its time to the second, at some moment between the two of ours.
    ahead = server_time + DATE_RESOLUTION / 2 - (began_at + (ended_at - began_at) / 2)
    doubt = DATE_RESOLUTION / 2 + (ended_at - began_at) / 2
    if abs(ahead) - doubt <= TOLERANCE:
        return "ok", f"is the server's, give or take {TOLERANCE.total_seconds():g} seconds"
    direction = "ahead of" if ahead > timedelta() else "behind"
    return "failed", (
        f"the server's is {length_in_words(abs(ahead).total_seconds())} {direction} this machine's. Runs are told "
        "apart by the server's alone, so that stays right; but a time that you give, such as --since or a sensor's "
        "started_after, is compared with the server's. Set this machine's clock, for example by NTP"
    )
