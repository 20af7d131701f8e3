"""The command line: `airflow agents` (Airflow 3.2 and later) and `python -m airflow_provider_agents` (every Airflow).

`airflow` loads this module at each of its starts, whatever the command, so at its top it imports only what `airflow`
has loaded by then; a command imports what it needs when it runs.

What a command found goes to the standard output, alone; whatever else there is to say goes to the standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from airflow.cli.cli_config import ARG_OUTPUT, ActionCommand, Arg, GroupCommand, positive_int
from airflow.utils.cli import suppress_logs_and_warning

from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    InvalidConnectionError,
    PermissionDeniedError,
    one_line,
)

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Sequence

    from airflow.cli.cli_config import CLICommand

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.api.flow import Flow, Response
    from airflow_provider_agents.api.models import Agent, ExecutionEvent, Page
    from airflow_provider_agents.runs.copies import RecordCopy
    from airflow_provider_agents.runs.submission import Submission
    from airflow_provider_agents.runs.waiting import Say

T = TypeVar("T")

#: Of a line on the terminal. Our own messages quote less of what a server sent.
_LONGEST_LINE = 2000
#: On a narrow terminal the other columns fold: none is cut.
_NEVER_FOLDED = frozenset({"created (UTC)", "written (UTC)", "took", "check", "result"})
#: Of a cell in a table. An id has its full length; JSON and YAML shorten nothing.
_LONGEST_CELL = 1024


class ExitCode(IntEnum):
    """How a command ended. Public: scripts decide by it. argparse, too, ends with `WRONG_ARGUMENTS`."""

    DONE = 0
    NOT_DONE = 1
    WRONG_ARGUMENTS = 2
    RUN_FAILED = 3
    RUN_GOES_ON = 4
    RUN_AMBIGUOUS = 5
    RUN_IN_DOUBT = 6
    INTERRUPTED = 130


_EXIT_CODES = """exit codes of `run`:
  0    the run COMPLETED; without --wait: it was accepted
  1    nothing was started
  2    the arguments are wrong
  3    the run FAILED
  4    the run was not over in time, or can no longer be looked at; it goes on
  5    several runs could be this one, and they ended differently
  6    it is not known whether a run was started
  130  interrupted (Ctrl-C); a run that was started goes on
"""


# --- the arguments --------------------------------------------------------------------------------------------------

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: A hundred years: beyond it a time leaves the range of dates, and is a mistake before that.
_MOST_SECONDS = 100 * 365 * 86400.0


def _seconds(text: str) -> float:
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


def _moment(text: str) -> datetime:
    """A moment in the past, from ISO 8601 (UTC without an offset) or from how long ago it was."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        return _now() - timedelta(seconds=_seconds(text))
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{one_line(text, 40)!r} is no time; write it like 2026-01-31T09:00:00Z, or how long ago: 90s, 15m, 2h, 3d"
        ) from None
    if moment - _now() > _CLOCKS_DIFFER_BY:
        raise argparse.ArgumentTypeError(
            f"{one_line(text, 40)!r} is in the future, so no run can match; a time without an offset is UTC"
        )
    return moment


def _status(text: str) -> str:
    """A documented status, in any case."""
    from airflow_provider_agents.api.models import Status

    try:
        return Status(text.upper()).value
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{one_line(text, 40)!r} is not a status of the platform ({', '.join(Status)}); leave --status out to list "
            "the runs of every status"
        ) from None


_DEFAULT_CONN_ID = "agents_default"

