"""What `make cluster-test` counts: each thing that must not be is found, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from audit import Run, Task, audit

from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.runs.outcome import Outcome, Verdict, describe_completed, to_error
from airflow_provider_agents.runs.submission import Submission, adopted_run_warning

START = datetime(2026, 1, 1, tzinfo=UTC)


def run(number, *, at=0.0, seconds=10.0, status="COMPLETED", agent="agent-1"):
    accepted_at = START + timedelta(seconds=at)
    return Run(
        agent_id=agent,
        request_id=f"req-{number}",
        event_id=f"event-{number}",
        accepted_at=accepted_at,
        ended_at=accepted_at + timedelta(seconds=seconds),
        end_status=status,
    )


def task(*numbers, state="success", name="task", agent="agent-1", returned=None, **said):
    return Task(
        name=name,
        agent_id=agent,
        state=state,
        returned=returned,
        requests=frozenset(f"req-{number}" for number in numbers),
        **said,
    )


def test_a_task_that_ends_as_its_run_did_is_right():
    result = audit(
        [task(1, returned="event-1"), task(2, state="failed", name="other")], [run(1), run(2, status="FAILED")]
    )
    assert (result.tasks, result.executes, result.right, result.findings) == (2, 2, 2, [])


def test_a_run_after_one_that_had_failed_is_wanted():
    result = audit([task(1, 2, returned="event-2")], [run(1, status="FAILED"), run(2, at=11)])
    assert (result.after_failure, result.right, result.findings) == (1, 1, [])


@pytest.mark.parametrize(
    "first",
    [run(1), run(1, status="FAILED", seconds=20)],
    ids=["after one that COMPLETED", "before the failure of the first"],
)
def test_a_run_that_nobody_wanted_is_doubled(first):
    result = audit([task(1, 2, returned="event-2")], [first, run(2, at=11)])
    assert result.after_failure == 0
    assert result.findings == [f"DOUBLED req-2 of task; its runs: event-1 {first.end_status}, event-2 COMPLETED"]


def test_a_run_is_not_set_against_that_of_another_task_of_the_same_agent():
    tasks = [task(1, returned="event-1"), task(2, name="other", returned="event-2")]
    result = audit(tasks, [run(1), run(2, at=1)])
    assert (result.right, result.findings) == (2, [])


def test_a_run_that_no_task_knows_is_lost():
    result = audit([task(1, returned="event-1")], [run(1), run(2)])
    assert result.findings == ["LOST req-2 of agent-1, event-2 COMPLETED"]


def test_a_run_whose_answer_was_lost_belongs_to_the_task_that_waited_for_it():
    other = task(2, name="other", returned="event-2")
    result = audit([other, task(returned="event-1", unnamed=True)], [run(1), run(2)])
    assert (result.right, result.findings) == (2, [])


@pytest.mark.parametrize(
    "stranger",
    [task(returned="event-1"), task(returned="event-1", unnamed=True, agent="agent-2"), task(unnamed=True)],
    ids=["that waited for none", "of another agent", "that did not see it"],
)
def test_a_run_whose_answer_was_lost_belongs_to_no_task(stranger):
    assert audit([stranger], [run(1)]).lost == ["req-1 of agent-1, event-1 COMPLETED"]


@pytest.mark.parametrize(
    ("told", "runs"),
    [
        (task(1, returned="event-1"), [run(1, status="FAILED")]),
        (task(1, returned="event-9"), [run(1)]),
        (task(1), [run(1)]),
        (task(returned="event-9"), []),
        (task(1, state="failed"), [run(1)]),
        (task(1, 2, returned="event-1"), [run(1, status="FAILED"), run(2, at=11)]),
    ],
    ids=[
        "success of a run that failed",
        "another run's event",
        "no event",
        "success without a run",
        "failure of a run that COMPLETED",
        "the event of the run before",
    ],
)
def test_a_task_that_is_told_wrong_is_found(told, runs):
    result = audit([told], runs)
    assert result.right == 0
    assert [finding.split()[0] for finding in result.findings] == ["WRONG"]


def test_one_of_several_events_is_right_if_the_task_says_so_and_its_run_completed():
    result = audit([task(1, returned="event-9", several=True)], [run(1)])
    assert (result.right, result.several, result.findings) == (1, 1, [])
    assert audit([task(1, returned="event-9", several=True)], [run(1, status="FAILED")]).wrong


def test_a_task_that_says_that_it_cannot_tell_is_counted_apart():
    result = audit([task(1, state="failed", undecided=True)], [run(1)])
    assert (result.right, len(result.undecided), result.findings) == (0, 1, [])


@pytest.mark.parametrize("state", ["success", "failed"])
def test_another_run_adopted_after_a_lost_post_is_counted_apart_if_the_task_says_so(state):
    result = audit([task(state=state, returned="event-9", assumed=True)], [])
    assert (result.right, result.assumed, result.findings) == (0, [f"task {state} with event event-9"], [])
    # One that has a run of its own must be right about it.
    assert audit([task(1, returned="event-9", assumed=True)], [run(1)]).wrong


@pytest.mark.parametrize("state", [None, "running", "deferred", "upstream_failed"])
def test_a_task_that_has_not_ended_is_found(state):
    assert audit([task(1, state=state)], [run(1)]).findings == [
        f"UNFINISHED task is {state}; its runs: event-1 COMPLETED"
    ]


def test_a_task_that_failed_before_it_had_a_run_is_found():
    assert audit([task(state="failed")], []).findings == ["UNFINISHED task is failed; its runs: none"]


def test_tasks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two tasks are called task"):
        audit([task(1), task(2)], [])


SENT = Submission(agent_id="agent-1", request_id="req-1", taken_at=datetime(2026, 1, 1, tzinfo=UTC))


def events_of(*ids, status):
    return tuple(ExecutionEvent(id=event_id, status=status) for event_id in ids)


def test_the_log_of_every_try_tells_which_runs_a_task_knows():
    first = '{"event": "The run was accepted. agent=agent-1 request_id=req-1"}\n'
    failed = f'"{to_error(Verdict(Outcome.FAILED, events_of("event-1", status="FAILED")), SENT, what_now="Retry.")}"'
    second = "The run was accepted. agent=agent-1 request_id=req-2"
    known = task(state="success").with_log(first + failed).with_log(second)
    assert known.requests == {"req-1", "req-2"}
    assert known.events == {"event-1"}
    assert (known.unnamed, known.several, known.undecided) == (False, False, False)


def test_the_log_tells_of_a_run_without_a_name():
    known = task().with_log(
        "The run was accepted. agent=agent-1\nA run COMPLETED, the only one that fits. agent=agent-1 event=event-3"
    )
    assert (known.unnamed, known.events, known.requests) == (True, {"event-3"}, frozenset())


def test_the_log_tells_of_events_that_cannot_be_told_apart():
    events = events_of("event-1", "event-2", status="COMPLETED")
    several = describe_completed(Verdict(Outcome.COMPLETED, events), SENT)
    undecided = str(to_error(Verdict(Outcome.AMBIGUOUS, events), SENT, what_now=""))
    assert task().with_log(several).several
    assert task().with_log(several).events == {"event-1", "event-2"}
    assert task().with_log(undecided).undecided


def test_the_log_tells_of_a_run_that_was_taken_without_an_answer():
    assert task().with_log(adopted_run_warning("agent-1")).assumed
