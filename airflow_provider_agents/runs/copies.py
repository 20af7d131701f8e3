"""The copy of a task's record: it outlives a clear, and other tasks can read it. JSON in, JSON out.

It is kept under a key of two parts: whose runs, and which task's. So all copies of one agent can be listed by the first
part, and a task whose agent or connection was changed does not find the copy of the run before.
"""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from airflow_provider_agents.runs.record import Phase, RunRecord
from airflow_provider_agents.runs.starts import Start
from airflow_provider_agents.versioned_json import Moment, Seconds, UnusableDataError, VersionedJson

#: What the keys of all copies begin with.
PREFIX = "agent_run/"
#: Hexadecimal digits of each part: 128 bits. Airflow's keys have at most 250 characters.
_DIGITS = 32


class TaskPlace(BaseModel):
    """Which task instance, over all its tries.

    Attributes:
        map_index: -1 for a task that is not mapped.
        loop_index: the iteration of a task in a loop, from 0; None outside of loops.
    """

    model_config = ConfigDict(frozen=True)

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    loop_index: int | None = None

    @property
    def name(self) -> str:
        """The task in words, without its DAG run: `dag.task[3] in iteration 2`."""
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        looped = f" in iteration {self.loop_index}" if self.loop_index is not None else ""
        return f"{self.dag_id}.{self.task_id}{mapped}{looped}"


def prefix_of(agents_conn_id: str, agent_id: str) -> str:
    """What the keys of all copies of one agent begin with."""
    return f"{PREFIX}{_hash(agents_conn_id, agent_id)}/"


def key_of(agents_conn_id: str, agent_id: str, place: TaskPlace) -> str:
    """The key of one task's copy."""
    return f"{prefix_of(agents_conn_id, agent_id)}{_hash(*place.model_dump().values())}"


def _hash(*parts: str | int | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS]


class RecordCopy(VersionedJson):
    """A copy of a record, while a run is or may be under way, and for some minutes after its end.

    Attributes:
        place: whose record it is.
        record: the record; it never holds a result.
        written_at: when it was written, on the clock of the worker.
        until: after this moment no try of the task needs it, and no task that started the agent beside it.
        settle: how the task waits, in seconds; None if that is unknown.
        appear_within: the same.
        given_event_id: the event that the task was given, once it has ended; None if it was given none.
    """

    _called: ClassVar = "The copy of a task's record"

    place: TaskPlace
    record: RunRecord
    written_at: Moment
    until: Moment
    settle: Seconds | None = None
    appear_within: Seconds | None = None
    given_event_id: str | None = None

    @property
    def start(self) -> Start | None:
        """The start of the task's run; None unless the platform has certainly accepted it."""
        submission = self.record.submission
        is_accepted = self.record.phase != Phase.SUBMITTING and not submission.in_doubt and submission.event_id is None
        if not is_accepted or self.settle is None or self.appear_within is None:
            return None
        return Start(submission, self.settle, self.appear_within, self.given_event_id)

    @property
    def key(self) -> str:
        """What the copy is kept under."""
        return key_of(self.record.agents_conn_id, self.record.submission.agent_id, self.place)

    def to_text(self) -> str:
        """As JSON."""
        return self.model_dump_json()

    @classmethod
    def kept_under(cls, key: str, text: str) -> Self:
        """Read what `to_text` returned and was kept under a key.

        Raises:
            UnusableDataError: it is something else, or the copy of another task.
        """
        copy = cls.from_text(text)
        if copy.key != key:
            raise UnusableDataError(f"{cls._called} is the one of another task: {key}")
        return copy
