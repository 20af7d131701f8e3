"""Which runs have ended since the last listing: all runs, also those that other parties started, each once. Pure.

A `CompletionTracker` is polled like a run, but it never ends. It relies on two facts:

- A listing shows every event that was created since the watermark, and every event that is PENDING.
- The event of a run appears within `settle` seconds.

The watermark stays `settle` behind the listings. So each event that was created before the watermark has been seen.
Its run had ended then, or the run is followed until it ends. The checkpoint holds just that: the watermark, the open
runs, and the runs that ended above the watermark.

The checkpoint names a run as emitted only after `ended` has returned the run. Until then a restart can still find the
run: the watermark stays below the run, or the run is still among the open runs.

An open run that no listing shows any more is given up after an hour, and `lost` names it.

An event that cannot be read is followed like a run that is still running. It is emitted once it can be read, however
far the watermark has moved by then. An event without a readable id cannot be followed; the reader of the row logs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from airflow_provider_agents.api.models import ExecutionEvent, Identifier, Status
from airflow_provider_agents.runs.matching import TOLERANCE, SearchCriteria, clock_at_least, is_young
from airflow_provider_agents.runs.status import is_terminal, newer_of
from airflow_provider_agents.versioned_json import Moment, Seconds, VersionedJson

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from airflow_provider_agents.runs.listing import Listing

#: `ended` returns at most this many runs, and at most this many bytes of JSON unless a single run is larger. Airflow
#: logs each asset event, sends it through a pipe, stores it in one row and loads it in every DAG run that it starts. An
#: event as the API's page shows it takes about 500 bytes, so both limits stand for about a quarter of a megabyte.
MOST_RUNS_AT_ONCE, MOST_BYTES_AT_ONCE = 500, 256 * 1024
#: A followed run that no listing shows any more is given up after this time. A lag of a replica, or a row that is
#: written anew, hides a run for seconds or minutes. A run that is hidden for an hour is gone: its agent was deleted, or
#: the platform keeps runs for a limited time. To search for such a run costs up to two requests in each cycle.
LOST_AFTER = timedelta(hours=1)
#: Between two listings, no more than this counts as time in which the run was not shown: an outage proves nothing.
_MOST_BETWEEN_LISTINGS = timedelta(minutes=5)
_OLDEST = datetime.min.replace(tzinfo=UTC)
#: Without the server's clock and without an event, a tracker begins this long before our clock. No clock is so far off.
_EMPTY_HISTORY = timedelta(days=1)


class OpenRun(BaseModel):
    """A run that had not ended: what is needed to find it again.

    Attributes:
        agent_id: the agent, if the event names it.
        started_at: as in the event.
        created_at: as in the event.
        absent_seconds: for how long no listing has shown the run.
    """

    model_config = ConfigDict(frozen=True)

    agent_id: Identifier | None = None
    started_at: Moment | None = None
    created_at: Moment | None = None
    absent_seconds: Seconds = 0.0


class Checkpoint(VersionedJson):
    """How far a tracker has come. JSON in, JSON out.

    Attributes:
        watermark: everything that was created before is known, on the server's clock.
        open_runs: what had not ended, or had ended and was not reported yet, by the event's id.
        emitted: ids of events that had ended, as far as a listing since the watermark would show them again.
        since: runs that ended before are not reported, on the server's clock; None once the watermark has passed it.
    """

    _called: ClassVar = "The watcher's checkpoint"

    watermark: Moment
    open_runs: dict[Identifier, OpenRun] = {}  # noqa: RUF012 - pydantic copies it
    emitted: tuple[Identifier, ...] = ()
    since: Moment | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(slots=True)
class _Emitted:
    """A run whose end is known.

    Attributes:
        seen_at: when the end was last seen, on the server's clock; None until the next listing shows what time it is.
        latest: when the run was created or ended, whichever is later; None if the event has neither time.
    """

    seen_at: datetime | None
    latest: datetime | None = None


class CompletionTracker:
    """The runs of one agent, or of the whole account, that end.

    Args:
        agent_id: the agent; None for the whole account.
        settle: seconds within which the event of a run appears.
        checkpoint: how far an earlier tracker has come.
        statuses: which ends `ended` reports; None reports all of them.
    """

    def __init__(
        self, agent_id: str | None, settle: float, checkpoint: Checkpoint, *, statuses: Collection[str] | None = None
    ) -> None:
        self.agent_id = agent_id
        self._behind = timedelta(seconds=settle) + TOLERANCE
        self._statuses = frozenset(statuses) if statuses is not None else None
        self._watermark, self._since = checkpoint.watermark, checkpoint.since
        self._criteria = SearchCriteria(not_before=self._watermark, ids=(), decidable_at=None)
        self.has_changed = False
        self._open_runs = {
            event_id: ExecutionEvent(
                id=event_id,
                status=Status.RUNNING if known.started_at is not None else Status.PENDING,
                agentId=known.agent_id,
                startedAt=known.started_at,
                createdAt=known.created_at,
            )
            for event_id, known in checkpoint.open_runs.items()
        }
        # What has ended. Kept as long as a listing might show it again, perhaps from a replica that lags.
        self._emitted = {event_id: _Emitted(None) for event_id in checkpoint.emitted}
        # What `ended` has not returned yet. A listing since the watermark would not show all of it again: what it would
        # not show stays among the open runs of the checkpoint.
        self._unreported: dict[str, ExecutionEvent] = {}
        self._out_of_reach: set[str] = set()
        # For how long each followed run was not shown, by listings that ought to have shown it.
        self._absent = {
            event_id: timedelta(seconds=known.absent_seconds)
            for event_id, known in checkpoint.open_runs.items()
            if known.absent_seconds > 0.0
        }
        self._absent_before: frozenset[str] = frozenset()
        self._lost: list[ExecutionEvent] = []
        self._listed_at: datetime | None = None
        self._was_listed = False

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
        """A tracker of what ends from now on: what had ended before is not reported.

        Args:
            agent_id: as above.
            settle: as above.
            server_now: the server's clock; None if that is unknown.
            seen: events that were listed after that: all that are active, and without the server's clock the newest.
            local_now: our clock, needed without the server's.
            statuses: as above.
        """
        if server_now is None:
            if local_now is None:
                raise ValueError("One of server_now and local_now is needed.")
            server_now = _passed(seen, local_now) or local_now - _EMPTY_HISTORY
        watermark = server_now - timedelta(seconds=settle) - TOLERANCE
        tracker = cls(agent_id, settle, Checkpoint(watermark=watermark, since=server_now), statuses=statuses)
        tracker._open_runs = {event.id: event for event in seen if not is_terminal(event) and not event.lacks_id}
        for event in seen:
            if is_terminal(event) and tracker._is_new(event):
                tracker._record_emitted(event, None)
        return tracker

    @property
    def criteria(self) -> SearchCriteria:
        """Everything since the watermark."""
        return self._criteria

    @property
    def active(self) -> Collection[ExecutionEvent]:
        """The runs whose end is still to be reported."""
        return self._open_runs.values()

    def apply_listing(self, listing: Listing, began_at: datetime) -> None:
        """A complete listing."""
        self._was_listed = True
        # The watermark may lag behind the server's clock, and must never be ahead of it.
        server_now = listing.server_time or _passed(listing.events, began_at) or self._watermark + self._behind
        for emitted in self._emitted.values():
            emitted.seen_at = emitted.seen_at or max(server_now, emitted.latest or server_now)
        for event in listing.events:
            self._take_event(event, server_now)
        self._count_absent(listing.absent, began_at)
        self._watermark = max(self._watermark, server_now - self._behind)
        # What is followed has changed, or might have.
        self.has_changed = True
        self._criteria = SearchCriteria(not_before=self._watermark, ids=(), decidable_at=None)
        for event_id in [
            event_id
            for event_id, emitted in self._emitted.items()
            if emitted.seen_at is not None and emitted.seen_at < self._watermark
        ]:
            del self._emitted[event_id]

    def _take_event(self, event: ExecutionEvent, server_now: datetime) -> None:
        known = self._emitted.get(event.id)
        if known is not None:
            known.latest = _latest(event)
            if self._is_new(event):
                # Without its id nothing would show that it is known, so the id is remembered as long as it is shown.
                known.seen_at = max(known.seen_at or server_now, server_now)
        elif event.unreadable is not None and not self._is_to_be_followed(event):
            pass
        elif not is_terminal(event) or event.id in self._open_runs:
            self._record(event, server_now)
        elif self._ended_before_the_start(event):
            self._record_emitted(event, server_now)
        elif self._is_new(event):
            self._record(event, server_now)
        # Else it is on the same page as younger events, and ended long ago.

    def _count_absent(self, absent: frozenset[str], began_at: datetime) -> None:
        passed = began_at - self._listed_at if self._listed_at is not None else timedelta()
        self._listed_at = began_at
        for event_id in self._absent_before - absent:
            self._absent.pop(event_id, None)
        self._absent_before = absent.intersection(self._open_runs)
        for event_id in self._absent_before:
            seconds = self._absent.get(event_id, timedelta()) + min(max(passed, timedelta()), _MOST_BETWEEN_LISTINGS)
            self._absent[event_id] = seconds
            if seconds >= LOST_AFTER:
                self._lost.append(self._open_runs.pop(event_id))
                del self._absent[event_id]

    def _is_new(self, event: ExecutionEvent) -> bool:
        """Whether an event that has ended was not known to any earlier listing.

        It was created since the watermark, or it has ended since: in a listing in the order of the last change, the
        event may have moved from a page that was still to be read to a page that had been read.
        """
        return is_young(event, self._watermark) or (
            event.completedAt is not None and event.completedAt >= self._watermark
        )

    def _ended_before_the_start(self, event: ExecutionEvent) -> bool:
        if self._since is None:
            return False
        ended = event.completedAt or event.updatedAt or event.created_by
        return ended is None or ended < self._since

    def apply_event(self, event: ExecutionEvent) -> None:
        """A followed run has changed."""
        if event.id in self._open_runs:
            # It was shown, and no earlier process has known that.
            self._absent.pop(event.id, None)
            self._record(event, None)

    def expire(self) -> None:
        """Nothing ends a tracker of completions."""

    def _is_to_be_followed(self, unreadable: ExecutionEvent) -> bool:
        # An old one was seen before: it had ended then, or it is followed.
        return not unreadable.lacks_id and (unreadable.id in self._open_runs or is_young(unreadable, self._watermark))

    def _record(self, event: ExecutionEvent, seen_at: datetime | None) -> None:
        latest = newer_of(self._open_runs.get(event.id), event)
        if not is_terminal(latest):
            self._open_runs[event.id] = latest
            return
        self._absent.pop(event.id, None)
        was_followed = self._open_runs.pop(event.id, None) is not None
        self._record_emitted(latest, seen_at)
        if self._statuses is None or latest.status in self._statuses:
            self._unreported[event.id] = latest
            created = latest.created_by
            if was_followed or created is None or created < self._watermark:
                self._out_of_reach.add(event.id)

    def _record_emitted(self, event: ExecutionEvent, seen_at: datetime | None) -> None:
        latest = _latest(event)
        if seen_at is not None:
            # As long as the event itself is younger than the watermark, a listing may show it again.
            seen_at = max(seen_at, latest or event.created_by or seen_at)
        self._emitted[event.id] = _Emitted(seen_at, latest)

    @property
    def has_ended(self) -> bool:
        """Whether `ended` would return anything."""
        return bool(self._unreported)

    def ended(self) -> list[ExecutionEvent]:
        """The next runs that have ended and were not returned before, in the order of the ends.

        If one call cannot return all, the runs that were created first come first, so that the watermark can follow.
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

    def was_listed(self) -> bool:
        """Whether there was a complete listing since this was last asked."""
        was_listed, self._was_listed = self._was_listed, False
        return was_listed

    def lost(self) -> list[ExecutionEvent]:
        """The followed runs that were given up since the last call, as they were last seen."""
        found, self._lost = self._lost, []
        return found

    def checkpoint(self) -> Checkpoint:
        """How far it has come with what `ended` has returned."""
        held = [event.created_by for event in self._unreported.values() if event.id not in self._out_of_reach]
        watermark = min([self._watermark, *(created for created in held if created is not None)])
        open_runs = (*self._open_runs.values(), *(self._unreported[event_id] for event_id in self._out_of_reach))
        return Checkpoint(
            watermark=watermark,
            open_runs={
                event.id: OpenRun(
                    agent_id=event.agentId,
                    started_at=event.startedAt,
                    created_at=event.createdAt,
                    absent_seconds=self._absent.get(event.id, timedelta()).total_seconds(),
                )
                for event in open_runs
            },
            emitted=tuple(
                sorted(
                    event_id
                    for event_id, emitted in self._emitted.items()
                    if event_id not in self._unreported and (emitted.latest is None or emitted.latest >= watermark)
                )
            ),
            since=self._since if self._since is not None and self._since > watermark else None,
        )


def _bytes_of(event: ExecutionEvent) -> int:
    """About how many bytes an event takes as JSON. Unlike JSON itself, this cannot fail for odd characters."""
    return len(ascii(event.to_json()))


def _passed(events: Iterable[ExecutionEvent], local_now: datetime) -> datetime | None:
    """A moment that the server's clock has passed, as far as its events show; no later than our clock.

    Our clock may be ahead, and the stamp of one odd event may be. Both would hide runs that are still to begin.
    """
    stamp = clock_at_least(None, events)
    return min(stamp, local_now) if stamp is not None else None


def _latest(event: ExecutionEvent) -> datetime | None:
    created, ended = event.created_by, event.completedAt
    return max(created, ended) if created is not None and ended is not None else None
