"""Which task may start a run of an agent next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.polling.start_queue import StartQueue
from airflow_provider_agents.runs.matching import TOLERANCE

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)


def after(seconds):
    return T0 + timedelta(seconds=seconds)


def queue_of(*tasks):
    queue, woken = StartQueue(), []
    for task in tasks:
        queue.join(task, lambda task=task: woken.append(task))
    return queue, woken


def test_tasks_come_in_the_order_in_which_they_joined():
    queue, woken = queue_of("a", "b", "c")
    assert [queue.ahead_of(task) for task in "abc"] == [0, 1, 2]
    assert queue.is_first("a")
    queue.leave("a")
    assert woken == ["b"]
    assert queue.is_first("b")


def test_a_task_that_leaves_from_the_middle_wakes_none():
    queue, woken = queue_of("a", "b", "c")
    queue.leave("b")
    queue.leave("b")
    assert woken == []
    queue.leave("a")
    assert woken == ["c"]


def test_an_agent_is_taken_after_a_release_until_its_time_is_over():
    queue, _ = queue_of("a", "b")
    assert not queue.is_taken(T0)
    queue.release(30.0, T0)
    assert [queue.is_taken(after(seconds)) for seconds in (0, 29.9, 30.0)] == [True, True, False]


@pytest.mark.parametrize("hold_seconds", [30.0, 3600.0])
def test_an_agent_is_taken_while_another_run_could_be_mistaken_for_the_one_seen(hold_seconds):
    queue, _ = queue_of("a", "b")
    queue.release(hold_seconds, T0)
    queue.see_active_run(20.0, after(9))
    queue.see_active_run(20.0, after(15))
    end = 29 + TOLERANCE.total_seconds()
    assert [queue.is_taken(after(seconds)) for seconds in (28, end - 1, end)] == [True, True, False]


def test_a_run_that_no_released_task_has_started_takes_no_agent():
    queue, _ = queue_of("a", "b")
    queue.see_active_run(20.0, T0)
    assert not queue.is_taken(T0)


def test_a_queue_is_kept_while_tasks_wait_or_the_agent_is_taken():
    queue, _ = queue_of("a")
    assert queue.is_of_use(T0)
    queue.release(30.0, T0)
    queue.leave("a")
    assert queue.is_of_use(after(29))
    assert not queue.is_of_use(after(30))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=60))
def test_exactly_one_waiting_task_is_first_and_each_first_one_was_woken(steps):
    queue, waiting, woken = StartQueue(), [], []
    for joins, task in steps:
        if joins and task not in waiting:
            if not waiting:
                woken.append(task)
            waiting.append(task)
            queue.join(task, lambda task=task: woken.append(task))
        elif not joins:
            queue.leave(task)
            if task in waiting:
                waiting.remove(task)
        assert [one for one in waiting if queue.is_first(one)] == waiting[:1]
        assert not waiting or woken[-1] == waiting[0]
        assert [queue.ahead_of(one) for one in waiting] == list(range(len(waiting)))
