"""What a cycle would cost by each way of asking, counted in requests. Pure.

The API has no way to ask for some events by their ids. What there is: an agent's listing or the account's, narrowed by
`startedAfter` and `startedBefore`, or by `status`. Which of them is the cheapest depends on how many runs are waited
for, when they began, and what else happens in the account. The last is only known from earlier answers, so it is an
estimate, and a walk that turns out dearer than it was taken for is broken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_agents.api.flow import MAX_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

#: Room on either side of a `startedAt` in a window: the page does not say whether the bounds are inclusive, nor how
#: finely they are compared.
WINDOW_MARGIN = timedelta(seconds=1)
#: Estimates are believed for so many seconds; then the cheapest conceivable holds again, until it is tried.
BELIEVED_SECONDS = 300.0
#: Neighbouring windows are joined when fewer rows than this lie between them: half a page, for a whole request less.
_JOINING_ROWS = MAX_LIMIT // 2
#: As long as nothing is known about the account, windows are joined over gaps of so many seconds: its own, and those of
#: one agent, which has fewer runs.
_JOINING_SECONDS, _JOINING_SECONDS_OF_AGENT = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Window:
    """Some events that began close together, found by one narrow listing.

    Attributes:
        agent_id: whose listing; None for the account's.
        event_ids: what is to be found there.
        after: its older end.
        before: its younger end.
        requests: how many pages that is thought to take.
    """

    agent_id: str | None
    event_ids: tuple[str, ...]
    after: datetime
    before: datetime
    requests: int


class StartedRun(NamedTuple):
    """An event that is looked for, and what narrows its listing. A tuple, as thousands are sorted in one go."""

    started_at: datetime
    event_id: str
    agent_id: str


class ExpiringEstimate:
    """A number that was measured a while ago.

    Args:
        at_best: what holds as long as nothing was measured, or it is too long ago.
    """

    def __init__(self, at_best: float | None) -> None:
        self._at_best = at_best
        self._value: float | None = None
        self._until = -math.inf

    def measured(self, value: float, clock: float) -> None:
        """Take in a measurement made at `clock`, in monotonic seconds."""
        self._value, self._until = value, clock + BELIEVED_SECONDS

    def at(self, clock: float) -> float | None:
        """What to reckon with."""
        return self._value if clock < self._until else self._at_best


def pages(rows: float) -> int:
    """Pages that so many rows take; one at least."""
    return max(1, math.ceil(rows / MAX_LIMIT))


def windows(
    some: Iterable[StartedRun],
    rows_per_second: float | None,
    of_agent: Callable[[str], float | None],
    *,
    whole_account: bool,
) -> list[Window]:
    """The fewest narrow listings that show all of `some`, as far as can be told.

    Args:
        some: what is looked for.
        rows_per_second: how many runs begin in the account; None if that is not known.
        of_agent: the same of an agent.
        whole_account: whether the account's own listing may be asked.
    """
    everything = sorted(some)
    owners = {started.agent_id for started in everything}
    by_account: list[Window] | None = None
    if whole_account and len(owners) > 1:
        by_account = [
            # With one agent in it, it is asked of the agent: no stranger can fill it.
            _window(group, group[0].agent_id, of_agent(group[0].agent_id))
            if all(started.agent_id == group[0].agent_id for started in group)
            else _window(group, None, rows_per_second)
            for group in _groups(everything, rows_per_second, _JOINING_SECONDS)
        ]
        if requests_of(by_account) < len(owners):
            # An agent takes one request at least, so there is nothing to compare.
            return by_account
    by_owner: dict[str, list[StartedRun]] = {}
    for started in everything:
        by_owner.setdefault(started.agent_id, []).append(started)
    by_agent = [
        _window(group, agent_id, of_agent(agent_id))
        for agent_id, own in by_owner.items()
        for group in _groups(own, _known(of_agent(agent_id), rows_per_second), _JOINING_SECONDS_OF_AGENT)
    ]
    return by_agent if by_account is None else min(by_agent, by_account, key=requests_of)


def _known(own: float | None, of_all: float | None) -> float | None:
    return own if own is not None else of_all


def _groups(
    ordered: Sequence[StartedRun], rows_per_second: float | None, joining_seconds: float
) -> Iterator[Sequence[StartedRun]]:
    """Neighbours that share a window: those between which there is not much else."""
    start = 0
    for index, (one, next_one) in enumerate(pairwise(ordered), start=1):
        gap = (next_one.started_at - one.started_at).total_seconds()
        if gap * rows_per_second > _JOINING_ROWS if rows_per_second is not None else gap > joining_seconds:
            yield ordered[start:index]
            start = index
    yield ordered[start:]


def _window(group: Sequence[StartedRun], agent_id: str | None, rows_per_second: float | None) -> Window:
    after, before = group[0].started_at - WINDOW_MARGIN, group[-1].started_at + WINDOW_MARGIN
    rows = max(float(len(group)), (before - after).total_seconds() * (rows_per_second or 0.0))
    return Window(agent_id, tuple(started.event_id for started in group), after, before, pages(rows))


def requests_of(some: Iterable[Window]) -> int:
    """What they are thought to take together."""
    return sum(window.requests for window in some)
