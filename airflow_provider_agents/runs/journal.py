"""Which runs have ended since the last look: everybody's, each once. Pure.

A `Journal` is watched like a run, but it never comes to an end. What it relies on:

- a look shows every event that was created since the journal's floor, and those that are PENDING;
- the event of a run appears within `settle` seconds.

So whatever was created before the floor, which stays that far behind the looks, has been seen: it was over then, or it
is followed until it is. The cursor holds just that: the floor, what is followed, and what has ended above the floor.

An event that is there and cannot be read is followed like a run that goes on, so that it is told once it can be read,
however far the floor has moved by then. One without a readable id cannot be, which whoever reads it has to say.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from airflow_provider_agents.api.models import ExecutionEvent, Status
from airflow_provider_agents.runs.matching import TOLERANCE, Look, Seek, is_young
from airflow_provider_agents.runs.verdict import fresher, is_terminal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class Followed(BaseModel):
    """A run that had not ended: what is needed to find it again."""

    model_config = ConfigDict(frozen=True)

    agent_id: str | None = None
    started_at: AwareDatetime | None = None
    created_at: AwareDatetime | None = None


class Cursor(BaseModel):
    """How far a journal has come. JSON in, JSON out.

    Attributes:
        floor: everything that was created before is known, on the server's clock.
        followed: what had not ended, by the event's id.
        told: ids of events above the floor that had ended.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    floor: AwareDatetime
    followed: dict[str, Followed] = {}
    told: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def from_json(cls, value: object) -> Self | None:
        """Read what `to_json` gave; None if it is something else."""
        try:
            return cls.model_validate(value)
        except ValidationError:
            return None


class Journal:
    """The runs of one agent, or of the whole account, that end.

    Args:
        agent_id: the agent, or `feed.tickets.ACCOUNT`.
        settle: seconds within which the event of a run appears.
        cursor: where an earlier journal has got to.
    """

    def __init__(self, agent_id: str, settle: float, cursor: Cursor) -> None:
        self.agent_id = agent_id
        self._behind = timedelta(seconds=settle) + TOLERANCE
        self._floor = cursor.floor
        self._seek = Seek(floor=self._floor, ids=(), ripe_at=None)
        self._followed = {
            event_id: ExecutionEvent(
                id=event_id,
                status=Status.RUNNING if known.started_at is not None else Status.PENDING,
                agentId=known.agent_id,
                startedAt=known.started_at,
                createdAt=known.created_at,
            )
            for event_id, known in cursor.followed.items()
        }
        # What has ended, and when that was seen, on the server's clock. Kept as long as a look might show it again, be
        # it from a replica that lags.
        self._told: dict[str, datetime] = dict.fromkeys(cursor.told, self._floor + self._behind)
        self._between_looks: list[str] = []
        self._ended: dict[str, ExecutionEvent] = {}
        #: How many complete looks there were.
        self.looks = 0

    @classmethod
    def from_now(
        cls, agent_id: str, settle: float, server_now: datetime, active: Iterable[ExecutionEvent] = ()
    ) -> Self:
        """A journal of what ends from now on: the first look tells of nothing.

        Args:
            agent_id: as above.
            settle: as above.
            server_now: the server's clock.
            active: the runs that go on, asked for after that.
        """
        journal = cls(agent_id, settle, Cursor(floor=server_now - timedelta(seconds=settle) - TOLERANCE))
        journal.looks = -1
        journal._followed = {event.id: event for event in active if not is_terminal(event) and not event.lacks_id}
        return journal

    @property
    def seek(self) -> Seek:
        """Everything since the floor."""
        return self._seek

    @property
    def going_on(self) -> Collection[ExecutionEvent]:
        """The runs whose end is still to be told."""
        return self._followed.values()

    def take(self, look: Look, began_at: datetime) -> None:
        """A complete look."""
        first_ever = self.looks < 0
        self.looks += 1
        server_now = look.server_time or began_at
        self._told.update(dict.fromkeys(self._between_looks, server_now))
        self._between_looks.clear()
        for event in look.events:
            if event.id in self._told or (event.unreadable is not None and not self._is_to_be_followed(event)):
                continue
            if not is_terminal(event) or event.id in self._followed:
                self._note(event, server_now)
            elif is_young(event, self._floor):
                if first_ever:
                    self._told[event.id] = server_now
                else:
                    self._note(event, server_now)
            # Else it stands on the same page as what is young, and was over long ago.
        self._floor = max(self._floor, server_now - self._behind)
        # A new one each time: what is followed has changed, or might have.
        self._seek = Seek(floor=self._floor, ids=(), ripe_at=None)
        for event_id in [event_id for event_id, seen_at in self._told.items() if seen_at < self._floor]:
            del self._told[event_id]

    def update(self, event: ExecutionEvent) -> None:
        """A followed run has changed."""
        if event.id in self._followed:
            self._note(event, None)

    def expire(self) -> None:
        """Nothing ends a journal."""

    def _is_to_be_followed(self, unreadable: ExecutionEvent) -> bool:
        # An old one was seen before: it was over then, or it is followed.
        return not unreadable.lacks_id and (unreadable.id in self._followed or is_young(unreadable, self._floor))

    def _note(self, event: ExecutionEvent, seen_at: datetime | None) -> None:
        latest = fresher(self._followed.get(event.id), event)
        if is_terminal(latest):
            self._followed.pop(event.id, None)
            self._ended[event.id] = latest
            if seen_at is not None:
                self._told[event.id] = seen_at
            else:
                self._between_looks.append(event.id)
        else:
            self._followed[event.id] = latest

    def ended(self) -> list[ExecutionEvent]:
        """What has ended since this was last asked, in the order of the ends."""
        found, self._ended = self._ended, {}
        return sorted(found.values(), key=lambda event: (event.completedAt is None, event.completedAt, event.id))

    def cursor(self) -> Cursor:
        """How far it has come, once all that has ended was told."""
        return Cursor(
            floor=self._floor,
            followed={
                event.id: Followed(agent_id=event.agentId, started_at=event.startedAt, created_at=event.createdAt)
                for event in self._followed.values()
            },
            told=tuple(sorted({*self._told, *self._between_looks})),
        )
