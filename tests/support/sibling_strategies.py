"""Drawn worlds of several tasks that start one agent side by side."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from sibling_worlds import Task, config_of

from airflow_provider_agents.runs.tracker import WaitPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

_seconds = st.floats(0, 90)
_maybe_seconds = st.none() | _seconds


def tasks_in(processes: int, *, pokes: Sequence[Any] = (None,)) -> st.SearchStrategy[list[Task]]:
    """Two to seven tasks, each in one of N processes or, if it pokes, on a worker."""
    return st.lists(
        st.builds(
            Task,
            _seconds,
            joins_after=st.floats(0, 40),
            policy=st.builds(WaitPolicy, on_ambiguous=st.sampled_from(["share", "share", "all", "fail"])),
            loses=st.sampled_from([None, None, None, "reset_after", "reset_before"]),
            leaves_after=_maybe_seconds,
            returns_after=_maybe_seconds,
            sensors=st.sampled_from([1, 1, 2]),
            process=st.integers(0, processes - 1),
            pokes=st.sampled_from(pokes),
        ),
        min_size=2,
        max_size=7,
    )


configs = st.builds(
    config_of,
    st.just(random.Random()),
    lag=st.sampled_from([0.0, 5.0, 20.0]),
    failing=st.just(0.4),
    run_seconds=st.just(60.0),
    created_at=st.sampled_from(["accepted", "appeared"]),
    clock_skew=st.sampled_from([0.0, -600.0, 240.0]),
    gateway_skew=st.floats(-3, 3),
    date_header=st.sampled_from([True, True, False]),
)
