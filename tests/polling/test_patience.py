"""Refusals in the midst of a wait: whom they concern, and which of them end it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from driving import Gate, Scene
from refusals import ERROR_OF

from airflow_provider_agents.api.errors import (
    NotFoundError,
)
from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.patience import REFUSED_SECONDS
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import SimulatorConfig

EVENTS = "/v1/events"
OF_AN_AGENT = [status for status in ERROR_OF if status != 401]


def advance(scene, seconds):
    end = scene.clock.now + timedelta(seconds=seconds)
    while scene.clock.now < end and scene.plan.subscriptions:
        scene.driver.cycle_once()


def only_agents(path, _query):
    """A key that may read its agents only."""
    return 403 if path == EVENTS else None


def of_agent(agent_id, status):
    return lambda path, query: status if f"/{agent_id}/" in path else only_agents(path, query)


@pytest.mark.parametrize("way", ["seeking", "following"])
@pytest.mark.parametrize("seconds", [1.0, 60.0, REFUSED_SECONDS - 30.0])
@pytest.mark.parametrize("status", ERROR_OF)
def test_a_time_of_refusals_ends_no_wait(status, seconds, way):
    config = SimulatorConfig(request_id="field") if way == "following" else SimulatorConfig()
    scene = Scene(config, agents=3, queue_seconds=0.0, run_seconds=900.0)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    scene.cycle(2)
    gate = Gate(scene, lambda _path, _query: status)
    advance(scene, seconds)
    assert all(type(subscription.outage.error) is ERROR_OF[status] for subscription in subscriptions)
    gate.refuse = lambda _path, _query: None
    scene.driver.wait_for(*subscriptions)
    assert {subscription.result.outcome for subscription in subscriptions} == {Outcome.COMPLETED}


@pytest.mark.parametrize("interval", [5.0, 60.0, 400.0])
@pytest.mark.parametrize("status", ERROR_OF)
def test_five_minutes_of_nothing_else_end_all_waits_typed(status, interval):
    scene = Scene(SimulatorConfig(request_id="field"), agents=3, queue_seconds=0.0, run_seconds=9000.0)
    subscriptions = [scene.waiting(agent_id, interval=interval) for agent_id in scene.agents]
    scene.cycle(2)
    refused_from = scene.clock.now
    Gate(scene, lambda _path, _query: status)
    scene.driver.wait_for(*subscriptions)
    assert {type(subscription.error) for subscription in subscriptions} == {ERROR_OF[status]}
    assert all(str(status) in str(subscription.error) for subscription in subscriptions)
    assert all("Every request since" in str(subscription.error) for subscription in subscriptions)
    lasted = (scene.clock.now - refused_from).total_seconds()
    assert REFUSED_SECONDS <= lasted <= 2 * REFUSED_SECONDS + 2 * interval


def test_a_refused_key_is_tried_with_growing_pauses():
    scene = Scene(SimulatorConfig(request_id="field"), agents=50, queue_seconds=0.0, run_seconds=9000.0)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    scene.cycle(2)
    gate = Gate(scene, lambda _path, _query: 401)
    scene.driver.wait_for(*subscriptions)
    assert len(gate.asked) <= 10


@pytest.mark.parametrize("status", OF_AN_AGENT)
@pytest.mark.parametrize("way", ["seeking", "following"])
def test_a_refusal_of_one_agent_touches_no_other(status, way):
    config = SimulatorConfig(request_id="field") if way == "following" else SimulatorConfig()
    scene = Scene(config, agents=4, queue_seconds=0.0, run_seconds=REFUSED_SECONDS * 3)
    gate = Gate(scene, only_agents)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    gate.cycle(2)
    *refused, well = subscriptions

    def refuse(path, query):
        return only_agents(path, query) if f"/{well.subscriber.agent_id}/" in path else status

    gate.refuse = refuse
    scene.driver.wait_for(*refused)
    assert {type(subscription.error) for subscription in refused} == {ERROR_OF[status]}
    assert not well.has_ended
    assert well.outage is None
    assert scene.driver.wait_for(well)[0].outcome == Outcome.COMPLETED


@pytest.mark.parametrize("other", [503, None])
@pytest.mark.parametrize("status", OF_AN_AGENT)
def test_refusals_with_anything_else_in_between_end_no_wait(status, other):
    scene = Scene(SimulatorConfig(request_id="field"), queue_seconds=0.0, run_seconds=REFUSED_SECONDS * 6)
    gate = Gate(scene, only_agents)
    subscription = scene.waiting()
    gate.cycle(2)
    began = scene.clock.now

    def refuse(path, query):
        # Out of step with the pauses, which double.
        is_other = (scene.clock.now - began).total_seconds() % 70 < 30
        refused = other if is_other else status
        return refused or only_agents(path, query)

    gate.refuse = refuse
    advance(scene, REFUSED_SECONDS * 4)
    assert not subscription.has_ended
    gate.refuse = only_agents
    assert scene.driver.wait_for(subscription)[0].outcome == Outcome.COMPLETED


@pytest.mark.parametrize("another_task", [True, False])
def test_an_answer_for_another_task_of_the_same_agent_counts(another_task):
    scene = Scene(SimulatorConfig(request_id="field"), queue_seconds=0.0, run_seconds=9 * 3600.0)
    gate = Gate(scene, only_agents)
    rare = scene.waiting(interval=REFUSED_SECONDS + 10)
    began = scene.clock.now
    if another_task:
        scene.waiting(interval=5.0)

    def refuse(path, query):
        # Both looks of the rare one, and nothing of what is between them.
        is_good = 10 < (scene.clock.now - began).total_seconds() < REFUSED_SECONDS
        return only_agents(path, query) if is_good else 404

    gate.refuse = refuse
    advance(scene, REFUSED_SECONDS + 30)
    assert rare.has_ended is not another_task


@pytest.mark.parametrize("status", ERROR_OF)
def test_the_first_refusal_ends_a_wait_that_nothing_was_answered_for(status):
    scene = Scene(SimulatorConfig(request_id="field"), agents=2, queue_seconds=0.0, run_seconds=900.0)
    event_id = scene.sim.start_scheduled_run("agent-0")
    known = Submission.for_event(ExecutionEvent(id=event_id, status="RUNNING"), "agent-0", scene.clock.now)
    deadline_at = scene.clock.now + timedelta(hours=1)

    def join(answered):
        tracker = RunTracker(known, WaitPolicy())
        return scene.plan.subscribe(
            tracker, interval=5.0, deadline_at=deadline_at, wake=lambda: None, at=scene.driver.at(), answered=answered
        )

    gate = Gate(scene, lambda _path, _query: status)
    new, old = join(answered=False), join(answered=True)
    gate.cycle()
    assert (type(new.error), old.has_ended) == (ERROR_OF[status], False)
    gate.refuse = lambda _path, _query: None
    later = join(answered=False)
    gate.cycle(2)
    gate.refuse = lambda _path, _query: status
    gate.cycle(2)
    assert not later.has_ended


def test_an_agent_that_is_deleted_ends_the_wait_for_its_run_within_some_minutes():
    scene = Scene(SimulatorConfig(request_id="field"), agents=2, queue_seconds=0.0, run_seconds=4 * 3600.0)
    gone, kept = (scene.waiting(agent_id) for agent_id in scene.agents)
    scene.cycle(3)
    began = scene.clock.now
    scene.sim.remove_agent("agent-0")
    scene.driver.wait_for(gone)
    assert type(gone.error) is NotFoundError
    assert REFUSED_SECONDS <= (scene.clock.now - began).total_seconds() <= 2 * REFUSED_SECONDS
    assert not kept.has_ended


def test_the_accounts_listing_is_asked_again_once_requests_are_no_longer_refused():
    scene = Scene(SimulatorConfig(request_id="field"), agents=40, queue_seconds=0.0, run_seconds=900.0)
    for agent_id in scene.agents:
        scene.waiting(agent_id)
    gate = Gate(scene, lambda _path, _query: 404)
    gate.cycle(2)
    gate.refuse = lambda _path, _query: None
    gate.cycle()
    assert len(gate.cycle()) <= 3
