"""The arguments of the commands. `airflow` loads this module at each of its starts."""

from __future__ import annotations

import argparse
import contextlib
import re
from datetime import UTC, datetime, timedelta

from airflow.cli.cli_config import ARG_OUTPUT, Arg, positive_int

from airflow_provider_agents.api.errors import one_line

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: A hundred years: beyond it a time leaves the range of dates, and is a mistake before that.
_MOST_SECONDS = 100 * 365 * 86400.0


def read_seconds(text: str) -> float:
    """Seconds, above 0, of a text such as `90`, `90s`, `15m`, `2h` or `3d`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip(), re.ASCII | re.IGNORECASE)
    seconds = float(found[1]) * _UNITS[found[2].lower() or "s"] if found else 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{one_line(text, 40)!r} is no length of time; write it like 90s, 15m, 2h or 3d"
        )
    return seconds


#: The platform's clock may be minutes ahead of ours. Half an hour is the smallest distance between two time zones, so
#: this still finds a local time that was written without its offset.
_CLOCKS_DIFFER_BY = timedelta(minutes=30)


def read_moment(text: str) -> datetime:
    """A moment in the past, from ISO 8601 (UTC without an offset) or from how long ago it was."""
    from airflow_provider_agents.clock import now

    with contextlib.suppress(argparse.ArgumentTypeError):
        return now() - timedelta(seconds=read_seconds(text))
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{one_line(text, 40)!r} is no time; write it like 2026-01-31T09:00:00Z, or how long ago: 90s, 15m, 2h, 3d"
        ) from None
    if moment - now() > _CLOCKS_DIFFER_BY:
        raise argparse.ArgumentTypeError(
            f"{one_line(text, 40)!r} is in the future, so no run can match; a time without an offset is UTC"
        )
    return moment


def read_status(text: str) -> str:
    """A documented status, in any case."""
    from airflow_provider_agents.api.models import Status

    try:
        return Status(text.upper()).value
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{one_line(text, 40)!r} is not a status of the platform ({', '.join(Status)}); leave --status out to list "
            "the runs of every status"
        ) from None


DEFAULT_CONN_ID = "agents_default"

AGENT = Arg(("agent_id",), metavar="AGENT", help="the agent's id, as `list` shows it")
AGENT_OR_ALL = Arg(
    ("agent_id",), nargs="?", metavar="AGENT", help="the agent's id, as `list` shows it; all agents if left out"
)
CONN_ID = Arg(
    ("--conn-id",), default=DEFAULT_CONN_ID, metavar="ID", help="the Airflow connection (default: %(default)s)"
)
STATUS = Arg(
    ("--status",),
    type=read_status,
    metavar="STATUS",
    help="only runs with this status: PENDING, RUNNING, COMPLETED, FAILED",
)
SINCE = Arg(
    ("--since",),
    type=read_moment,
    metavar="TIME",
    help="only runs created since: an ISO 8601 time (UTC without an offset), or how long ago, such as 90s, 15m, 2h, 3d",
)
PERIOD = Arg(
    ("--since",),
    type=read_moment,
    default="7d",
    metavar="TIME",
    help="the runs created since: an ISO 8601 time (UTC without an offset), or how long ago (default: %(default)s)",
)
BY = Arg(
    ("--by",),
    choices=("agent", "day", "model"),
    metavar="(agent, day, model)",
    help="a row for each agent, day (UTC) or model",
)
LIMIT = Arg(
    ("--limit",),
    type=positive_int(allow_zero=False),
    default=20,
    metavar="COUNT",
    help="at most N runs, the newest (default: %(default)s)",
)
WAIT = Arg(("--wait",), action="store_true", help="wait until the run is over, and show how it ended")
#: The defaults of what only a wait needs, as a user writes them. argparse cannot distinguish them from given values.
WAIT_DEFAULTS = {"timeout": "24h", "poll_interval": "5s"}
TIMEOUT = Arg(
    ("--timeout",),
    type=read_seconds,
    metavar="TIME",
    help=f"with --wait: how long to wait; the run continues (default: {WAIT_DEFAULTS['timeout']})",
)
POLL_INTERVAL = Arg(
    ("--poll-interval",),
    type=read_seconds,
    metavar="TIME",
    help=f"with --wait: how long from one poll to the next (default: {WAIT_DEFAULTS['poll_interval']})",
)
OLDER_THAN = Arg(
    ("--older-than",),
    type=read_seconds,
    metavar="TIME",
    help="delete what was written longer ago, such as 12h or 3d, although it may still matter",
)
DRY_RUN = Arg(("--dry-run",), action="store_true", help="only list what would be deleted")
#: So many runs show something, and each of them costs money.
RUNS = Arg(
    ("--runs",),
    type=positive_int(allow_zero=False),
    default=3,
    metavar="COUNT",
    help="how many runs to start, one after the other; each costs money (default: %(default)s)",
)
YES = Arg(("-y", "--yes"), action="store_true", help="do not ask for confirmation")
REPORT_OUTPUT = Arg(
    ("-o", "--output"),
    choices=("text", "json"),
    default="text",
    metavar="(text, json)",
    help="the form of the report: text or json (default: %(default)s)",
)
SHARED = (CONN_ID, ARG_OUTPUT)
