"""`airflow agents run`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents import validation
from airflow_provider_agents.api.errors import AgentsError, BudgetExceededError, one_line
from airflow_provider_agents.cli.arguments import WAIT_DEFAULTS, read_seconds
from airflow_provider_agents.cli.command import client_of, command_of, how_to_look
from airflow_provider_agents.cli.exit_codes import ExitCode
from airflow_provider_agents.cli.output import LONGEST_LINE, print_rows, run_rows, say
from airflow_provider_agents.clock import now
from airflow_provider_agents.hooks import check_connection_budget
from airflow_provider_agents.polling.blocking import wait_for_end
from airflow_provider_agents.runs.outcome import Outcome, describe_completed, format_ids, to_error
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.tracker import RunTracker

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.progress import Say
    from airflow_provider_agents.runs.submission import Submission


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


@command_of
def run(args: Namespace) -> ExitCode:
    """Start one run; wait for its end if that is wanted."""
    for name, default in WAIT_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, read_seconds(default))
        elif not args.wait:
            say(
                f"--{name.replace('_', '-')} is for a wait, and this command would not wait. Add --wait, or leave it "
                "out. Nothing was started."
            )
            return ExitCode.WRONG_ARGUMENTS
    attempt = _Attempt()
    try:
        with client_of(args) as client:
            return _run(args, client, attempt)
    except BudgetExceededError as error:
        say(str(error))
        return ExitCode.NOT_DONE
    except AgentsError as error:
        say(str(error))
        code, code_if_accepted, code_if_in_doubt = ExitCode.NOT_DONE, ExitCode.RUN_STILL_RUNNING, ExitCode.RUN_IN_DOUBT
    except KeyboardInterrupt:
        say("Interrupted.")
        code = code_if_accepted = code_if_in_doubt = ExitCode.INTERRUPTED
    if attempt.run is not None and attempt.is_accepted:
        from airflow_provider_agents.runs.outcome import format_ids

        listing = _how_to_look(args, attempt.run)
        say(f"The run is still running, and cannot be cancelled. {format_ids(attempt.run)}. Look at it with: {listing}")
        return code_if_accepted
    if attempt.run is not None and attempt.is_in_doubt:
        listing = _how_to_look(args, attempt.run)
        say(f"It is not known whether a run was started. Before you start another, look with: {listing}")
        return code_if_in_doubt
    say("Nothing was started.")
    return code


def _run(args: Namespace, client: Client, attempt: _Attempt) -> ExitCode:
    policy = validation.policy_of(client.settings, needs_verdict=False)
    client.run_flow(check_connection_budget(client.settings, args.agent_id))
    steps = submit(args.agent_id, settle=policy.settle, save=attempt.note, say=say)
    attempt.run = submission = client.run_flow(steps)
    attempt.is_accepted = True
    listing = _how_to_look(args, submission)
    say(f"The run was accepted. {format_ids(submission)}")
    if not args.wait:
        say(f"It cannot be cancelled. Look at it with: {listing}")
        _print_run(args.output, submission, "submitted", ())
        return ExitCode.DONE
    with _progress() as report:
        verdict = wait_for_end(
            client,
            RunTracker(submission, policy),
            poll_interval=args.poll_interval,
            deadline_at=now() + timedelta(seconds=args.timeout),
            say=report,
        )
    error = to_error(verdict, submission, what_now=f"Look at the agent's runs with: {listing}")
    if error is not None:
        say(str(error))
    elif len(verdict.events) > 1 and not verdict.late:
        say(describe_completed(verdict, submission))
    _print_run(args.output, submission, verdict.outcome, verdict.events)
    return {
        Outcome.COMPLETED: ExitCode.DONE,
        Outcome.FAILED: ExitCode.RUN_FAILED,
        Outcome.TIMED_OUT: ExitCode.RUN_STILL_RUNNING,
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
    print_rows(output, [record], run_rows(events) or [row], "")


@contextlib.contextmanager
def _progress() -> Iterator[Say]:
    """Where a wait logs what it sees: lines, and on a terminal a clock below them."""
    if not sys.stderr.isatty():
        yield lambda _, message: say(message)
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
        yield lambda _, message: live.console.print(Text(one_line(message, LONGEST_LINE)), soft_wrap=True)


def _how_to_look(args: Namespace, run: Submission) -> str:
    """The command that lists a run, and what else its agent has run since it was started."""
    # The server's clock, where it is known: the list goes by that.
    return how_to_look(args, run.agent_id, run.window.not_before or run.taken_at - timedelta(minutes=1))
