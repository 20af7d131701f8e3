"""The connection's extras that follow from what `airflow agents probe` has observed. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from airflow_provider_agents.runs.tracker import WaitPolicy

if TYPE_CHECKING:
    from airflow_provider_agents.cli.observations import Observations, ProbedRun

#: A few runs do not show the longest delay. So `settle` is twice the longest one seen, and never less than this.
SHORTEST_SETTLE = 10
_SETTLE_FACTOR = 2
#: A run counts as lost after `appear_within`, and a retry then pays for another. So it is this many times the longest
#: delay seen, and never less than the default.
_APPEAR_FACTOR = 10
RULE = (
    f"settle: {_SETTLE_FACTOR} times the longest delay seen, rounded up, at least {SHORTEST_SETTLE} s. appear_within: "
    f"{_APPEAR_FACTOR} times the longest delay seen, rounded up, at least {WaitPolicy().appear_within:g} s."
)


def extras_of(seen: Observations) -> dict[str, int] | None:
    """`settle` and `appear_within`, in seconds, by `RULE`; None if they would be a guess."""
    # An event that has not appeared may take longer than all others.
    absent = [seconds_waited(run) for run in seen.accepted if not run.candidate_ids]
    delays, appear_within = delays_of(seen), WaitPolicy().appear_within
    if not delays or max(absent, default=0.0) > appear_within:
        return None
    longest = max(*delays, *absent, 0.0)
    return {
        "settle": max(SHORTEST_SETTLE, math.ceil(_SETTLE_FACTOR * longest)),
        "appear_within": math.ceil(max(appear_within, _APPEAR_FACTOR * longest)),
    }


def delays_of(seen: Observations) -> list[float]:
    """Seconds until each known event was there."""
    return [run.delay for run in seen.known if run.delay is not None]


def seconds_waited(run: ProbedRun) -> float:
    """Seconds from the 202 to the last poll."""
    if not run.polls or run.answered_at is None:
        return 0.0
    return (run.polls[-1].answered_at - run.answered_at).total_seconds()
