"""`airflow agents probe`."""

from __future__ import annotations

import json
import sys
import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.endpoints import check_agent_id
from airflow_provider_agents.api.errors import AgentsError, BudgetExceededError, one_line
from airflow_provider_agents.api.retry import START_PATIENCE_SECONDS, RetryWindow
from airflow_provider_agents.cli.command import command_of, how_to_look
from airflow_provider_agents.cli.exit_codes import ExitCode
from airflow_provider_agents.cli.extras import RULE, extras_of
from airflow_provider_agents.cli.findings import findings_of, warnings_of
from airflow_provider_agents.cli.observations import Observations
from airflow_provider_agents.cli.observing import observe
from airflow_provider_agents.cli.output import LONGEST_LINE, print_rows, print_text, say
from airflow_provider_agents.hooks import AgentsHook

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from airflow_provider_agents.cli.findings import Finding
    from airflow_provider_agents.cli.observations import ProbedRun

_LINE_WIDTH = 110


@command_of
def probe(args: Namespace) -> ExitCode:
    """Start some runs, and report how the platform behaves."""
    settings = AgentsHook(args.conn_id).settings()
    agent_id = check_agent_id(args.agent_id)
    refused = _confirm(args, agent_id)
    if refused is not None:
        say("Nothing was started.")
        return refused
    seen = Observations(agent_id=agent_id, wanted=args.runs)
    interrupted = out_of_budget = False
    try:
        with Client(
            settings,
            window=RetryWindow(START_PATIENCE_SECONDS, warn=say),
            on_response=seen.record_response,
        ) as client:
            observe(client, seen, say=say)
    except AgentsError as error:
        seen.stopped_by, out_of_budget = str(error), isinstance(error, BudgetExceededError)
    except KeyboardInterrupt:
        interrupted, seen.stopped_by = True, "Interrupted."
    if seen.stopped_by is not None:
        say(seen.stopped_by)
    in_doubt = any(run.is_in_doubt for run in seen.runs)
    if not seen.accepted and not in_doubt:
        if not out_of_budget:  # whose error has said so
            say("Nothing was started.")
        return ExitCode.INTERRUPTED if interrupted else ExitCode.NOT_DONE
    findings = findings_of(seen)
    _print_report(args, seen, findings)
    for code, is_so in (
        (ExitCode.INTERRUPTED, interrupted),
        (ExitCode.RUN_IN_DOUBT, in_doubt),
        (ExitCode.RUN_STILL_RUNNING, not seen.is_complete),
        (ExitCode.NOT_DONE, bool(warnings_of(findings))),
    ):
        if is_so:
            return code
    return ExitCode.DONE


def _confirm(args: Namespace, agent_id: str) -> ExitCode | None:
    """Print what the command costs, and ask; None if the runs may be started."""
    runs = "1 run" if args.runs == 1 else f"{args.runs} runs, one after the other"
    say(f"This starts {runs}, of agent {agent_id}. Each run costs money and cannot be cancelled.")
    if args.yes:
        return None
    if not sys.stdin.isatty():
        say("There is no terminal to confirm on. Add --yes to start the runs without a question.")
        return ExitCode.WRONG_ARGUMENTS
    print("Start? [y/N] ", end="", file=sys.stderr, flush=True)
    return None if sys.stdin.readline().strip().lower() in {"y", "yes"} else ExitCode.NOT_DONE


def _print_report(args: Namespace, seen: Observations, findings: Sequence[Finding]) -> None:
    extras, warnings = extras_of(seen), warnings_of(findings)
    runs = [_run_record(seen, run) for run in seen.runs]
    hint = _how_to_look(args, seen)
    if args.output == "json":
        record = {
            "agentId": seen.agent_id,
            "complete": seen.is_complete,
            "stoppedBy": seen.stopped_by,
            "lookWith": hint,
            "runs": runs,
            "findings": [finding.to_json() for finding in findings],
            "extras": extras,
            "rule": RULE,
            "warnings": warnings,
        }
        print_rows("json", [record], [], "")
    else:
        print_text(_report(seen, runs, findings, hint))


def _how_to_look(args: Namespace, seen: Observations) -> str | None:
    """The command that lists the runs, if one of them may still be running."""
    if all(run.is_over for run in seen.runs):
        return None
    first = seen.runs[0]
    since = first.server_before or first.sent_at
    return how_to_look(args, seen.agent_id, since - timedelta(minutes=1)) if since is not None else None


def _run_record(seen: Observations, run: ProbedRun) -> dict[str, Any]:
    event = run.event
    return {
        "agentId": seen.agent_id,
        "requestId": run.request_id,
        "accepted": run.is_accepted,
        "eventIds": run.candidate_ids,
        "status": event.status if event is not None else None,
        "delay": round(run.delay, 3) if run.delay is not None else None,
    }


def _report(
    seen: Observations, runs: Sequence[dict[str, Any]], findings: Sequence[Finding], hint: str | None
) -> Iterator[str]:
    yield f"Runs started: {len(seen.accepted)} of {seen.wanted}."
    for run in runs:
        state = run["status"] or ("no known event" if run["accepted"] else "it is not known whether it was started")
        ids = (
            f"agent={run['agentId']} request_id={run['requestId'] or '-'} event={','.join(run['eventIds'][:5]) or '-'}"
        )
        yield f"  {one_line(state, 60)} {one_line(ids, LONGEST_LINE)}"
    if hint is not None:
        yield f"Not every run was seen to its end. Runs cannot be cancelled. Look at them with: {hint}"
    for finding in findings:
        yield ""
        yield from _wrapped(f"{finding.question} {finding.text}", "")
        yield from _wrapped(finding.meaning if finding.holds is not False else f"WARNING: {finding.meaning}", "    ")
    yield ""
    extras = extras_of(seen)
    if extras is None:
        yield "No extras can be given: no event was seen, or one did not appear in time."
    else:
        yield f"Extras for the connection: {json.dumps(extras)}"
        yield from _wrapped(RULE, "    ")
    warnings = [finding for finding in findings if finding.holds is False]
    yield f"Warnings: {len(warnings)}." if warnings else "All that this provider assumes, and these runs show, holds."


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _LINE_WIDTH, initial_indent=indent, subsequent_indent=indent or "    ")
