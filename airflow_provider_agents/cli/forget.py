"""`airflow agents forget`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow.models.variable import Variable
from airflow.utils.session import create_session
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from airflow_provider_agents.cli.command import command_of
from airflow_provider_agents.cli.exit_codes import ExitCode
from airflow_provider_agents.cli.output import clock_time, print_rows, say
from airflow_provider_agents.clock import now
from airflow_provider_agents.runs.copies import PREFIX, RecordCopy
from airflow_provider_agents.version_compat import clears_discard_state
from airflow_provider_agents.versioned_json import UnusableDataError

if TYPE_CHECKING:
    from argparse import Namespace


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


@command_of
def forget(args: Namespace) -> ExitCode:
    """Delete the copies of tasks' records that no longer matter."""
    written_before = now() - timedelta(seconds=args.older_than) if args.older_than is not None else None
    try:
        done = _forget(written_before, dry_run=args.dry_run)
    except SQLAlchemyError as error:
        say(
            f"Airflow's metadata database cannot be used, so nothing was deleted ({type(error).__name__}). Use the "
            "configuration of Airflow's scheduler."
        )
        return ExitCode.NOT_DONE
    copies = sorted(done.copies, key=lambda copy: copy.written_at)
    records = [{"variable": copy.key, **copy.model_dump(mode="json")} for copy in copies]
    summary = _what_was_forgotten(done, dry_run=args.dry_run)
    print_rows(args.output, records, [_copy_row(copy) for copy in copies], summary)
    if copies:
        say(summary)
    if done.unknown:
        say(f"Kept as well, since they are no copies that this version can read: {done.unknown} Variables {PREFIX}...")
    return ExitCode.DONE


def _forget(written_before: datetime | None, *, dry_run: bool) -> _Forgotten:
    """Delete copies from Airflow's metadata database.

    Args:
        written_before: which; None for those that no longer matter.
        dry_run: delete nothing.
    """
    done = _Forgotten([])
    rows = select(Variable).where(Variable.key.startswith(PREFIX, autoescape=True))
    if not dry_run:
        # Locked: a task may write one of these meanwhile, for a new run.
        rows = rows.with_for_update()
    with create_session() as session:
        for variable in session.scalars(rows):
            try:
                copy = RecordCopy.kept_under(variable.key, variable.val or "")
            except UnusableDataError:
                done.unknown += 1
                continue
            if copy.written_at >= written_before if written_before is not None else copy.until >= now():
                done.kept += 1
                continue
            done.copies.append(copy)
            if not dry_run:
                session.delete(variable)
    return done


def _what_was_forgotten(done: _Forgotten, *, dry_run: bool) -> str:
    if not done.copies and not done.kept:
        words = "There are no copies of tasks' records."
        if clears_discard_state():
            return words
        return f"{words} Tasks keep them on Airflow 3.4, and on 3.3 with share_starts."
    words = f"{'Copies that would be deleted' if dry_run else 'Copies deleted'}: {len(done.copies)}."
    return f"{words} Copies kept: {done.kept}."


def _copy_row(copy: RecordCopy) -> dict[str, str]:
    return {
        "task": copy.place.name,
        "DAG run": copy.place.run_id,
        "agent": copy.record.submission.agent_id,
        "requestId": copy.record.submission.request_id or "",
        "written (UTC)": clock_time(copy.written_at.astimezone(UTC)),
    }
