"""Listings of events: which rows, and in which order, at one time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_agents.simulator.config import SimulatorConfig
    from airflow_provider_agents.simulator.runs import Run, Timeline

#: Where a row stands in a listing: whether its timestamp is null, the timestamp in microseconds, its run's number.
#: A next page begins below such a key, not after a number of rows: so it stays right when newer events arrive.
SortKey = tuple[int, int, int]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The events of `timeline` at the time `now`: filtered by status and start time, and only those `below` a key."""

    config: SimulatorConfig
    timeline: Timeline
    is_listed: Callable[[Run], bool]
    now: datetime
    status: str | None
    after: datetime | None
    before: datetime | None
    below: SortKey | None

    def first(self, count: int) -> list[tuple[SortKey, Run]]:
        """The newest `count` rows, newest first."""
        newest: list[tuple[SortKey, Run]] = []
        span, oldest = self.timeline.span, self._oldest_end()
        for run in self.timeline.newest_first(self._newest_acceptance()):
            # This run, and all that follow, ended too early.
            if oldest is not None and run.accepted_at + span < oldest:
                break
            # This run, and all that follow, stand below the rows found so far.
            if len(newest) == count and self._highest_key(run.accepted_at) < newest[0][0]:
                break
            if not self._holds(run):
                continue
            key = self._key(run)
            if self.below is not None and key >= self.below:
                continue
            # Keys are unique, so heapq never compares runs.
            if len(newest) < count:
                heapq.heappush(newest, (key, run))
            else:
                heapq.heappushpop(newest, (key, run))
        return sorted(newest, key=lambda row: row[0], reverse=True)

    def _holds(self, run: Run) -> bool:
        config, now = self.config, self.now
        if run.visible_at > now or not self.is_listed(run):
            return False
        if config.retention_seconds is not None and run.ended_at + timedelta(seconds=config.retention_seconds) <= now:
            return False
        if self.status is not None and run.status_at(now, config) != self.status:
            return False
        if self.after is None and self.before is None:
            return True
        started = run.time_of("startedAt", now, config)
        if started is None:
            return config.started_filter_keeps_pending
        # In milliseconds, as shown: an event's own startedAt, used as a bound, leaves the event out.
        started = started.replace(microsecond=started.microsecond // 1000 * 1000)
        return (self.after is None or started > self.after) and (self.before is None or started < self.before)

    def _key(self, run: Run) -> SortKey:
        moment = run.time_of(self.config.sort_by, self.now, self.config)
        if moment is None:
            return (1 if self.config.nulls == "first" else -1, 0, run.number)
        return (0, _microseconds(moment), run.number)

    def _highest_key(self, accepted_at: datetime) -> SortKey:
        """A key above that of every run accepted at this time or before."""
        config = self.config
        if config.sort_by == "createdAt" and config.created_at == "accepted":
            return (0, _microseconds(accepted_at) + 1, 0)
        latest = accepted_at + self.timeline.span
        if config.sort_by == "startedAt" and config.nulls == "first" and latest > self.now:
            return (2, 0, 0)
        return (0, _microseconds(latest) + 1, 0)

    def _newest_acceptance(self) -> datetime | None:
        """The latest acceptance of a run in the listing; None for no bound."""
        config, bounds = self.config, []
        if self.before is not None and not config.started_filter_keeps_pending:
            # Times are compared in whole milliseconds, as shown.
            bounds.append(min(self.before, self.now) + timedelta(milliseconds=1))
        # Where nulls come last, a run that was just accepted may follow any other.
        if (
            self.below is not None
            and self.below[0] == 0
            and not (config.sort_by == "startedAt" and config.nulls == "last")
        ):
            bounds.append(_EPOCH + self.below[1] * _MICROSECOND)
        return min(bounds, default=None)

    def _oldest_end(self) -> datetime | None:
        """The earliest end of a run in the listing; None for no bound."""
        config, bounds = self.config, []
        if self.after is not None:
            bounds.append(min(self.after, self.now))
        if self.status is not None and self.status not in self.timeline.end_statuses:
            bounds.append(self.now)
        if config.retention_seconds is not None:
            bounds.append(self.now - timedelta(seconds=config.retention_seconds))
        return max(bounds, default=None)
