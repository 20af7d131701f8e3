"""What `make cluster-test` counts: each thing that must not be is found, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from audit import Cause, Run, Task, audit, audit_refusals

from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.budget import Budget
from airflow_provider_agents.operators import ExecuteAgentOperator
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


def ambiguous_causes(tasks, runs):
    result = audit(tasks, runs)
    assert result.findings == []
    return {cause for cause, lines in result.ambiguous.items() if lines}


def undecided(*numbers, among, **said):
    return task(*numbers, state="failed", ambiguous=frozenset(f"event-{number}" for number in among), **said)


def test_a_task_beside_another_partys_run_is_counted_as_ambiguous_for_that():
    result = audit([undecided(1, among=[1, 9])], [run(1)])
    assert result.right == 0
    assert result.ambiguous[Cause.OTHER_PARTY] == ["task; its runs: event-1 COMPLETED"]
    assert ambiguous_causes([undecided(1, among=[1, 9])], [run(1)]) == {Cause.OTHER_PARTY}


def test_a_task_beside_a_lost_answer_is_counted_as_ambiguous_for_that():
    lost = task(name="other", returned="event-2", unnamed=True)
    assert ambiguous_causes([undecided(1, among=[1, 2]), lost], [run(1), run(2)]) == {Cause.NO_ANSWER}


def test_a_task_beside_runs_of_tasks_only_is_counted_as_ambiguous_for_that():
    sibling = task(2, name="other", returned="event-2")
    assert ambiguous_causes([undecided(1, among=[1, 2]), sibling], [run(1), run(2)]) == {Cause.SIBLING_UNKNOWN}


# --- agents whose runs were shared out ---


def shared(*numbers, name, returned, **said):
    return task(*numbers, name=name, returned=f"event-{returned}", shared=True, **said)


def test_tasks_that_returned_each_others_events_and_said_so_are_right():
    result = audit([shared(1, name="a", returned=2), shared(2, name="b", returned=1)], [run(1), run(2)])
    assert (result.right, result.shared, result.findings) == (2, 2, [])


def test_tasks_that_returned_each_others_events_and_said_nothing_are_wrong():
    result = audit([task(1, returned="event-2"), task(2, name="b", returned="event-1")], [run(1), run(2)])
    assert [finding.split()[0] for finding in result.findings] == ["WRONG", "WRONG"]


def test_a_retry_after_the_failed_run_of_a_sibling_is_wanted():
    # Run 1 has failed. Its task was given run 2, and the other task failed and started run 3.
    tasks = [shared(1, name="a", returned=2), shared(2, 3, name="b", returned=3)]
    result = audit(tasks, [run(1, status="FAILED"), run(2), run(3, at=11)])
    assert (result.after_failure, result.right, result.findings) == (1, 2, [])


def test_two_retries_after_one_failed_run_of_an_agent_are_one_too_many():
    tasks = [shared(1, 4, name="a", returned=4), shared(2, 3, name="b", returned=3)]
    result = audit(tasks, [run(1, status="FAILED"), run(2), run(3, at=11), run(4, at=12)])
    assert result.after_failure == 1
    assert result.findings == ["DOUBLED req-4 of a; its runs: event-1 FAILED, event-4 COMPLETED"]


def test_a_retry_before_the_failed_run_of_a_sibling_has_ended_is_doubled():
    tasks = [shared(1, name="a", returned=2), shared(2, 3, name="b", returned=3)]
    assert audit(tasks, [run(1, status="FAILED", seconds=20), run(2), run(3, at=11)]).doubled


def test_a_failed_run_wants_no_retry_from_another_task_if_no_run_was_shared_out():
    tasks = [task(1, state="failed", name="a"), task(2, 3, name="b", returned="event-3")]
    result = audit(tasks, [run(1, status="FAILED"), run(2), run(3, at=11)])
    assert result.findings == ["DOUBLED req-3 of b; its runs: event-2 COMPLETED, event-3 COMPLETED"]


def test_a_failed_run_wants_no_retry_from_a_task_of_another_agent():
    tasks = [
        shared(1, name="a", returned=1, agent="agent-2"),
        task(2, state="failed", name="c", agent="agent-2"),
        task(3, 4, name="b", returned="event-4"),
    ]
    runs = [run(1, agent="agent-2"), run(2, agent="agent-2", status="FAILED"), run(3), run(4, at=11)]
    assert audit(tasks, runs).findings == ["DOUBLED req-4 of b; its runs: event-3 COMPLETED, event-4 COMPLETED"]


def test_an_event_that_two_tasks_were_given_is_found():
    tasks = [shared(1, name="a", returned=1), shared(2, name="b", returned=1)]
    assert audit(tasks, [run(1), run(2)]).findings == ["TWICE event-1 to a, b"]


@pytest.mark.parametrize("said", ["several", "enough"])
def test_an_event_that_one_of_two_tasks_returned_as_perhaps_anothers_is_none_given_twice(said):
    tasks = [task(1, name="a", returned="event-1"), task(2, name="b", returned="event-1", **{said: True})]
    assert audit(tasks, [run(1), run(2)]).findings == []


@pytest.mark.parametrize("returned", [1, 9], ids=["that failed", "of nobody"])
def test_a_task_that_was_given_a_run_that_no_task_completed_is_wrong(returned):
    tasks = [shared(1, name="a", returned=2), shared(2, name="b", returned=returned)]
    result = audit(tasks, [run(1, status="FAILED"), run(2), run(3)])
    assert result.wrong[0].startswith(f"b succeeded with event event-{returned}")


def test_more_successes_of_an_agent_than_completed_runs_are_found():
    enough = {"enough": True}
    tasks = [task(1, name="a", returned="event-1"), task(2, name="b", returned="event-9", **enough)]
    assert audit(tasks, [run(1), run(2)]).findings == []
    assert audit(tasks, [run(1), run(2, status="FAILED")]).findings == [
        "WRONG 2 tasks succeeded, 1 of their runs COMPLETED: a, b"
    ]


def test_a_task_that_failed_with_the_failed_run_of_a_sibling_is_right():
    tasks = [shared(1, name="a", returned=2), task(2, state="failed", name="b", shared=True)]
    assert audit(tasks, [run(1, status="FAILED"), run(2)]).right == 2
    assert audit(tasks, [run(1), run(2)]).wrong == ["b failed; its runs: event-2 COMPLETED"]


def test_a_task_that_failed_with_the_failed_run_of_another_and_said_nothing_is_wrong():
    tasks = [task(1, state="failed", name="a"), task(2, state="failed", name="b")]
    assert audit(tasks, [run(1, status="FAILED"), run(2)]).findings == ["WRONG b failed; its runs: event-2 COMPLETED"]


def test_a_run_whose_answer_was_lost_belongs_to_the_task_that_has_a_siblings_run():
    adopting = task(name="a", returned="event-2", unnamed=True, assumed=True)
    result = audit([adopting, task(2, name="b", returned="event-2")], [run(1), run(2)])
    assert (result.assumed, result.findings) == (["a success with event event-2"], [])
    # It is one task's run, and so a second such run is nobody's.
    assert audit([adopting], [run(1), run(3)]).lost == ["req-3 of agent-1, event-3 COMPLETED"]


def test_runs_whose_answers_were_lost_belong_to_one_task_each():
    seen = {"events": frozenset({"event-1", "event-2"}), "unnamed": True, "assumed": True}
    tasks = [task(name="a", returned="event-2", **seen), task(name="b", returned="event-1", **seen)]
    result = audit(tasks, [run(1), run(2)])
    assert (result.right, result.findings) == (2, [])


# --- what is counted apart ---


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
    said = (known.unnamed, known.several, known.shared, known.enough, known.ambiguous, known.assumed)
    assert not any(said)


def test_the_log_tells_of_a_run_without_a_name():
    known = task().with_log(
        "The run was accepted. agent=agent-1\nA run COMPLETED, the only one that fits. agent=agent-1 event=event-3"
    )
    assert (known.unnamed, known.events, known.requests) == (True, {"event-3"}, frozenset())


def log_of_success(*events, **verdict):
    return task().with_log(describe_completed(Verdict(Outcome.COMPLETED, events, **verdict), SENT))


def log_of_failure(outcome, *events, **verdict):
    return task().with_log(str(to_error(Verdict(outcome, events, **verdict), SENT, what_now="Retry.")))


COMPLETED = events_of("event-1", "event-2", status="COMPLETED")
FAILED = events_of("event-3", status="FAILED")


def test_the_log_tells_of_several_events_that_completed():
    known = log_of_success(*COMPLETED)
    assert (known.several, known.shared, known.enough) == (True, False, False)
    assert known.events == {"event-1", "event-2"}


def test_the_log_tells_of_enough_events_that_completed():
    known = log_of_success(*COMPLETED, *FAILED)
    assert (known.several, known.shared, known.enough) == (False, False, True)


def test_the_log_tells_of_a_run_that_was_shared_out():
    known = log_of_success(COMPLETED[0], is_shared=True)
    assert (known.several, known.shared, known.enough) == (False, True, False)
    assert log_of_failure(Outcome.FAILED, *FAILED, is_shared=True).shared
    assert not log_of_failure(Outcome.FAILED, *FAILED).shared


def test_the_log_tells_of_events_that_cannot_be_told_apart():
    known = log_of_failure(Outcome.AMBIGUOUS, *COMPLETED, *FAILED)
    assert known.ambiguous == {"event-1", "event-2", "event-3"}
    assert log_of_failure(Outcome.FAILED, *FAILED).ambiguous == frozenset()


def test_the_log_tells_of_a_run_that_was_taken_without_an_answer():
    assert task().with_log(adopted_run_warning("agent-1")).assumed


REFUSED = "The task's budget for agent agent-1 leaves no room for another run: 1 of 1 runs since ..."


def test_what_a_task_without_a_budget_left_logs_is_known_as_its_refusal(platform, task):
    platform.sim.add_agent("agent-1")
    platform.sim.add_history("agent-1", 1)
    operator = ExecuteAgentOperator(task_id="run", agent_id="agent-1", budget=Budget(runs=1, per=timedelta(days=1)))
    with pytest.raises(AirflowFailException) as refused:
        operator.execute(task.context())
    found = audit_refusals([("task", "failed", f"error: {refused.value}")], [])
    assert (found.tasks, found.refused, found.findings) == (1, 1, [])


@pytest.mark.parametrize(
    ("state", "log"),
    [("success", ""), ("failed", "another error"), ("up_for_retry", REFUSED), (None, "")],
)
def test_a_task_without_a_budget_left_that_is_not_refused_is_found(state, log):
    found = audit_refusals([("one", state, log), ("other", "failed", REFUSED)], [])
    assert (found.tasks, found.refused, found.findings) == (2, 1, [f"NOT REFUSED one is {state}"])


def test_a_run_of_a_task_without_a_budget_left_is_found():
    found = audit_refusals([("task", "failed", REFUSED)], [run(1)])
    assert (found.refused, found.findings) == (1, ["NOT REFUSED req-1 of agent-1, event-1"])


def test_a_test_without_a_task_whose_budget_is_used_up_is_found():
    assert audit_refusals([], []).findings == ["NOT REFUSED there were no tasks without a budget left"]
