"""What the events of a run mean for its task."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from own_time import keep_time

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.errors import (
    AmbiguousAgentRunError,
)
from airflow_provider_agents.api.models import ExecutionEvent, read_event
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.polling.progress import state_of
from airflow_provider_agents.runs.listing import Listing
from airflow_provider_agents.runs.outcome import Outcome, Verdict, to_error
from airflow_provider_agents.runs.status import (
    active_runs,
    duration_of,
    is_active,
    is_success,
    is_terminal,
    newer_of,
    usage_of,
)
from airflow_provider_agents.runs.submission import Submission, submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import ManualClock, Simulator, SimulatorConfig, mock_transport

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
#: Submitted at T0, on one clock.
SUBMISSION = Submission(agent_id="a", request_id="req", taken_at=T0, sent_at=T0, server_before=T0, server_after=T0)
SETTLED = 32.0
#: The same where the server does not tell its time.
UNTIMED = SUBMISSION.changed(server_before=None, server_after=None)


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def event(name="e", status="RUNNING", **fields):
    return ExecutionEvent(id=name, status=status, **{"createdAt": at(1), **fields})


def apply_listing(wait, *events, seconds=SETTLED):
    return wait.apply_listing(Listing(events, at(seconds)), at(seconds))


@pytest.mark.parametrize(
    ("status", "completed_at", "over", "success"),
    [
        ("PENDING", None, False, False),
        ("RUNNING", None, False, False),
        ("RUNNING", T0, False, False),
        ("PENDING", T0, False, False),
        ("COMPLETED", None, True, True),
        ("FAILED", None, True, False),
        ("CANCELLED", None, False, False),
        ("CANCELLED", T0, True, False),
    ],
)
def test_when_a_run_is_over_and_whether_it_succeeded(status, completed_at, over, success):
    row = event(status=status, completedAt=completed_at)
    assert (is_terminal(row), is_success(row)) == (over, success)


def test_an_end_stays_whatever_a_lagging_answer_says():
    over, running = event(status="COMPLETED"), event(updatedAt=at(9))
    assert newer_of(over, running) is over
    assert newer_of(running, over) is over
    assert newer_of(None, running) is running


@pytest.mark.parametrize(
    ("old", "new", "stays"), [(2, 1, True), (1, 2, False), (1, 1, False), (None, 1, False), (1, None, False)]
)
def test_of_two_states_the_one_that_was_updated_later_counts(old, new, stays):
    before, after = (event(updatedAt=None if seconds is None else at(seconds)) for seconds in (old, new))
    assert (newer_of(before, after) is before) == stays


def test_nothing_is_told_of_a_run_before_its_event_is_known():
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    assert (tracker.agent_id, tracker.events, tracker.is_known, tracker.active) == ("a", (), False, ())
    assert tracker.criteria.ids == ("req",)
    assert tracker.apply_event(event(status="COMPLETED")) is None
    assert apply_listing(tracker, event(status="COMPLETED"), seconds=20) is None
    assert [each.id for each in tracker.events] == ["e"]
    assert not tracker.is_known
    assert tracker.criteria is not None
    assert tracker.name == "agent a, requestId req, probably event e"


def test_once_known_a_run_is_followed_to_its_end():
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    assert apply_listing(tracker, event(), event("late", createdAt=at(100))) is None
    assert tracker.is_known
    assert tracker.criteria is None
    assert tracker.active == (event(),)
    assert tracker.name == "agent a, requestId req, event e"
    # A stranger's end is no concern of ours.
    assert apply_listing(tracker, event("late", "FAILED", createdAt=at(100)), seconds=40) is None
    done = event(status="COMPLETED")
    assert apply_listing(tracker, done, seconds=50) == Verdict(Outcome.COMPLETED, (done,))
    assert tracker.active == ()


def test_the_name_of_a_run_that_was_attached_to_names_its_event_once():
    tracker = RunTracker(Submission.for_event(event(), "a", T0), WaitPolicy())
    apply_listing(tracker, event())
    assert tracker.name == "agent a, event e"


@pytest.mark.parametrize(("status", "outcome"), [("COMPLETED", Outcome.COMPLETED), ("FAILED", Outcome.FAILED)])
def test_a_change_of_a_followed_event_can_be_the_end(status, outcome):
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    apply_listing(tracker, event())
    assert tracker.apply_event(event("stranger", status)) is None
    assert tracker.apply_event(event(updatedAt=at(40))) is None
    assert tracker.active[0].updatedAt == at(40)
    assert tracker.apply_event(event(status=status)) == Verdict(outcome, (event(status=status),))
    assert tracker.apply_event(event(status=status)) is None


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        (("COMPLETED", "COMPLETED"), Outcome.COMPLETED),
        (("FAILED", "FAILED"), Outcome.FAILED),
        (("COMPLETED", "FAILED"), Outcome.AMBIGUOUS),
    ],
)
def test_runs_that_cannot_be_told_apart_are_a_verdict_if_they_end_alike(statuses, outcome):
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    assert apply_listing(tracker, event("a"), event("b")) is None
    assert not tracker.is_known
    first, second = (event(name, status) for name, status in zip("ab", statuses, strict=True))
    assert tracker.apply_event(first) is None
    assert [each.id for each in tracker.active] == ["b"]
    verdict = tracker.apply_event(second)
    assert verdict == Verdict(outcome, (first, second))
    assert verdict.event == first


def test_runs_that_end_differently_are_told_before_the_rest_is_over():
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    apply_listing(tracker, event("a"), event("b"), event("c"))
    tracker.apply_event(event("a", "FAILED"))
    verdict = tracker.apply_event(event("c", "COMPLETED"))
    assert verdict == Verdict(Outcome.AMBIGUOUS, (event("a", "FAILED"), event("b"), event("c", "COMPLETED")))


def test_a_task_may_refuse_what_cannot_be_told_apart_at_once():
    tracker = RunTracker(SUBMISSION, WaitPolicy(on_ambiguous="fail"))
    assert apply_listing(tracker, event("a"), event("b")) == Verdict(Outcome.AMBIGUOUS, (event("a"), event("b")))
    alone = RunTracker(SUBMISSION, WaitPolicy(on_ambiguous="fail"))
    assert apply_listing(alone, event("a")) is None


def test_a_task_may_refuse_a_run_of_which_nobody_has_seen_the_answer():
    in_doubt = SUBMISSION.changed(request_id=None, in_doubt=True)
    taken = RunTracker(in_doubt, WaitPolicy())
    assert apply_listing(taken, event("a")) is None
    assert taken.apply_event(event("a", "COMPLETED")) == Verdict(Outcome.COMPLETED, (event("a", "COMPLETED"),))
    verdict = apply_listing(RunTracker(in_doubt, WaitPolicy(on_ambiguous="fail")), event("a"))
    assert verdict == Verdict(Outcome.AMBIGUOUS, (event("a"),))
    error = to_error(verdict, in_doubt, what_now="")
    assert isinstance(error, AmbiguousAgentRunError)
    assert error.event_ids == ("a",)
    assert "this task's run was started: the answer to its POST was lost" in str(error)
    assert "may be another party's (RUNNING). Look" in str(error)
    # With others beside it, those are what matters.
    several = apply_listing(RunTracker(in_doubt, WaitPolicy(on_ambiguous="fail")), event("a"), event("b"))
    assert "cannot be told apart" in str(to_error(several, in_doubt, what_now=""))


def test_a_run_without_an_answer_is_matched_over_the_whole_time_of_its_search():
    in_doubt = SUBMISSION.changed(request_id=None, in_doubt=True)
    tracker = RunTracker(in_doubt, WaitPolicy(settle=1.0, appear_within=1.0))
    early, late = event("early", "COMPLETED", createdAt=at(3)), event("late", "FAILED", createdAt=at(25))
    assert apply_listing(tracker, early, seconds=10) is None
    assert apply_listing(tracker, early, late) == Verdict(Outcome.AMBIGUOUS, (early, late))


def test_a_run_without_an_event_is_not_found_and_one_at_its_deadline_timed_out():
    tracker = RunTracker(SUBMISSION, WaitPolicy(appear_within=60.0), at(0))
    assert apply_listing(tracker, seconds=59) is None
    assert tracker.expire() == Verdict(Outcome.TIMED_OUT)
    assert apply_listing(tracker, seconds=61) == Verdict(Outcome.NOT_FOUND)
    assert Verdict(Outcome.NOT_FOUND).event is None
    found = RunTracker(SUBMISSION, WaitPolicy())
    apply_listing(found, event())
    assert found.expire() == Verdict(Outcome.TIMED_OUT, (event(),))


def test_what_a_run_used():
    row = event(
        status="COMPLETED",
        startedAt=at(0),
        completedAt=at(90),
        finalModel="m",
        browserStepCount=3,
        browserSessionSeconds=80,
    )
    assert usage_of(row, try_number=2) == {
        "finalModel": "m",
        "browserStepCount": 3,
        "browserSessionSeconds": 80,
        "duration_seconds": 90.0,
        "try_number": 2,
    }
    assert duration_of(event(startedAt=at(0))) is None
    assert duration_of(event(completedAt=at(0))) is None


def test_an_older_state_of_a_followed_event_does_not_undo_a_newer_one():
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    apply_listing(tracker, event(updatedAt=at(20)))
    tracker.apply_event(event(updatedAt=at(10)))
    assert tracker.events == (event(updatedAt=at(20)),)
    apply_listing(tracker, event(updatedAt=at(10)), seconds=60)
    assert tracker.events == (event(updatedAt=at(20)),)


@pytest.mark.parametrize("skew", [-600.0, -60.0, 0.0, 60.0, 600.0, 86400.0])
@pytest.mark.parametrize("date", [True, False])
def test_another_machines_clock_neither_hurries_a_verdict_nor_delays_it(skew, date):
    # The submission was made elsewhere; here the clock is `skew` seconds ahead.
    tracker = RunTracker(SUBMISSION if date else UNTIMED, WaitPolicy(), at(skew))

    def outcome(seconds):
        return tracker.apply_listing(
            Listing((event(status="COMPLETED"),), at(seconds) if date else None), at(seconds + skew)
        )

    assert outcome(0) is None
    assert outcome(29) is None
    assert outcome(SETTLED).outcome == Outcome.COMPLETED


@pytest.mark.parametrize("skew", [-600.0, 0.0, 600.0])
@pytest.mark.parametrize("date", [True, False])
def test_another_machines_clock_does_not_move_the_report_of_a_missing_run(skew, date):
    tracker = RunTracker(SUBMISSION if date else UNTIMED, WaitPolicy(appear_within=60.0), at(skew))

    def outcome(seconds):
        return tracker.apply_listing(Listing((), at(seconds) if date else None), at(seconds + skew))

    assert [outcome(seconds) for seconds in (0, 30, 59)] == [None] * 3
    assert outcome(61) == Verdict(Outcome.NOT_FOUND)


def test_a_resumed_wait_decides_by_the_servers_clock_or_without_it_after_settle():
    over = (event(status="COMPLETED"),)
    resumed = RunTracker(SUBMISSION, WaitPolicy())
    assert resumed.apply_listing(Listing(over, at(3600)), at(3600)).outcome == Outcome.COMPLETED
    blind = RunTracker(UNTIMED, WaitPolicy())
    assert blind.apply_listing(Listing(over, None), at(3600)) is None
    assert blind.apply_listing(Listing(over, None), at(3629)) is None
    assert blind.apply_listing(Listing(over, None), at(3630)).outcome == Outcome.COMPLETED


# --- what appears after `settle` --------------------------------------------------------------------------------------


def late_looks():
    """Looks that show what appeared late, in the ways in which that can be seen: (what, the looks that follow)."""
    after = event("e", createdAt=at(100))
    in_window = event("e", createdAt=at(10))
    return {
        "created after the window": [((), SETTLED), ((after,), 105)],
        "created after the window, at the first look": [((after,), 105)],
        "created in the window, shown after it by a replica that lags": [((), SETTLED), ((in_window,), 60)],
        "undated": [((), SETTLED), ((event("e", createdAt=None),), 60)],
    }


@pytest.mark.parametrize("how", late_looks())
def test_a_run_that_appears_late_is_taken_and_not_called_known(how):
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    assert [apply_listing(tracker, *events, seconds=seconds) for events, seconds in late_looks()[how]][-1] is None
    assert (tracker.is_late, tracker.is_known) == (True, False)
    assert tracker.name == "agent a, requestId req, probably event e"
    verdict = tracker.apply_event(event("e", "COMPLETED"))
    assert (verdict.outcome, verdict.late, verdict.event.id, verdict.known_event) == ("completed", True, "e", None)


@pytest.mark.parametrize("how", late_looks())
def test_a_task_may_refuse_a_run_that_appears_late(how):
    tracker = RunTracker(SUBMISSION, WaitPolicy(on_ambiguous="fail"))
    verdict = [apply_listing(tracker, *events, seconds=seconds) for events, seconds in late_looks()[how]][-1]
    assert (verdict.outcome, verdict.late) == (Outcome.AMBIGUOUS, True)
    error = to_error(verdict, SUBMISSION, what_now="Never.")
    assert isinstance(error, AmbiguousAgentRunError)
    assert str(error) == (
        "The run was accepted, but no event of it appeared within `settle`. What appeared later may be another run's "
        "(RUNNING). Look at the agent's runs, and clear the task if a new run is wanted; if the platform is slow, "
        "raise settle, or take a late run with on_ambiguous='share'. agent=a request_id=req event=e"
    )


def test_of_several_late_runs_none_is_picked():
    late = [event("a", createdAt=at(90)), event("b", createdAt=at(60))]
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    assert apply_listing(tracker, *late, seconds=100) is None
    assert [each.id for each in tracker.active] == ["b", "a"]
    assert tracker.apply_event(event("b", "COMPLETED")) is None
    assert tracker.apply_event(event("a", "FAILED")).outcome == Outcome.AMBIGUOUS


def test_what_appears_later_than_appear_within_is_another_runs_whoever_looks_first():
    # A second try that looks a day later sees all runs of that day.
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    assert apply_listing(tracker, event("e", createdAt=at(3600)), seconds=86400) == Verdict(Outcome.NOT_FOUND)


def test_what_has_appeared_in_time_is_known_and_not_late():
    tracker = RunTracker(SUBMISSION, WaitPolicy(on_ambiguous="fail"))
    assert apply_listing(tracker, event(), seconds=10) is None
    assert apply_listing(tracker, event(), event("after", createdAt=at(100)), seconds=105) is None
    verdict = tracker.apply_event(event(status="COMPLETED"))
    assert (tracker.is_late, verdict.late, verdict.known_event) == (False, False, event(status="COMPLETED"))


def test_a_look_for_a_run_that_is_known_is_one_request():
    clock = ManualClock(T0)
    keep_time(clock)
    sim = Simulator(clock, config=SimulatorConfig(queue_seconds=0.0, run_seconds=500.0))
    sim.add_agent("a")
    client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=mock_transport(sim))
    submission = client.run_flow(submit("a", settle=30.0))
    clock.advance(SETTLED)
    tracker = RunTracker(submission, WaitPolicy())
    asked = []
    for _ in range(2):
        before = len(sim.requests)
        tracker.apply_listing(client.run_flow(tracker.read_listing()), clock.now)
        asked.append(len(sim.requests) - before)
    assert asked == [2, 1]


def test_an_active_run_is_not_overlooked_behind_hundreds_that_are_over():
    clock = ManualClock(T0)
    sim = Simulator(clock, config=SimulatorConfig(queue_seconds=0.0, run_seconds=5000.0))
    sim.add_agent("a")
    running = sim.start_scheduled_run("a")
    sim.add_agent("a", run_seconds=1.0)
    for _ in range(250):
        clock.advance(2.0)
        sim.start_scheduled_run("a")
    clock.advance(2.0)
    client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=mock_transport(sim))
    assert [each.id for each in client.run_flow(active_runs("a"))] == [running]


def test_the_active_runs_of_an_agent_are_those_that_are_not_over():
    clock = ManualClock(T0)
    sim = Simulator(clock, config=SimulatorConfig(queue_seconds=0.0, run_seconds=100.0))
    sim.add_agent("a")
    sim.add_history("a", 3)
    running = sim.start_scheduled_run("a")
    sim.add_agent("a", queue_seconds=50.0)
    pending = sim.start_scheduled_run("a")
    sim.config = SimulatorConfig(extra_status="QUEUED")
    sim.add_agent("a", queue_seconds=2.0)
    odd = sim.start_scheduled_run("a")
    clock.advance(1.5)
    client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=mock_transport(sim))
    assert {each.id for each in client.run_flow(active_runs("a"))} == {running, pending, odd}


# --- rows that cannot be read ----------------------------------------------------------------------------------------


def unreadable(name="e", **fields):
    """An event whose row has no status."""
    times = {key: value.isoformat() if isinstance(value, datetime) else value for key, value in fields.items()}
    return read_event({"id": name, **times})


@pytest.mark.parametrize("status", ["PENDING", "COMPLETED", "FAILED", "CANCELLED", None])
@pytest.mark.parametrize("completed_at", [7, "2026-01-01T09:00:00Z"])
def test_a_row_that_cannot_be_read_is_not_over_whatever_it_says(status, completed_at):
    odd = read_event({"id": "e", "status": status, "completedAt": completed_at, "startedAt": 7})
    assert not is_terminal(odd)
    assert is_active(odd) == (completed_at == 7)


def test_a_row_that_cannot_be_read_takes_no_end_back_and_keeps_what_was_known():
    over = event(status="COMPLETED", updatedAt=at(5))
    assert newer_of(over, unreadable(updatedAt=at(9))) is over
    begun = event(startedAt=at(2), agentId="a", requestId="r", updatedAt=at(3))
    later = newer_of(begun, unreadable(updatedAt=at(4)))
    assert later.unreadable is not None
    assert (later.createdAt, later.startedAt, later.agentId, later.requestId) == (at(1), at(2), "a", "r")
    assert newer_of(begun, unreadable(updatedAt=at(2))) is begun
    assert newer_of(later, over) is over


@pytest.mark.parametrize("named", [True, False])
def test_a_run_whose_row_cannot_be_read_is_waited_for_until_it_can_be(named):
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    fields = {"createdAt": at(1), **({"requestId": "req"} if named else {})}
    assert apply_listing(tracker, unreadable(**fields)) is None
    assert apply_listing(tracker, unreadable(**fields), seconds=9000.0) is None
    assert apply_listing(tracker, event(status="COMPLETED", **fields), seconds=9001.0).outcome == Outcome.COMPLETED


@pytest.mark.parametrize("odd", [unreadable("b"), read_event({"status": "RUNNING"}), read_event(None)])
def test_another_unreadable_row_holds_the_verdict_only_as_long_as_it_is_shown(odd):
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    assert apply_listing(tracker, event(status="COMPLETED"), odd) is None
    verdict = apply_listing(tracker, event(status="COMPLETED"), seconds=40.0)
    assert (verdict.outcome, [each.id for each in verdict.events]) == (Outcome.COMPLETED, ["e"])


@pytest.mark.parametrize("odd", [unreadable("b"), unreadable("b", createdAt=at(200))])
def test_a_wait_that_was_held_says_by_which_event_and_why(odd):
    tracker = RunTracker(SUBMISSION, WaitPolicy())
    assert apply_listing(tracker, odd, seconds=9000.0) is None
    assert f"is unreadable: {odd.unreadable}. agent=a request_id=req event=b" in state_of(tracker)
    error = to_error(tracker.expire(), SUBMISSION, what_now="Retry.")
    assert f"was not finished at the deadline (unreadable: {odd.unreadable})." in str(error)
    assert str(error).endswith("event=b")
    assert error.event_ids == ("b",)


@pytest.mark.parametrize(
    ("odd", "active"),
    [
        ({"status": None, "completedAt": None}, True),
        ({"completedAt": 7}, True),
        ({"id": 7, "completedAt": None}, True),
        (7, True),
        ({"status": None}, False),
        ({"id": 7}, False),
        ({"userId": 7, "finalModel": {}, "updatedAt": 7, "agentId": [], "requestId": 7}, False),
    ],
    ids=repr,
)
def test_an_agent_is_busy_with_a_row_that_cannot_be_read_unless_it_names_its_end(odd, active):
    clock = ManualClock(T0)
    sim = Simulator(clock, config=SimulatorConfig(queue_seconds=0.0, run_seconds=100.0))
    sim.add_agent("a")
    running = sim.start_scheduled_run("a")
    sim.add_row("a", odd)
    client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=mock_transport(sim))
    busy = client.run_flow(active_runs("a"))
    # What can be read comes first: it is what an attached task waits for.
    assert busy[0].id == running
    assert [event.unreadable is not None for event in busy[1:]] == [True] * active
