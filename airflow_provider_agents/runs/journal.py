"""Which runs have ended since the last look: everybody's, each once. Pure.

A `Journal` is watched like a run, but it never comes to an end. What it relies on:

- a look shows every event that was created since the journal's floor, and those that are PENDING;
- the event of a run appears within `settle` seconds.

So whatever was created before the floor, which stays that far behind the looks, has been seen: it was over then, or it
is followed until it is. The cursor holds just that: the floor, what is followed, and what has ended above the floor.

The cursor names a run as reported only after `ended` has returned the run. Until then the cursor keeps the run within
reach of a restart: its floor stays below the run, or the run is still among those that are followed.

A followed run that no listing shows any more is given up after an hour, and named by `lost`.

An event that is there and cannot be read is followed like a run that goes on, so that it is told once it can be read,
however far the floor has moved by then. One without a readable id cannot be, which whoever reads it has to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict

from airflow_provider_agents.api.models import ExecutionEvent, Status
from airflow_provider_agents.runs.matching import TOLERANCE, Look, Seek, clock_at_least, is_young
from airflow_provider_agents.runs.verdict import fresher, is_terminal
from airflow_provider_agents.versioned_json import VersionedJson

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: `ended` returns at most this many runs, and at most this many bytes of JSON unless a single run is larger. Airflow
#: logs each asset event, sends it through a pipe, stores it in one row and loads it in every DAG run that it starts. An
#: event as the API's page shows it takes about 500 bytes, so both limits stand for about a quarter of a megabyte.
MOST_RUNS_AT_ONCE, MOST_BYTES_AT_ONCE = 500, 256 * 1024
#: A followed run that no listing shows any more is given up after so long. What hides a run for a while (a replica that
#: lags, a row that is written anew) takes seconds or minutes; what takes an hour is a deleted agent, or a platform that
#: keeps runs for a limited time. To look for such a run costs up to two requests in each cycle.
LOST_AFTER = timedelta(hours=1)
#: Between two looks no more than this counts as time in which the run was not shown: an outage says nothing.
_MOST_BETWEEN_LOOKS = timedelta(minutes=5)
_OLDEST = datetime.min.replace(tzinfo=UTC)
#: A journal begins this long before our clock where nothing tells the server's and there is no event. No clock is so
#: far off.
_EMPTY_HISTORY = timedelta(days=1)


class Followed(BaseModel):
    """A run that had not ended: what is needed to find it again.

    Attributes:
        agent_id: the agent, if the event said so.
        started_at: as the event said.
        created_at: as the event said.
        absent_seconds: for how long no listing has shown the run.
    """

    model_config = ConfigDict(frozen=True)

    agent_id: str | None = None
    started_at: AwareDatetime | None = None
    created_at: AwareDatetime | None = None
    absent_seconds: float = 0.0


class Cursor(VersionedJson):
    """How far a journal has come. JSON in, JSON out.

    Attributes:
        floor: everything that was created before is known, on the server's clock.
        followed: what had not ended, or had ended and was not reported yet, by the event's id.
        told: ids of events that had ended, as far as a look from the floor on would show them again.
        since: runs that ended before are not reported, on the server's clock; None once the floor has passed it.
    """

    _called: ClassVar = "The watcher's checkpoint"

    floor: AwareDatetime
    followed: dict[str, Followed] = {}  # noqa: RUF012 - pydantic copies it
    told: tuple[str, ...] = ()
    since: AwareDatetime | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(slots=True)
class _Told:
    """A run whose end is known.

    Attributes:
        seen_at: when the end was last seen, on the server's clock; None until the next look says what time it is.
        latest: when the run was created or ended, whichever is later; None if the event does not say.
    """

    seen_at: datetime | None
    latest: datetime | None = None


class Journal:
    """The runs of one agent, or of the whole account, that end.

    Args:
        agent_id: the agent; None for the whole account.
        settle: seconds within which the event of a run appears.
        cursor: where an earlier journal has got to.
        statuses: which ends `ended` reports; None reports all of them.
    """

    def __init__(
        self, agent_id: str | None, settle: float, cursor: Cursor, *, statuses: Collection[str] | None = None
    ) -> None:
        self.agent_id = agent_id
        self._behind = timedelta(seconds=settle) + TOLERANCE
        self._statuses = frozenset(statuses) if statuses is not None else None
        self._floor, self._since = cursor.floor, cursor.since
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
        # What has ended. Kept as long as a look might show it again, be it from a replica that lags.
        self._told = {event_id: _Told(None) for event_id in cursor.told}
        # What `ended` has not returned yet. A look from the floor on would not show all of it again: what it would not
        # show stays among the followed runs of the cursor.
        self._unreported: dict[str, ExecutionEvent] = {}
        self._out_of_reach: set[str] = set()
        # For how long each followed run was not shown, by looks in which it ought to have been.
        self._absent = {
            event_id: timedelta(seconds=known.absent_seconds)
            for event_id, known in cursor.followed.items()
            if known.absent_seconds > 0.0
        }
        self._absent_before: frozenset[str] = frozenset()
        self._lost: list[ExecutionEvent] = []
        self._looked_at: datetime | None = None
        #: How many complete looks there were.
        self.looks = 0

    @classmethod
    def from_now(
        cls,
        agent_id: str | None,
        settle: float,
        server_now: datetime | None,
        seen: Collection[ExecutionEvent] = (),
        *,
        local_now: datetime | None = None,
        statuses: Collection[str] | None = None,
    ) -> Self:
        """A journal of what ends from now on: what had ended before is not reported.

        Args:
            agent_id: as above.
            settle: as above.
            server_now: the server's clock; None if it did not tell.
            seen: events that were asked for after that: all that are active, and without the server's clock the newest.
            local_now: our clock, needed without the server's.
            statuses: as above.
        """
        if server_now is None:
            if local_now is None:
                raise ValueError("One of server_now and local_now is needed.")
            server_now = _passed(seen, local_now) or local_now - _EMPTY_HISTORY
        floor = server_now - timedelta(seconds=settle) - TOLERANCE
        journal = cls(agent_id, settle, Cursor(floor=floor, since=server_now), statuses=statuses)
        journal._followed = {event.id: event for event in seen if not is_terminal(event) and not event.lacks_id}
        for event in seen:
            if is_terminal(event) and journal._is_new(event):
                journal._note_told(event, None)
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
        self.looks += 1
        # The floor may lag behind the server's clock, and must never be ahead of it.
        server_now = look.server_time or _passed(look.events, began_at) or self._floor + self._behind
        for told in self._told.values():
            told.seen_at = told.seen_at or max(server_now, told.latest or server_now)
        for event in look.events:
            self._take_event(event, server_now)
        self._count_absent(look.absent, began_at)
        self._floor = max(self._floor, server_now - self._behind)
        # A new one each time: what is followed has changed, or might have.
        self._seek = Seek(floor=self._floor, ids=(), ripe_at=None)
        for event_id in [
            event_id for event_id, told in self._told.items() if told.seen_at is not None and told.seen_at < self._floor
        ]:
            del self._told[event_id]

    def _take_event(self, event: ExecutionEvent, server_now: datetime) -> None:
        known = self._told.get(event.id)
        if known is not None:
            known.latest = _latest(event)
            if self._is_new(event):
                # Without its id nothing would say that it is known, so the id is remembered as long as it is shown.
                known.seen_at = max(known.seen_at or server_now, server_now)
        elif event.unreadable is not None and not self._is_to_be_followed(event):
            pass
        elif not is_terminal(event) or event.id in self._followed:
            self._note(event, server_now)
        elif self._ended_before_the_watch(event):
            self._note_told(event, server_now)
        elif self._is_new(event):
            self._note(event, server_now)
        # Else it stands on the same page as what is young, and was over long ago.

    def _count_absent(self, absent: frozenset[str], began_at: datetime) -> None:
        passed = began_at - self._looked_at if self._looked_at is not None else timedelta()
        self._looked_at = began_at
        for event_id in self._absent_before - absent:
            self._absent.pop(event_id, None)
        self._absent_before = absent.intersection(self._followed)
        for event_id in self._absent_before:
            seconds = self._absent.get(event_id, timedelta()) + min(max(passed, timedelta()), _MOST_BETWEEN_LOOKS)
            self._absent[event_id] = seconds
            if seconds >= LOST_AFTER:
                self._lost.append(self._followed.pop(event_id))
                del self._absent[event_id]

    def _is_new(self, event: ExecutionEvent) -> bool:
        """Whether an event that has ended was not known to any look before.

        It was created since the floor, or it has ended since: a listing in the order of the last change may have moved
        the event from a page that was still to be read to one that had been.
        """
        return is_young(event, self._floor) or (event.completedAt is not None and event.completedAt >= self._floor)

    def _ended_before_the_watch(self, event: ExecutionEvent) -> bool:
        if self._since is None:
            return False
        ended = event.completedAt or event.updatedAt or event.created_by
        return ended is None or ended < self._since

    def update(self, event: ExecutionEvent) -> None:
        """A followed run has changed."""
        if event.id in self._followed:
            # It was shown, and no earlier process has known that.
            self._absent.pop(event.id, None)
            self._note(event, None)

    def expire(self) -> None:
        """Nothing ends a journal."""

    def _is_to_be_followed(self, unreadable: ExecutionEvent) -> bool:
        # An old one was seen before: it was over then, or it is followed.
        return not unreadable.lacks_id and (unreadable.id in self._followed or is_young(unreadable, self._floor))

    def _note(self, event: ExecutionEvent, seen_at: datetime | None) -> None:
        latest = fresher(self._followed.get(event.id), event)
        if not is_terminal(latest):
            self._followed[event.id] = latest
            return
        self._absent.pop(event.id, None)
        was_followed = self._followed.pop(event.id, None) is not None
        self._note_told(latest, seen_at)
        if self._statuses is None or latest.status in self._statuses:
            self._unreported[event.id] = latest
            created = latest.created_by
            if was_followed or created is None or created < self._floor:
                self._out_of_reach.add(event.id)

    def _note_told(self, event: ExecutionEvent, seen_at: datetime | None) -> None:
        latest = _latest(event)
        if seen_at is not None:
            # As long as the event itself is younger than the floor, a look may show it again.
            seen_at = max(seen_at, latest or event.created_by or seen_at)
        self._told[event.id] = _Told(seen_at, latest)

    @property
    def has_ended(self) -> bool:
        """Whether `ended` would return anything."""
        return bool(self._unreported)

    def ended(self) -> list[ExecutionEvent]:
        """The next runs that have ended and were not returned before, in the order of the ends.

        Of more than one call can return, those that were created first come first, so that the cursor's floor follows.
        """
        chosen: list[ExecutionEvent] = []
        size = 0
        for event in sorted(self._unreported.values(), key=lambda event: (event.created_by or _OLDEST, event.id)):
            size += _bytes_of(event)
            if chosen and (len(chosen) >= MOST_RUNS_AT_ONCE or size > MOST_BYTES_AT_ONCE):
                break
            chosen.append(event)
        for event in chosen:
            del self._unreported[event.id]
            self._out_of_reach.discard(event.id)
        return sorted(chosen, key=lambda event: (event.completedAt is None, event.completedAt, event.id))

    def lost(self) -> list[ExecutionEvent]:
        """The followed runs that were given up since this was last asked, as they were last seen."""
        found, self._lost = self._lost, []
        return found

    def cursor(self) -> Cursor:
        """How far it has come with what `ended` has returned."""
        held = [event.created_by for event in self._unreported.values() if event.id not in self._out_of_reach]
        floor = min([self._floor, *(created for created in held if created is not None)])
        followed = (*self._followed.values(), *(self._unreported[event_id] for event_id in self._out_of_reach))
        return Cursor(
            floor=floor,
            followed={
                event.id: Followed(
                    agent_id=event.agentId,
                    started_at=event.startedAt,
                    created_at=event.createdAt,
                    absent_seconds=self._absent.get(event.id, timedelta()).total_seconds(),
                )
                for event in followed
            },
            told=tuple(
                sorted(
                    event_id
                    for event_id, told in self._told.items()
                    if event_id not in self._unreported and (told.latest is None or told.latest >= floor)
                )
            ),
            since=self._since if self._since is not None and self._since > floor else None,
        )


def _bytes_of(event: ExecutionEvent) -> int:
    """About how many bytes an event takes as JSON. Unlike JSON itself, this cannot fail for odd characters."""
    return len(ascii(event.model_dump(mode="json", exclude_unset=True)))


def _passed(events: Iterable[ExecutionEvent], local_now: datetime) -> datetime | None:
    """A moment that the server's clock has passed, as far as its events tell; no later than our clock says.

    Our clock may be ahead, and the stamp of one odd event may be. Both would hide runs that are still to begin.
    """
    stamp = clock_at_least(None, events)
    return min(stamp, local_now) if stamp is not None else None


def _latest(event: ExecutionEvent) -> datetime | None:
    created, ended = event.created_by, event.completedAt
    return max(created, ended) if created is not None and ended is not None else None
