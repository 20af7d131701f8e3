"""The plan by itself, driven by hand against the simulator on a clock of the test's own."""

from __future__ import annotations

import random
from datetime import timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
from driving import Gate, Scene, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_agents.api.errors import AuthenticationError, NotFoundError
from airflow_provider_agents.polling.plan import PollStats
from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import Fault, SimulatorConfig

# --- how much is asked ---


def test_a_thousand_runs_deferred_in_the_same_second_are_one_look():
    scene = Scene(agents=1000, run_seconds=1000.0)
    for agent_id in scene.agents:
        scene.waiting(agent_id)
    # A page holds 200 events: what is PENDING, and the account's listing back to the oldest.
    assert len(scene.cycle()) <= 12
    # From then on, the active set.
    assert len(scene.cycle()) <= 7


def test_runs_that_leave_the_active_set_together_are_found_by_few_windows():
    scene = Scene(agents=300, queue_seconds=0.0, run_seconds=lambda rng: 100.0)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    scene.cycle()
    while not any(subscription.has_ended for subscription in subscriptions):
        asked = scene.cycle()
    assert len(asked) <= 8
    assert {subscription.result.outcome for subscription in subscriptions} == {Outcome.COMPLETED}


def test_one_long_run_does_not_make_every_cycle_page_through_what_happened_since():
    scene = Scene(queue_seconds=0.0, run_seconds=8 * 3600.0)
    scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=30.0, schedule_every=3.0)
    scene.waiting()
    scene.cycle()
    scene.clock.advance(7 * 3600)
    assert len(scene.cycle()) <= 2
    assert len(scene.cycle(10)) <= 20


def test_an_estimate_that_is_far_off_costs_a_page():
    # Seen for the first time after eight hours, as after a restart: the account's listing would be 48 pages.
    scene = Scene(agents=3, queue_seconds=0.0, run_seconds=9 * 3600.0)
    submissions = [scene.submitted(agent_id) for agent_id in scene.agents]
    scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=30.0, schedule_every=3.0)
    scene.clock.advance(8 * 3600)
    for submission in submissions:
        scene.driver.subscribe(RunTracker(submission, WaitPolicy()), deadline_at=scene.clock.now + timedelta(hours=8))
    assert len(scene.cycle()) <= 2 + 2 * 3


def test_a_run_whose_event_is_gone_is_not_searched_for_in_every_cycle():
    scene = Scene(SimulatorConfig(request_id="field", retention_seconds=0.0), queue_seconds=0.0, run_seconds=100.0)
    scene.sim.add_history("agent-0", 100)
    subscription = scene.waiting()
    scene.cycle()
    scene.clock.advance(100)
    asked = [len(scene.cycle()) for _ in range(40)]
    assert not subscription.has_ended
    assert sum(asked) < 40 + 10


@pytest.mark.parametrize("way", ["account", "PENDING", "RUNNING"])
def test_a_key_that_may_not_read_the_account_reads_its_agents(way):
    scene = Scene(agents=40, queue_seconds=1.0, run_seconds=20.0)
    Gate(scene, lambda path, query: 403 if path == "/v1/events" and query.get("status", "account") == way else None)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    scene.driver.wait_for(*subscriptions)
    assert {subscription.result.outcome for subscription in subscriptions} == {Outcome.COMPLETED}


def test_a_window_that_is_refused_does_not_hide_a_run(caplog):
    caplog.set_level("INFO")
    scene = Scene(queue_seconds=0.0, run_seconds=50.0)
    scene.sim.intercept(
        lambda request, answer: scene.sim.error(400, "no such filter") if "startedAfter" in request.query else answer()
    )
    subscription = scene.waiting()
    began = scene.clock.now
    assert scene.driver.wait_for(subscription)[0].outcome == Outcome.COMPLETED
    assert scene.clock.now - began <= timedelta(seconds=56)
    told = [line for line in caplog.messages if line.startswith("A narrow listing was refused: ")]
    assert told
    assert "no such filter" in told[0]