_AGENT = Arg(("agent_id",), metavar="AGENT", help="the agent's id, as `list` shows it")
_CONN_ID = Arg(
    ("--conn-id",), default=_DEFAULT_CONN_ID, metavar="ID", help="the Airflow connection (default: %(default)s)"
)
_STATUS = Arg(
    ("--status",),
    type=_status,
    metavar="STATUS",
    help="only runs with this status: PENDING, RUNNING, COMPLETED, FAILED",
)
_SINCE = Arg(
    ("--since",),
    type=_moment,
    metavar="TIME",
    help="only runs created since: an ISO 8601 time (UTC without an offset), or how long ago, such as 90s, 15m, 2h, 3d",
)
_LIMIT = Arg(
    ("--limit",),
    type=positive_int(allow_zero=False),
    default=20,
    metavar="COUNT",
    help="at most so many runs, the newest (default: %(default)s)",
)
_WAIT = Arg(("--wait",), action="store_true", help="wait until the run is over, and show how it ended")
#: The defaults of what only a wait needs, as a user writes them. argparse would not tell them from what was given.
_DEFAULTS_OF_A_WAIT = {"timeout": "24h", "poll_interval": "5s"}
_TIMEOUT = Arg(
    ("--timeout",),
    type=_seconds,
    metavar="TIME",
    help=f"with --wait: how long to wait; the run continues (default: {_DEFAULTS_OF_A_WAIT['timeout']})",
)
_POLL_INTERVAL = Arg(
    ("--poll-interval",),
    type=_seconds,
    metavar="TIME",
    help=f"with --wait: how long from one poll to the next (default: {_DEFAULTS_OF_A_WAIT['poll_interval']})",
)
_OLDER_THAN = Arg(
    ("--older-than",),
    type=_seconds,
    metavar="TIME",
    help="delete what was written longer ago, such as 12h or 3d, although it may still matter",
)
_DRY_RUN = Arg(("--dry-run",), action="store_true", help="only list what would be deleted")
_SHARED = (_CONN_ID, ARG_OUTPUT)


def commands() -> tuple[ActionCommand, ...]:
    """The commands and their arguments."""
    return (
        ActionCommand(name="list", help="List the agents of the account", func=list_agents, args=_SHARED),
        ActionCommand(
            name="runs",
            help="List the newest runs of an agent",
            func=list_runs,
            args=(_AGENT, _STATUS, _SINCE, _LIMIT, *_SHARED),
        ),
        ActionCommand(
            name="run",
            help="Start a run of an agent",
            description="Start one run of an agent. It costs money and cannot be cancelled.",
            epilog=_EXIT_CODES,
            func=run,
            args=(_AGENT, _WAIT, _TIMEOUT, _POLL_INTERVAL, *_SHARED),
        ),
        ActionCommand(
            name="check",
            help="Check the connection",
            description="Say what of the connection works, and what to do about the rest. Starts nothing. "
            "The exit code is 0 only if all works.",
            func=check,
            args=_SHARED,
        ),
        ActionCommand(
            name="forget",
            help="Delete left-over copies of tasks' records",
            description="Delete the copies of tasks' records that no longer matter, and list them. On Airflow 3.4 and "
            "later, a task keeps such a copy in an Airflow Variable while its run is under way. The copy is left over "
            "if the task is marked as successful meanwhile, or if its DAG run is deleted. No run is affected.",
            func=forget,
            args=(_OLDER_THAN, _DRY_RUN, ARG_OUTPUT),
        ),
    )


def get_agents_cli_commands() -> list[CLICommand]:
    """What Airflow's command line takes in."""
    return [GroupCommand(name="agents", help="Look at hosted AI agents, and run them", subcommands=commands())]


# --- what is printed ------------------------------------------------------------------------------------------------


def _say(message: str) -> None:
    print(one_line(message, _LONGEST_LINE), file=sys.stderr)


def _write(text: str) -> None:
    # Names are the server's: a terminal that cannot show a letter of one is no reason to end.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has enough, as with `| head`. What Python flushes at its end must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(output: str, records: Sequence[dict[str, Any]], rows: Sequence[dict[str, str]], empty: str) -> None:
    """Print what was found.

    Args:
        output: as `--output` says.
        records: for scripts.
        rows: the same for people, column by column.
        empty: said in place of a table without rows.
    """
    if output == "json":
        # ASCII only, so that no character can mean anything to a terminal.
        _write(json.dumps(records, indent=2) + "\n")
    elif output == "yaml":
        from airflow.utils import yaml

        _write(yaml.dump(records, sort_keys=False))
    elif not rows:
        _say(empty)
    elif output == "plain":
        _write(_plain(rows))
    else:
        _write(_table(rows))


def _cells(row: dict[str, str]) -> list[str]:
    return [one_line(cell, _LONGEST_CELL) or "-" for cell in row.values()]


