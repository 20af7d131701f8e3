"""Which task of this Airflow started a run: from the task's XCom, or from the record of a task that still waits.

A link is left out where that is not known for certain.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.configuration import conf
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_agents.runs.matching import Found, match
from airflow_provider_agents.runs.record import Phase, RunRecord
from airflow_provider_agents.runs.submission import UNCONFIRMED_SECONDS
from airflow_provider_agents.task_state import RECORD_KEY
from airflow_provider_agents.versioned_json import UnusableDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_provider_agents.api.models import ExecutionEvent

log = logging.getLogger(__name__)

_EVENT_KEY = "event_id"
#: An XCom is written after its run has begun, on clocks that may differ by less than this.
_SKEW = timedelta(hours=1)
#: Rows that are read: the page shows some hundred runs, and other tasks may use the same key.
_MOST_ROWS = 5000
#: Days for which a task that waits is looked for.
_LONGEST_WAIT = timedelta(days=8)


@dataclass(frozen=True, slots=True)
class TaskInstanceKey:
    """A task instance; `map_index` is -1 for one that is not mapped."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int

    @property
    def path(self) -> str:
        """Its page, below Airflow's base URL."""
        dag, run, task = (quote(part, safe="") for part in (self.dag_id, self.run_id, self.task_id))
        mapped = f"/mapped/{self.map_index}" if self.map_index >= 0 else ""
        return f"/dags/{dag}/runs/{run}/tasks/{task}{mapped}"


def tasks_of(conn_id: str, events: Sequence[ExecutionEvent], now: datetime) -> dict[str, TaskInstanceKey]:
    """The task instance that started each run, by the event's id. Reads Airflow's database; raises nothing.

    Args:
        conn_id: the connection over which the events were read.
        events: the runs.
        now: the time, on our clock.
    """
    created = [event.created_by for event in events if event.created_by is not None]
    backend = conf.get("core", "xcom_backend", fallback="") or ""
    if not created or (backend and not backend.endswith(".BaseXCom")):
        return {}
    try:
        found = _by_record(conn_id, events, now)
        found.update(_by_xcom({event.id for event in events}, min(created) - _SKEW))
    except Exception:
        log.exception("The tasks of runs could not be looked up. The page shows the runs without links.")
        return {}
    return found


def _by_xcom(event_ids: set[str], since: datetime) -> dict[str, TaskInstanceKey]:
    model: Any = XComModel
    query = (
        select(model.value, model.dag_id, model.run_id, model.task_id, _map_index_of(model))
        .where(model.key == _EVENT_KEY, model.timestamp >= since)
        .order_by(model.timestamp.desc())
        .limit(_MOST_ROWS)
    )
    with create_session() as session:
        rows = session.execute(query).all()
    # The oldest of an event's XComs comes last here, and stays: a sensor writes the key after the task that started it.
    return {event_id: TaskInstanceKey(*key) for value, *key in rows if (event_id := _text(value)) in event_ids}


def _map_index_of(model: Any) -> Any:
    """The column with the index of a mapped task.

    Airflow 3.4 also counts the rounds of a loop in it; those are no mapped tasks, and lead to the task of the loop.
    """
    try:
        from airflow.models.task_coordinates import public_map_index_expression  # type: ignore[import-not-found]
    except ImportError:  # before Airflow 3.4
        return model.map_index
    return public_map_index_expression(model)


def _text(value: object) -> str:
    # Airflow's server writes text as JSON inside JSON, its task SDK as it is.
    if isinstance(value, str) and value.startswith('"'):
        try:
            value = json.loads(value)
        except ValueError:
            return ""
    return value if isinstance(value, str) else ""


def _by_record(conn_id: str, events: Sequence[ExecutionEvent], now: datetime) -> dict[str, TaskInstanceKey]:
    claims: list[tuple[str, TaskInstanceKey]] = []
    for value, key in _records(now - _LONGEST_WAIT):
        event_id = _event_of(value, conn_id, events, now)
        if event_id is not None:
            claims.append((event_id, key))
    times = Counter(event_id for event_id, _ in claims)
    return {event_id: key for event_id, key in claims if times[event_id] == 1}


def _records(since: datetime) -> Iterable[tuple[str, TaskInstanceKey]]:
    try:
        from airflow.models.task_state_store import TaskStateStoreModel
    except ImportError:  # before Airflow 3.3
        return
    model: Any = TaskStateStoreModel
    query = (
        select(model.value, model.dag_id, model.run_id, model.task_id, _map_index_of(model))
        .where(model.key == RECORD_KEY, model.updated_at >= since)
        .order_by(model.updated_at.desc())
        .limit(_MOST_ROWS)
    )
    with create_session() as session:
        rows = session.execute(query).all()
    for value, *key in rows:
        yield value, TaskInstanceKey(*key)


def _event_of(value: str, conn_id: str, events: Iterable[ExecutionEvent], now: datetime) -> str | None:
    """The event of the run that a task waits for, if it is known for certain."""
    try:
        record = RunRecord.from_json(json.loads(value))
    except (ValueError, TypeError, RecursionError, UnusableDataError):
        return None
    if record.phase not in (Phase.ACCEPTED, Phase.DEFERRED) or record.agents_conn_id != conn_id:
        return None
    submission = record.submission
    if submission.in_doubt:
        return submission.event_id
    window = submission.window
    passed = window.passed(now - (submission.sent_at or submission.taken_at), None)
    own = [event for event in events if event.agentId == submission.agent_id]
    found = match(window, own, passed, settle=UNCONFIRMED_SECONDS, appear_within=UNCONFIRMED_SECONDS)
    return found.event.id if isinstance(found, Found) and not found.late else None