def test_a_row_that_cannot_be_read_blinds_nobody_else():
    scene = Scene(agents=30, queue_seconds=0.0, run_seconds=20.0)
    scene.sim.add_agent("odd", queue_seconds=0.0, run_seconds=1000.0, end_status="FAILED")
    odd = scene.sim.start_scheduled_run("odd")
    scene.sim.corrupt(odd, {"status": None})
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    scene.driver.wait_for(*subscriptions)
    assert {subscription.result.outcome for subscription in subscriptions} == {Outcome.COMPLETED}


def test_an_event_with_an_empty_agent_id_is_not_taken_for_one_of_another_agent():
    # The account's listing then cannot tell whose it is, so the agents' own listings must.
    scene = Scene(SimulatorConfig(request_id="field"), agents=30, queue_seconds=0.0, run_seconds=20.0)
    scene.sim.corrupt(None, {"agentId": ""})
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    scene.driver.wait_for(*subscriptions)
    assert {subscription.result.outcome for subscription in subscriptions} == {Outcome.COMPLETED}


@pytest.mark.parametrize("never", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z"])
@pytest.mark.parametrize("field", ["createdAt", "startedAt", "completedAt", "updatedAt"])
def test_a_moment_that_means_never_breaks_nothing(field, never):
    scene = Scene(agents=3, queue_seconds=0.0, run_seconds=20.0)
    scene.sim.corrupt(None, {field: never})
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    scene.driver.wait_for(*subscriptions)
    assert {subscription.result.outcome for subscription in subscriptions} == {Outcome.COMPLETED}


# --- when ---


@pytest.mark.parametrize("agents", [1, 2, 40])
def test_a_poller_polls_in_the_shortest_interval_of_those_who_wait(agents):
    scene = Scene(agents=agents, queue_seconds=0.0, run_seconds=2000.0)
    scene.sim.add_history("agent-0", 20, run_seconds=2000.0)
    for number, agent_id in enumerate(scene.agents):
        scene.waiting(agent_id, interval=[5.0, 7.0, 60.0, 61.0][number % 4])
    scene.cycle(60)
    gaps = {after - before for before, after in pairwise(scene.driver.cycles)}
    assert gaps == {5.0}


def test_a_poller_slows_down_when_the_impatient_leave_and_speeds_up_when_they_come():
    scene = Scene(agents=2, queue_seconds=0.0, run_seconds=2000.0)
    quick, _slow = scene.waiting("agent-0", interval=2.0), scene.waiting("agent-1", interval=30.0)
    scene.cycle(3)
    scene.plan.unsubscribe(quick)
    scene.cycle(3)
    scene.waiting("agent-0", interval=2.0)
    scene.cycle(3)
    gaps = [after - before for before, after in pairwise(scene.driver.cycles)]
    assert gaps == pytest.approx([2, 2, 30, 30, 30, 2, 2, 2])


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    intervals=st.lists(st.sampled_from([0.5, 2.0, 5.0, 7.3, 30.0, 300.0]), min_size=1, max_size=12),
    seconds=st.lists(st.floats(1, 400), min_size=12, max_size=12),
    seed=st.integers(0, 999),
)
def test_no_run_is_noticed_later_than_its_interval_allows(intervals, seconds, seed):
    left = iter(seconds)
    scene = Scene(agents=len(intervals), seed=seed, queue_seconds=0.0)
    for agent_id in scene.agents:
        scene.sim.add_agent(agent_id, queue_seconds=0.0, run_seconds=next(left))
    subscriptions = [
        scene.waiting(agent_id, interval=interval) for agent_id, interval in zip(scene.agents, intervals, strict=True)
    ]
    over = {}
    while len(over) < len(subscriptions):
        scene.driver.cycle_once()
        for subscription in subscriptions:
            if subscription.has_ended and subscription not in over:
                over[subscription] = scene.clock.now
    for subscription in subscriptions:
        late = (over[subscription] - subscription.result.event.completedAt).total_seconds()
        # The first look of a poller waits for others to join.
        assert late <= subscription.interval + 1.0
        assert scene.driver.woken[subscription] >= 1


