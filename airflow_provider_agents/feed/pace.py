"""When a look can wait: what is known about how long an agent's runs take. Pure.

A run is looked at every interval, and every second interval while it cannot well be over yet. So the worst that this
can cost, when a run is quicker than any before it, is one interval of delay.

It is done only while few runs are waited for. Where many are, some of them must be looked at in each sweep, and a sweep
shows all of them for about the same price: `make pace` counts both.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.runs.verdict import is_terminal

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_agents.api.models import ExecutionEvent

#: Finished runs of an agent before its history counts, and those that are remembered. Of ten runs that follow one
#: distribution, the next is quicker than all of them one time in eleven.
LEAST_RUNS, MOST_RUNS = 10, 64
#: With more runs than this on a feed, each is looked at in every interval.
FEW_RUNS = 8
#: A run is due from this share of the quickest known run on.
DUE_SHARE = 0.9


class History:
    """How long the runs of some agents took, as far as their events were shown."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, OrderedDict[str, float]] = defaultdict(OrderedDict)

    def note(self, agent_id: str, event: ExecutionEvent) -> None:
        """Take in a finished run. May be repeated."""
        if event.startedAt is None or event.completedAt is None or not is_terminal(event):
            return
        runs = self._seconds[agent_id]
        runs[event.id] = (event.completedAt - event.startedAt).total_seconds()
        if len(runs) > MOST_RUNS:
            runs.popitem(last=False)

    def forget(self, agent_id: str) -> None:
        """Drop an agent that nobody waits for any more."""
        self._seconds.pop(agent_id, None)

    def due_at(self, agent_id: str, started_at: datetime | None) -> datetime | None:
        """From when on a run that began at `started_at` may be over; None if that is not known.

        On the clock of `started_at`, the server's.
        """
        runs = self._seconds.get(agent_id)
        if started_at is None or runs is None or len(runs) < LEAST_RUNS:
            return None
        return started_at + timedelta(seconds=max(0.0, min(runs.values())) * DUE_SHARE)
