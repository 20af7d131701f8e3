"""The starts of an agent, as its tasks write them down for each other: in the copies of their records.

A copy is an Airflow Variable. Each function here may raise whatever Airflow raises, and blocks: a triggerer calls it in
a thread. The callers log failures, and fail no task.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.clock import now
from airflow_provider_agents.runs.copies import RecordCopy, prefix_of
from airflow_provider_agents.runs.record import Phase
from airflow_provider_agents.version_compat import TRIGGERS_END_TASKS, clears_discard_state
from airflow_provider_agents.versioned_json import UnusableDataError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from airflow_provider_agents.runs.starts import Start

log = logging.getLogger(__name__)

#: The section of Airflow's configuration, and the option in it.
SECTION, OPTION = "agents", "share_starts"
#: The most copies that are read at once: at 25 ms each, they take ten seconds. To leave one out makes no verdict wrong.
MOST_READ = 400
#: Of an agent's copies, a start looks at this many to delete those that no longer matter. Each start adds one copy, so
#: about a fifth of all copies are old ones.
_LOOKED_AT = 5


def are_copies_kept() -> bool:
    """Whether tasks keep copies of their records.

    Airflow 3.4 and later need them for clears. On 3.3 the starts of an agent are their only use, so the configuration
    must ask for them.
    """
    if clears_discard_state() or not TRIGGERS_END_TASKS:
        return clears_discard_state()
    from airflow.providers.common.compat.sdk import conf

    try:
        return bool(conf.getboolean(SECTION, OPTION, fallback=False))
    except Exception as error:  # noqa: BLE001 - a wrong option fails no task
        log.warning("[%s] %s counts as False: %s", SECTION, OPTION, error)
        return False


def log_advice(task_log: Any) -> None:
    """Log what to do about an ambiguous run where starts are not shared."""
    if are_copies_kept():
        return
    option = f"Set [{SECTION}] {OPTION} = True, or start" if TRIGGERS_END_TASKS else "Start"
    task_log.warning(
        "Only the tasks that wait in the same process were taken into account. A task of yours that waits in another "
        "triggerer or on a worker may have started one of these runs. %s the agent from one task at a time: in a pool "
        "with one slot and include_deferred, or with max_active_runs=1 for a backfill.",
        option,
    )


def sync_reader(agents_conn_id: str) -> Callable[[str], Sequence[Start]] | None:
    """Reads the starts of an agent over a connection, on a worker; None if starts are not shared."""
    return functools.partial(read_starts, agents_conn_id) if are_copies_kept() else None


def async_reader(agents_conn_id: str) -> Callable[[str], Awaitable[Sequence[Start]]] | None:
    """The same, on an event loop."""
    if not are_copies_kept():
        return None
    # In a thread: Airflow 3.3 has no other way that does not block the event loop.
    return lambda agent_id: asyncio.to_thread(read_starts, agents_conn_id, agent_id)


def read_starts(agents_conn_id: str, agent_id: str) -> list[Start]:
    """The starts of an agent. What cannot be read as a copy is left out."""
    starts = []
    for key in _keys(agents_conn_id, agent_id)[:MOST_READ]:
        copy = read_copy(key)
        start = copy.start if copy is not None else None
        if start is not None:
            starts.append(start)
    return starts


def _keys(agents_conn_id: str, agent_id: str) -> list[str]:
    from airflow.sdk import Variable

    # From Airflow 3.3 on. It asks the metadata database only.
    return list(Variable.keys(prefix=prefix_of(agents_conn_id, agent_id)))  # type: ignore[attr-defined, unused-ignore]


def read_copy(key: str) -> RecordCopy | None:
    """A copy that can be read; None otherwise."""
    from airflow.sdk import Variable

    text = Variable.get(key, default=None)
    try:
        return RecordCopy.kept_under(key, text) if text is not None else None
    except UnusableDataError:
        return None


def end_copy(key: str, event_id: str | None) -> None:
    """Write into a copy that its run has ended. Other tasks that started the agent beside it may still need it.

    Args:
        key: the copy's.
        event_id: the event that the task was given; None if it was given none.
    """
    from airflow.sdk import Variable

    copy = read_copy(key)
    if copy is None or copy.start is None:
        # It is of no use to another task.
        Variable.delete(key)
        return
    needed_for = timedelta(seconds=copy.start.settle + copy.start.appear_within)
    record = copy.record.changed(phase=Phase.ENDED)
    ended = copy.changed(record=record, given_event_id=event_id, written_at=now(), until=now() + needed_for)
    Variable.set(
        key,
        ended.to_text(),
        description=(
            f"Agent {record.submission.agent_id} has run for task {copy.place.name} of DAG run {copy.place.run_id}. "
            "Tasks that started the agent at the same time use this to tell their runs apart. The next start of the "
            "agent deletes this."
        ),
    )


def delete_old_copies(agents_conn_id: str, agent_id: str, *, but: str) -> None:
    """Delete copies of an agent that no longer matter, except the one under a key: all of a few, some of many."""
    from airflow.sdk import Variable

    keys = set(_keys(agents_conn_id, agent_id)) - {but}
    for key in random.sample(sorted(keys), min(_LOOKED_AT, len(keys))):
        copy = read_copy(key)
        if copy is not None and copy.until < now():
            Variable.delete(key)