def test_waits_left_for_the_next_cycle_are_not_delayed_when_impatient_ones_leave():
    scene = Scene(agents=2, queue_seconds=0.0)
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=304.8)
    scene.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=300.8)
    quick, slow = scene.waiting("agent-0", interval=0.5), scene.waiting("agent-1", interval=5.0)
    scene.driver.wait_for(quick, slow)
    assert (scene.clock.now - slow.result.event.completedAt).total_seconds() <= 5.0


def test_there_is_one_last_look_at_the_deadline():
    scene = Scene(queue_seconds=0.0, run_seconds=100.0)
    subscription = scene.waiting(interval=60.0, hours=101 / 3600)
    began = scene.clock.now
    (verdict,) = scene.driver.wait_for(subscription)
    assert verdict.outcome == Outcome.COMPLETED
    assert (scene.clock.now - began).total_seconds() == pytest.approx(101, abs=0.1)


def test_at_the_deadline_of_a_run_that_goes_on_the_wait_expires_once():
    scene = Scene(queue_seconds=0.0, run_seconds=100.0)
    subscription = scene.waiting(hours=42 / 3600)
    (verdict,) = scene.driver.wait_for(subscription)
    assert verdict.outcome == Outcome.TIMED_OUT
    assert [event.status for event in verdict.events] == ["RUNNING"]
    assert not scene.plan.subscriptions


# --- failures ---


def test_pauses_grow_while_nothing_answers_and_end_with_the_first_answer():
    scene = Scene(queue_seconds=0.0, run_seconds=1000.0)
    scene.waiting()
    scene.cycle()
    scene.sim.faults.extend(Fault(kind="reset_before") for _ in range(6))
    before = len(scene.driver.cycles)
    scene.cycle(10)
    gaps = [
        round(after - at)
        for at, after in zip(scene.driver.cycles[before:], scene.driver.cycles[before + 1 :], strict=False)
    ]
    assert gaps[:6] == [5, 10, 20, 40, 80, 120]
    assert gaps[6] == 5


@pytest.mark.parametrize("how", ["seconds", "date"])
def test_retry_after_holds_everybody(how):
    scene = Scene(agents=30, queue_seconds=0.0, run_seconds=1000.0)
    for agent_id in scene.agents:
        scene.waiting(agent_id)
    scene.cycle(2)
    until = format_datetime(scene.clock.now + timedelta(seconds=95), usegmt=True)
    scene.refuse_once({"Retry-After": "90" if how == "seconds" else until})
    assert len(scene.cycle()) == 1
    told_at = scene.driver.cycles[-1]
    scene.cycle()
    assert scene.driver.cycles[-1] - told_at >= 89


def test_a_deadline_during_a_hold_is_told_without_a_request():
    scene = Scene(queue_seconds=0.0, run_seconds=1000.0)
    subscription = scene.waiting(hours=60 / 3600)
    scene.cycle()
    scene.refuse_once({"Retry-After": "900"})
    scene.cycle()
    before = len(scene.sim.requests)
    (verdict,) = scene.driver.wait_for(subscription)
    assert verdict.outcome == Outcome.TIMED_OUT
    assert len(scene.sim.requests) == before


def test_one_blip_is_told_to_nobody_and_an_outage_once():
    scene = Scene(queue_seconds=0.0, run_seconds=1000.0)
    subscription = scene.waiting()
    scene.cycle()
    woken = scene.driver.woken.get(subscription, 0)
    scene.sim.faults.append(Fault(kind="reset_before"))
    scene.cycle(3)
    assert subscription.outage is None
    assert scene.driver.woken.get(subscription, 0) == woken
    scene.sim.faults.extend(Fault(kind="reset_before") for _ in range(4))
    scene.cycle(4)
    assert subscription.outage.polls == 4
    assert scene.driver.woken[subscription] == woken + 1
    scene.cycle()
    assert subscription.outage is None
    assert scene.driver.woken[subscription] == woken + 2