def _plain(rows: Sequence[dict[str, str]]) -> str:
    from rich.cells import cell_len

    lines = [list(rows[0]), *map(_cells, rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "".join(f"{line.rstrip()}\n" for line in padded)


def _table(rows: Sequence[dict[str, str]]) -> str:
    from airflow.cli.simple_table import AirflowConsole, SimpleTable
    from rich.text import Text

    table = SimpleTable(show_header=True)
    for name in rows[0]:
        table.add_column(Text(name), no_wrap=name in _NEVER_FOLDED)
    for row in rows:
        # Text, not str: in a str rich would take `[red]` for a colour and `:bug:` for a picture.
        table.add_row(*map(Text, _cells(row)))
    console = AirflowConsole()
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _clock_time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment is not None else ""


def _length(seconds: float) -> str:
    """A length of time in words, to the second: `1h 2m 3s`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    parts = [f"{value}{unit}" for value, unit in ((hours, "h"), (minutes, "m"), (left, "s")) if value]
    return " ".join(parts) or "0s"


def schedule_in_words(schedule: str | None) -> str:
    """When the platform runs an agent by itself, or the schedule as it is, if it is not in the documented form."""
    if not schedule:
        return ""
    try:
        plan = json.loads(schedule)
    except (ValueError, RecursionError):
        return schedule
    match plan:
        case {"tasksPerDay": int(count), "times": [*times]} if all(isinstance(time, str) for time in times):
            pass
        case {"tasksPerDay": int(count)}:
            times = []
        case None:
            return ""
        case _:
            return schedule
    often = "once a day" if count == 1 else f"{count} times a day"
    return f"{often} at {', '.join(times)}" if times else often


def _agent_row(agent: Agent) -> dict[str, str]:
    return {
        "id": agent.id,
        "name": agent.name or "",
        "status": agent.status or "" if agent.unreadable is None else f"unreadable ({agent.unreadable})",
        "schedule": schedule_in_words(agent.schedule),
    }


def _run_rows(events: Sequence[ExecutionEvent]) -> list[dict[str, str]]:
    rows = [
        {
            "event": event.id,
            "status": event.status if event.unreadable is None else "unreadable",
            "created (UTC)": _clock_time(event.createdAt or event.startedAt),
            "took": _length((event.completedAt - event.startedAt).total_seconds())
            if event.startedAt is not None and event.completedAt is not None
            else "",
            "error": str(event.error or "") if event.unreadable is None else event.unreadable,
        }
        for event in events
    ]
    if not any(row["error"] for row in rows):
        for row in rows:
            del row["error"]
    return rows


# --- how a command ends ---------------------------------------------------------------------------------------------


def _now() -> datetime:
    from airflow_provider_agents.clock import now

    return now()


def _command(work: Callable[[Namespace], ExitCode]) -> Callable[[Namespace], None]:
    """A command that says in one line what went wrong, and ends with its code."""

    # What Airflow and httpx log would come in between what a script reads.
    @suppress_logs_and_warning
    def command(args: Namespace) -> None:
        # Without this, which Airflow's own commands set too, it does not look for connections in its database.
        os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
        try:
            code = work(args)
        except AgentsError as error:
            _say(str(error))
            code = ExitCode.NOT_DONE
        except KeyboardInterrupt:
            _say("Interrupted.")
            code = ExitCode.INTERRUPTED
        if code:
            raise SystemExit(int(code))

    # The decorator reads `verbose`. No option sets it, because nothing that is logged here would help anybody.
    return lambda args: command(argparse.Namespace(**vars(args), verbose=False))


def _client(args: Namespace) -> Client:
    from airflow_provider_agents.hooks import AgentsHook

    return AgentsHook(args.conn_id).get_conn()


def _how_to_look(args: Namespace, run: Submission) -> str:
    """The command that lists a run, and what else its agent has run since it was started."""
    # The server's clock, where it is known: the list goes by that.
    since = run.bounds.floor or run.taken_at - timedelta(minutes=1)
    words = ["runs", run.agent_id, "--since", f"{since:%Y-%m-%dT%H:%M:%SZ}"]
    if args.conn_id != _DEFAULT_CONN_ID:
        words += ["--conn-id", args.conn_id]
    return f"{getattr(args, 'program', 'airflow agents')} {shlex.join(words)}"


# --- list, runs -----------------------------------------------------------------------------------------------------


@_command
def list_agents(args: Namespace) -> ExitCode:
    """Print the account's agents."""
    from airflow_provider_agents.api import endpoints, flow

    with _client(args) as client:
        agents = client.run_flow(flow.paginate(endpoints.list_agents())).value
    records = [agent.to_json() for agent in agents]
    _print(args.output, records, [_agent_row(agent) for agent in agents], "The account has no agents.")
    return ExitCode.DONE


@_command
def list_runs(args: Namespace) -> ExitCode:
    """Print an agent's newest runs."""
    with _client(args) as client:
        events = client.run_flow(newest_runs(args.agent_id, status=args.status, since=args.since, limit=args.limit))
    empty = "No such runs." if args.status or args.since else "The agent has no runs."
    _print(args.output, [event.to_json() for event in events], _run_rows(events), empty)
    return ExitCode.DONE


def newest_runs(agent_id: str, *, status: str | None, since: datetime | None, limit: int) -> Flow[list[ExecutionEvent]]:
    """An agent's newest `limit` runs that were created since a moment, newest first.

    The API's own `startedAfter` is not used: a run that waits to begin may have no `startedAt`, and then be left out.
    """
    from airflow_provider_agents.api import endpoints, flow
    from airflow_provider_agents.runs.matching import is_young, lies_before

    def enough() -> Callable[[Response[Page[ExecutionEvent]]], bool]:
        left = limit

        def is_enough(answer: Response[Page[ExecutionEvent]]) -> bool:
            nonlocal left
            left -= sum(is_young(event, since) for event in answer.value.data)
            return left <= 0 or any(lies_before(event, since) for event in answer.value.data)

        return is_enough

    found: dict[str, ExecutionEvent] = {}
    # Those that wait to begin may be listed behind all others; asked first, since a run that begins between the two
    # answers is then in both, and the later one stands.
    for wanted in ("PENDING", None) if status is None else (status,):
        call = endpoints.list_agent_events(agent_id, status=wanted, limit=min(limit, flow.MAX_LIMIT))
        listed = yield from flow.paginate(call, enough())
        found.update((event.id, event) for event in listed.value if is_young(event, since))
    undated = datetime.max.replace(tzinfo=UTC)
    return sorted(found.values(), key=lambda event: event.created_by or undated, reverse=True)[:limit]


# --- run ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Attempt:
    """What is known of the run that was asked for.

    Attributes:
        run: its record, as `submit` saved it last, then as it was accepted.
        is_accepted: it was started.
    """

    run: Submission | None = None
    is_accepted: bool = False

    @property
    def is_in_doubt(self) -> bool:
        """Whether a request to start it is under way, or its answer was lost."""
        return self.run is not None and self.run.sent_at is not None

    def note(self, run: Submission) -> None:
        self.run = run


@_command
def run(args: Namespace) -> ExitCode:
    """Start one run; wait for its end if that is wanted."""
    for name, default in _DEFAULTS_OF_A_WAIT.items():
        if getattr(args, name) is None:
            setattr(args, name, _seconds(default))
        elif not args.wait:
            _say(
                f"--{name.replace('_', '-')} is for a wait, and this command would not wait. Add --wait, or leave it "
                "out. Nothing was started."
            )
            return ExitCode.WRONG_ARGUMENTS
    attempt = _Attempt()
    try:
        with _client(args) as client:
            return _run(args, client, attempt)
    except AgentsError as error:
        _say(str(error))
        code, code_if_accepted, code_if_in_doubt = ExitCode.NOT_DONE, ExitCode.RUN_GOES_ON, ExitCode.RUN_IN_DOUBT
    except KeyboardInterrupt:
        _say("Interrupted.")
        code = code_if_accepted = code_if_in_doubt = ExitCode.INTERRUPTED
    if attempt.run is not None and attempt.is_accepted:
        from airflow_provider_agents.runs.verdict import named

        look = _how_to_look(args, attempt.run)
        _say(f"The run is still running, and cannot be cancelled. {named(attempt.run)}. Look at it with: {look}")
        return code_if_accepted
    if attempt.run is not None and attempt.is_in_doubt:
        look = _how_to_look(args, attempt.run)
        _say(f"It is not known whether a run was started. Before you start another, look with: {look}")
        return code_if_in_doubt
    _say("Nothing was started.")
    return code


def _run(args: Namespace, client: Client, attempt: _Attempt) -> ExitCode:
    from airflow_provider_agents.runs.submission import submit
    from airflow_provider_agents.runs.verdict import Outcome, Rules, Wait, error_of, how_it_completed, named
    from airflow_provider_agents.runs.waiting import wait_for_end

    rules = Rules()
    steps = submit(args.agent_id, settle=rules.settle, now=_now, save=attempt.note, say=_say)
    attempt.run = submission = client.run_flow(steps)
    attempt.is_accepted = True
    look = _how_to_look(args, submission)
    _say(f"The run was accepted. {named(submission)}")
    if not args.wait:
        _say(f"It cannot be cancelled. Look at it with: {look}")
        _print_run(args.output, submission, "submitted", ())
        return ExitCode.DONE
    with _progress() as say:
        verdict = client.run_flow(
            wait_for_end(
                Wait(submission, rules),
                poll_interval=args.poll_interval,
                deadline_at=_now() + timedelta(seconds=args.timeout),
                now=_now,
                say=say,
            )
        )
    error = error_of(verdict, submission, what_now=f"Look at the agent's runs with: {look}")
    if error is not None:
        _say(str(error))
    elif len(verdict.events) > 1 and not verdict.late:
        _say(how_it_completed(verdict, submission))
    _print_run(args.output, submission, verdict.outcome, verdict.events)
    return {
        Outcome.COMPLETED: ExitCode.DONE,
        Outcome.FAILED: ExitCode.RUN_FAILED,
        Outcome.TIMED_OUT: ExitCode.RUN_GOES_ON,
        Outcome.AMBIGUOUS: ExitCode.RUN_AMBIGUOUS,
        Outcome.NOT_FOUND: ExitCode.RUN_IN_DOUBT,
    }[verdict.outcome]


def _print_run(output: str, submission: Submission, outcome: str, events: Sequence[ExecutionEvent]) -> None:
    record = {
        "agentId": submission.agent_id,
        "requestId": submission.request_id,
        "outcome": str(outcome),
        "events": [event.to_json() for event in events],
    }
    row = {"agent": submission.agent_id, "requestId": submission.request_id or "", "outcome": str(outcome)}
    _print(output, [record], _run_rows(events) or [row], "")


@contextlib.contextmanager
def _progress() -> Iterator[Say]:
    """Where a wait says what it sees: lines, and on a terminal a clock below them."""
    if not sys.stderr.isatty():
        yield lambda _, message: _say(message)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    with Progress(
        SpinnerColumn(),
        TextColumn("waiting; Ctrl-C ends the waiting, not the run"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
    ) as live:
        live.add_task("", total=None)
        yield lambda _, message: live.console.print(Text(one_line(message, _LONGEST_LINE)), soft_wrap=True)


# --- check ----------------------------------------------------------------------------------------------------------

#: What is checked, in the order in which one needs the other.
_CHECKS = ("connection", "server", "API key", "clock", "events")


#: How a check went, and the rest in words.
_Finding = tuple[Literal["ok", "failed"], str]


@_command
def check(args: Namespace) -> ExitCode:
    """Print what of a connection works."""
    findings = _findings(args.conn_id)
    rows = []
    for name in _CHECKS:
        result, detail = findings.get(name, ("not tried", ""))
        rows.append({"check": name, "result": result, "detail": detail})
    _print(args.output, rows, rows, "")
    return ExitCode.DONE if all(row["result"] == "ok" for row in rows) else ExitCode.NOT_DONE


def _findings(conn_id: str) -> dict[str, _Finding]:
    """What was found for each of the checks, as far as they could be tried."""
    from airflow_provider_agents.api import endpoints
    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.hooks import AgentsHook

    try:
        settings = AgentsHook(conn_id).settings()
        # One try of each call: a person is waiting, and a failure that passes is worth knowing.
        client = Client(settings, attempts=1)
        proxy = settings.proxy_in_use()
    except InvalidConnectionError as error:
        return {"connection": ("failed", str(error))}
    route = f" through the proxy {proxy.address} ({proxy.source})" if proxy is not None else ""
    findings: dict[str, _Finding] = {"connection": ("ok", f"{conn_id} leads to {settings.base_url}{route}")}
    with client:
        began_at = _now()
        try:
            answer = client.send(endpoints.list_agents(limit=1))
        except (AuthenticationError, PermissionDeniedError) as error:
            return findings | {"server": ("ok", "answers"), "API key": ("failed", str(error))}
        except AgentsError as error:
            return findings | {"server": ("failed", str(error))}
        findings |= {
            "server": ("ok", "answers"),
            "API key": ("ok", f"is accepted in the header {settings.auth_header}"),
            "clock": _compare_clocks(answer.server_time, began_at, _now()),
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


def _compare_clocks(
    server_time: datetime | None, began_at: datetime, ended_at: datetime
) -> tuple[Literal["ok", "failed"], str]:
    """How far the server's clock is from ours, and what that means.

    Args:
        server_time: what the server said in its answer.
        began_at: our clock before the request.
        ended_at: our clock after its answer.
    """
    from airflow_provider_agents.runs.matching import DATE_RESOLUTION, TOLERANCE

    if server_time is None:
        return "failed", (
            "the answers have no Date header, so runs that start at about the same time are harder to tell apart. Let "
            "the gateway in between hand that header on"
        )
    # The server cuts its time to the second, at some moment between the two of ours.
    ahead = server_time + DATE_RESOLUTION / 2 - (began_at + (ended_at - began_at) / 2)
    doubt = DATE_RESOLUTION / 2 + (ended_at - began_at) / 2
    if abs(ahead) - doubt <= TOLERANCE:
        return "ok", f"is the server's, give or take {TOLERANCE.total_seconds():g} seconds"
    direction = "ahead of" if ahead > timedelta() else "behind"
    return "failed", (
        f"the server's is {_length(abs(ahead).total_seconds())} {direction} this machine's. Runs are told apart by the "
        "server's alone, so that stays right; but a time that you give, such as --since or a sensor's started_after, "
        "is compared with the server's. Set this machine's clock, for example by NTP"
    )


# --- forget ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Forgotten:
    """What `forget` did.

    Attributes:
        copies: what was deleted, or would be.
        kept: how many other copies there are.
        unknown: how many Variables have a key like a copy's, and another content.
    """

    copies: list[RecordCopy]
    kept: int = 0
    unknown: int = 0


@_command
def forget(args: Namespace) -> ExitCode:
    """Delete the copies of tasks' records that no longer matter."""
    from sqlalchemy.exc import SQLAlchemyError

    written_before = _now() - timedelta(seconds=args.older_than) if args.older_than is not None else None
    try:
        done = _forget(written_before, dry_run=args.dry_run)
    except SQLAlchemyError as error:
        _say(
            f"Airflow's metadata database cannot be used, so nothing was deleted ({type(error).__name__}). Use the "
            "configuration of Airflow's scheduler."
        )
        return ExitCode.NOT_DONE
    copies = sorted(done.copies, key=lambda copy: copy.written_at)
    records = [{"variable": copy.key, **copy.model_dump(mode="json")} for copy in copies]
    summary = _what_was_forgotten(done, dry_run=args.dry_run)
    _print(args.output, records, [_copy_row(copy) for copy in copies], summary)
    if copies:
        _say(summary)
    if done.unknown:
        from airflow_provider_agents.runs.copies import PREFIX

        _say(f"Kept as well, since they are no copies that this version can read: {done.unknown} Variables {PREFIX}...")
    return ExitCode.DONE


def _forget(written_before: datetime | None, *, dry_run: bool) -> _Forgotten:
    """Delete copies from Airflow's metadata database.

    Args:
        written_before: which; None for those that no longer matter.
        dry_run: delete nothing.
    """
    from airflow.models.variable import Variable
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from airflow_provider_agents.runs.copies import PREFIX, RecordCopy, UnreadableCopyError

    done = _Forgotten([])
    rows = select(Variable).where(Variable.key.startswith(PREFIX, autoescape=True))
    if not dry_run:
        # Locked: a task may write one of these meanwhile, for a new run.
        rows = rows.with_for_update()
    with create_session() as session:
        for variable in session.scalars(rows):
            try:
                copy = RecordCopy.from_text(variable.key, variable.val or "")
            except UnreadableCopyError:
                done.unknown += 1
                continue
            if copy.written_at >= written_before if written_before is not None else copy.until >= _now():
                done.kept += 1
                continue
            done.copies.append(copy)
            if not dry_run:
                session.delete(variable)
    return done


def _what_was_forgotten(done: _Forgotten, *, dry_run: bool) -> str:
    from airflow_provider_agents.version_compat import CLEARS_DISCARD_STATE

    if not done.copies and not done.kept:
        words = "There are no copies of tasks' records."
        return words if CLEARS_DISCARD_STATE else f"{words} Tasks keep them on Airflow 3.4 and later."
    words = f"{'Copies that would be deleted' if dry_run else 'Copies deleted'}: {len(done.copies)}."
    return f"{words} Copies kept: {done.kept}."


def _copy_row(copy: RecordCopy) -> dict[str, str]:
    return {
        "task": copy.place.name,
        "DAG run": copy.place.run_id,
        "agent": copy.record.submission.agent_id,
        "requestId": copy.record.submission.request_id or "",
        "written (UTC)": _clock_time(copy.written_at.astimezone(UTC)),
    }
