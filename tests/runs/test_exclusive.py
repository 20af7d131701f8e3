"""`exclusive`: the author's word that nothing else starts the agent while a task waits for its run."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from driving import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sibling_worlds import Task, World, config_of

from airflow_provider_agents.api.models import ExecutionEvent, read_event
from airflow_provider_agents.runs.listing import Listing
from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.siblings import Siblings
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
SUBMISSION = Submission(agent_id="a", request_id="req", taken_at=T0, sent_at=T0, server_before=T0, server_after=T0)
EXCLUSIVE = WaitPolicy(exclusive=True)


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def event(name="e", status="RUNNING", **fields):
    return ExecutionEvent(id=name, status=status, **{"createdAt": at(1), **fields})


def apply_listing(tracker, *events, seconds):
    return tracker.apply_listing(Listing(events, at(seconds)), at(seconds))


# --- one run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "outcome"), [("COMPLETED", Outcome.COMPLETED), ("FAILED", Outcome.FAILED)])
def test_a_run_that_ends_before_it_has_settled_is_told_at_once(status, outcome):
    tracker = RunTracker(SUBMISSION, EXCLUSIVE)
    assert tracker.criteria.is_decidable(at(0), None)
    assert apply_listing(tracker, event(), seconds=5) is None
    done = event(status=status)
    assert apply_listing(tracker, done, seconds=10) == Verdict(outcome, (done,))


def test_an_exclusive_run_that_is_active_when_it_settles_is_followed_as_any_other():
    tracker = RunTracker(SUBMISSION, EXCLUSIVE)
    apply_listing(tracker, event(), seconds=5)
    assert apply_listing(tracker, event(), seconds=32) is None
    assert (tracker.is_known, tracker.criteria, tracker.broke_exclusive) == (True, None, False)
    assert tracker.apply_event(event(status="COMPLETED")).outcome == Outcome.COMPLETED


def test_a_second_new_event_ends_what_exclusive_allows():
    tracker = RunTracker(SUBMISSION, EXCLUSIVE)
    apply_listing(tracker, event(), seconds=5)
    assert apply_listing(tracker, event(status="COMPLETED"), event("other"), seconds=10) is None
    assert tracker.broke_exclusive
    assert not tracker.criteria.is_decidable(at(20), at(20))
    assert apply_listing(tracker, event(status="COMPLETED"), event("other", "FAILED"), seconds=20) is None
    assert apply_listing(tracker, seconds=32).outcome == Outcome.AMBIGUOUS


def test_a_second_event_that_appears_with_the_end_of_settle_is_noticed():
    tracker = RunTracker(SUBMISSION, EXCLUSIVE)
    apply_listing(tracker, event(), seconds=5)
    assert apply_listing(tracker, event(), event("other"), seconds=32) is None
    assert tracker.broke_exclusive


def test_a_row_that_cannot_be_read_decides_nothing_and_breaks_nothing():
    tracker = RunTracker(SUBMISSION, EXCLUSIVE)
    odd = read_event({"id": "odd", "status": None, "createdAt": at(2).isoformat()})
    assert apply_listing(tracker, event(status="COMPLETED"), odd, seconds=5) is None
    assert not tracker.broke_exclusive
    assert apply_listing(tracker, event(status="COMPLETED"), seconds=10).outcome == Outcome.COMPLETED


def test_a_post_in_doubt_is_never_exclusive():
    tracker = RunTracker(SUBMISSION.changed(in_doubt=True), replace(EXCLUSIVE, settle=1.0))
    assert apply_listing(tracker, event(status="COMPLETED"), seconds=25) is None
    assert apply_listing(tracker, event(status="COMPLETED"), seconds=32).outcome == Outcome.COMPLETED


def test_an_event_that_was_there_before_is_not_the_run_of_an_exclusive_task():
    tracker = RunTracker(SUBMISSION.changed(known_event_ids=("old",)), EXCLUSIVE)
    assert apply_listing(tracker, event("old", "COMPLETED"), seconds=5) is None
    assert not tracker.broke_exclusive


# --- with other tasks of ours -----------------------------------------------------------------------------------------


def test_another_task_that_could_have_the_event_ends_what_exclusive_allows():
    siblings = Siblings()
    tracker, other = (RunTracker(SUBMISSION.changed(request_id=name), EXCLUSIVE) for name in ("one", "two"))
    for each in (tracker, other):
        siblings.join(each, T0)
    assert apply_listing(tracker, event(status="COMPLETED"), seconds=5) is None
    assert tracker.broke_exclusive


def test_the_event_of_an_earlier_task_is_not_given_to_the_next_one():
    siblings = Siblings()
    first, second = (RunTracker(SUBMISSION.changed(request_id=name), EXCLUSIVE) for name in ("one", "two"))
    siblings.join(first, T0)
    verdict = apply_listing(first, event(status="COMPLETED"), seconds=5)
    siblings.leave(first, verdict, at(5))
    siblings.join(second, at(5))
    # A lagging replica has kept the first event from the snapshot of the second task.
    assert apply_listing(second, event(status="COMPLETED"), seconds=6) is None
    done = event("mine", "FAILED")
    assert apply_listing(second, event(status="COMPLETED"), done, seconds=9) == Verdict(Outcome.FAILED, (done,))
    assert not second.broke_exclusive


# --- whole worlds -----------------------------------------------------------------------------------------------------

worlds = settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])


@worlds
@given(
    seed=st.integers(0, 10**6),
    lag=st.sampled_from([0.0, 5.0, 25.0]),
    replica_lag=st.sampled_from([0.0, 4.0]),
    count=st.integers(1, 4),
)
def test_while_nothing_else_starts_the_agent_an_exclusive_success_is_never_wrong(seed, lag, replica_lag, count):
    # One task after the other, each when the run before has ended.
    tasks = [Task(number * 60.0, policy=EXCLUSIVE) for number in range(count)]
    config = config_of(random.Random(seed), lag=lag, replica_lag=replica_lag)
    world = World(config, tasks, seed=seed).play()
    for task in tasks:
        assert task.verdict.event.id == task.own
        assert str(task.verdict.outcome).upper() == world.status(task.own)
        assert not task.tracker.broke_exclusive
        # The run, its record's and the replica's lag, and a poll or two.
        assert task.ended_after <= 20 + lag + replica_lag + 12


@worlds
@given(
    seed=st.integers(0, 10**6),
    starts=st.lists(st.floats(0, 60), min_size=1, max_size=5),
    other_starts=st.lists(st.floats(0, 80), max_size=4),
    restarts=st.lists(st.floats(0, 80), max_size=2),
    exclusive=st.lists(st.booleans(), min_size=5, max_size=5),
    late=st.lists(st.floats(0, 20), min_size=5, max_size=5),
    lag=st.sampled_from([0.0, 5.0, 25.0]),
)
def test_a_broken_promise_makes_no_success_wrong_that_did_not_rely_on_it(
    seed, starts, other_starts, restarts, exclusive, late, lag
):
    tasks = [
        Task(start, joins_after=delay, policy=WaitPolicy(exclusive=is_exclusive))
        for start, is_exclusive, delay in zip(starts, exclusive, late, strict=False)
    ]
    config = config_of(random.Random(seed), lag=lag, failing=0.4, run_seconds=60.0)
    world = World(config, tasks, other_starts=other_starts, restarts=restarts, seed=seed).play()
    assert max(world.handed_on.values(), default=1) == 1
    # An exclusive task whose tracker has noticed nothing may have relied on the promise.
    careful = [task for task in tasks if not task.policy.exclusive or task.tracker.broke_exclusive]
    succeeded = [task for task in careful if task in world.successes]
    for task in succeeded:
        assert world.status(task.verdict.event.id) == "COMPLETED"
        if len(task.verdict.events) == 1 and not task.verdict.is_shared and not task.verdict.late:
            assert task.verdict.event.id == task.own
