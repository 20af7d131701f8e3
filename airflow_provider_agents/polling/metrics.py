"""The metrics of a poller, in Airflow's own statistics. Each is tagged with `conn_id`."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

_REQUESTS = "agents.poll.requests"
_FAILURES = "agents.poll.failures"
_CYCLE = "agents.poll.cycle"
_SUBSCRIBERS = "agents.poll.subscribers"
_ENDS = "agents.run.ended"
_DELAY = "agents.run.notice_delay"
_APPEARED = "agents.run.appeared_after"


class Stats(Protocol):
    """What of Airflow's statistics a poller uses."""

    def incr(self, stat: str, count: int = 1, *, tags: dict[str, str] | None = None) -> None:
        """Count."""

    def gauge(self, stat: str, value: float, *, tags: dict[str, str] | None = None) -> None:
        """Set."""

    def timing(self, stat: str, dt: timedelta, *, tags: dict[str, str] | None = None) -> None:
        """Measure."""


class Metrics:
    """Counts for one connection.

    Args:
        stats: where to; None counts nothing.
        conn_id: the connection.
    """

    def __init__(self, stats: Stats | None, conn_id: str) -> None:
        self._stats, self._tags = stats, {"conn_id": conn_id}

    def sent(self) -> None:
        """A request is sent."""
        if self._stats is not None:
            self._stats.incr(_REQUESTS, tags=self._tags)

    def failed(self) -> None:
        """A request failed, and may succeed later."""
        if self._stats is not None:
            self._stats.incr(_FAILURES, tags=self._tags)

    def polled(self, seconds: float, subscriptions: int) -> None:
        """A poll cycle has ended: its seconds, and how many subscriptions are left."""
        if self._stats is not None:
            self._stats.timing(_CYCLE, timedelta(seconds=seconds), tags=self._tags)
            self._stats.gauge(_SUBSCRIBERS, subscriptions, tags=self._tags)

    def closed(self) -> None:
        """No subscription is left."""
        if self._stats is not None:
            self._stats.gauge(_SUBSCRIBERS, 0, tags=self._tags)

    def appeared(self, seconds: float) -> None:
        """The event of a run was first seen this many seconds after its acceptance."""
        if self._stats is not None:
            self._stats.timing(_APPEARED, timedelta(seconds=seconds), tags=self._tags)

    def ended(self, outcome: str, delay: timedelta | None) -> None:
        """A run ended.

        Args:
            outcome: how.
            delay: for how long that was not known; None if the event does not say when it ended.
        """
        if self._stats is not None:
            self._stats.incr(_ENDS, tags={**self._tags, "outcome": outcome})
            if delay is not None:
                self._stats.timing(_DELAY, max(delay, timedelta()), tags=self._tags)