def test_what_will_not_get_better_reaches_everybody_typed():
    scene = Scene(agents=30, queue_seconds=0.0, run_seconds=1000.0)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    scene.cycle()
    scene.sim.api_keys = ()
    scene.driver.wait_for(*subscriptions)
    assert {type(subscription.error) for subscription in subscriptions} == {AuthenticationError}


def test_an_agent_that_is_gone_concerns_nobody_else():
    scene = Scene(agents=2, queue_seconds=0.0, run_seconds=60.0)
    gone, kept = (scene.waiting(agent_id) for agent_id in scene.agents)
    scene.cycle()
    scene.sim.remove_agent("agent-0")
    scene.driver.wait_for(gone, kept)
    assert isinstance(gone.error, NotFoundError) or gone.result.outcome == Outcome.COMPLETED
    assert kept.result.outcome == Outcome.COMPLETED


# --- who waits ---


def test_two_who_wait_for_the_same_run_are_both_told():
    scene = Scene(queue_seconds=0.0, run_seconds=60.0)
    submission = scene.submitted()
    deadline_at = scene.clock.now + timedelta(hours=1)
    first, second = (
        scene.driver.subscribe(RunTracker(submission, WaitPolicy()), deadline_at=deadline_at) for _ in range(2)
    )
    scene.driver.wait_for(first, second)
    assert first.result.event == second.result.event


def test_a_run_that_is_known_by_its_event_alone_is_found_among_many():
    scene = Scene(queue_seconds=0.0, run_seconds=4000.0)
    event_id = scene.sim.start_scheduled_run("agent-0")
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=1.0)
    for _ in range(500):
        scene.clock.advance(2)
        scene.sim.start_scheduled_run("agent-0")
    subscription = scene.driver.subscribe(
        RunTracker(attached(event_id, scene), WaitPolicy()), deadline_at=scene.clock.now + timedelta(hours=2)
    )
    assert scene.driver.wait_for(subscription)[0].event.id == event_id


def attached(event_id, scene):
    from airflow_provider_agents.api.models import ExecutionEvent

    return Submission.for_event(ExecutionEvent(id=event_id, status="RUNNING"), "agent-0", scene.clock.now)


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), seed=st.integers(0, 999))
def test_whatever_joins_and_leaves_nothing_is_left_behind(data, seed):
    rng = random.Random(seed)
    scene = Scene(
        agents=6,
        seed=seed,
        queue_seconds=lambda r: r.uniform(0, 20),
        run_seconds=lambda r: r.uniform(0, 120),
    )
    subscriptions, left = [], set()
    for _ in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["join", "join", "leave", "cycle", "cycle", "fault"])):
            case "join":
                # A submission has tests of its own.
                scene.sim.faults.clear()
                subscriptions.append(scene.waiting(rng.choice(scene.agents), interval=rng.choice([1.0, 5.0, 20.0])))
            case "leave" if subscriptions:
                subscription = rng.choice(subscriptions)
                if not subscription.has_ended:
                    left.add(subscription)
                scene.plan.unsubscribe(subscription)
                scene.plan.unsubscribe(subscription)
            case "cycle" if scene.plan.subscriptions:
                scene.driver.cycle_once()
            case "fault":
                scene.sim.faults.append(Fault(kind=rng.choice(["reset_before", "html", "truncated"])))
    scene.driver.wait_for(*subscriptions)
    for subscription in subscriptions:
        assert (subscription.result is None) == (subscription in left)
        assert subscription.error is None
    assert scene.plan.stats() == PollStats()
