"""How the plan asks, and what it makes of answers that do not show everything: each request is looked at."""

from __future__ import annotations

from datetime import timedelta

import pytest
from driving import Gate, Scene

from airflow_provider_agents.api.errors import AuthenticationError
from airflow_provider_agents.polling.asking import IdleAgent
from airflow_provider_agents.polling.subscriptions import ACCOUNT
from airflow_provider_agents.runs.completions import CompletionTracker
from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import SimulatorConfig

AGENTS, EVENTS = "/v1/agents/agent-0/events", "/v1/events"


def no_account(path, _query):
    """A key that may read its agents only."""
    return 403 if path == EVENTS else None


def nothing_but_agents(path, query):
    """The same, and the agents' listings cannot be narrowed."""
    return 403 if path == EVENTS else 400 if "startedAfter" in query else None


def statuses(asked):
    return [query.get("status") for _, query in asked]


# --- an agent's own listing ------------------------------------------------------------------------------------------


def test_an_agents_listing_is_read_after_its_pending_runs_and_back_to_the_post():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=1000.0)
    scene.sim.add_history("agent-0", 1000, every=30.0, run_seconds=1.0)
    scene.waiting()
    gate = Gate(scene, no_account)
    gate.cycle()
    gate.asked.clear()
    asked = gate.cycle()
    assert [path for path, _ in asked] == [AGENTS, AGENTS]
    assert statuses(asked) == ["PENDING", None]


def test_a_key_that_is_revoked_is_told_by_an_agents_listing_too():
    scene = Scene(agents=3, queue_seconds=0.0, run_seconds=1000.0)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    gate = Gate(scene, nothing_but_agents)
    gate.cycle(9)
    gate.refuse = lambda path, query: nothing_but_agents(path, query) or 401
    scene.driver.wait_for(*subscriptions)
    assert {type(subscription.error) for subscription in subscriptions} == {AuthenticationError}


@pytest.mark.parametrize("way", ["seeking", "following"])
def test_an_outage_of_an_agents_listing_is_told_to_those_who_wait_for_it(way):
    scene = Scene(agents=2, queue_seconds=0.0, run_seconds=1000.0)
    gate = Gate(scene, nothing_but_agents)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    if way == "following":
        gate.cycle(12)
    down = subscriptions[0].subscriber.agent_id
    gate.refuse = lambda path, query: 500 if f"/{down}/" in path else nothing_but_agents(path, query)
    gate.cycle(6)
    troubled, well = subscriptions
    assert troubled.outage is not None
    assert "500" in str(troubled.outage.error)
    assert well.outage is None
    gate.refuse = nothing_but_agents
    gate.cycle(3)
    assert troubled.outage is None


# --- a look that does not show everything ----------------------------------------------------------------------------


def test_a_listing_that_is_broken_off_says_nothing_of_what_it_did_not_show():
    # Seen for the first time after hours, as after a restart. The account's listing would be dozens of pages.
    scene = Scene(agents=3, queue_seconds=0.0, run_seconds=9 * 3600.0)
    submissions = [scene.submitted(agent_id).changed(request_id=None) for agent_id in scene.agents]
    scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=30.0, schedule_every=3.0)
    scene.clock.advance(8 * 3600)
    subscriptions = [
        scene.driver.subscribe(RunTracker(submission, WaitPolicy()), deadline_at=scene.clock.now + timedelta(hours=8))
        for submission in submissions
    ]
    scene.cycle(2)
    assert [subscription.has_ended for subscription in subscriptions] == [False] * 3
    assert [len(subscription.following) for subscription in subscriptions] == [1] * 3


def test_a_watchers_short_listing_says_nothing_of_runs_that_are_older():
    scene = Scene(queue_seconds=0.0, run_seconds=9 * 3600.0)
    submission = scene.submitted().changed(request_id=None)
    # What began since fills more than the page with which the watcher's listing ends.
    scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=1.0, schedule_every=3.0)
    scene.clock.advance(2 * 3600)
    scene.driver.subscribe(
        CompletionTracker.from_now(ACCOUNT, 10.0, scene.sim.now()),
        interval=5.0,
        deadline_at=scene.clock.now + timedelta(days=9),
    )
    subscription = scene.driver.subscribe(
        RunTracker(submission, WaitPolicy()), deadline_at=scene.clock.now + timedelta(hours=8)
    )
    scene.cycle(3)
    assert not subscription.has_ended
    assert len(subscription.following) == 1


@pytest.mark.parametrize("named", [True, False])
def test_a_run_whose_row_cannot_be_read_is_not_taken_for_one_that_never_appeared(named):
    scene = Scene(agents=30, queue_seconds=0.0, run_seconds=400.0)
    submissions = [scene.submitted(agent_id).changed(request_id=None) for agent_id in scene.agents]
    damaged = scene.sim.executions[0].event_id
    scene.sim.corrupt(damaged, {"status": None} if named else {"status": None, "agentId": None})
    subscriptions = [
        scene.driver.subscribe(
            RunTracker(one, WaitPolicy(appear_within=60.0)), deadline_at=scene.clock.now + timedelta(hours=8)
        )
        for one in submissions
    ]
    scene.cycle(30)
    assert not any(subscription.has_ended for subscription in subscriptions)
    assert [event.unreadable is not None for event in subscriptions[0].subscriber.events] == [True]
    scene.sim.restore(damaged)
    scene.driver.wait_for(*subscriptions)
    assert {subscription.result.outcome for subscription in subscriptions} == {Outcome.COMPLETED}


# --- a followed event that nothing shows -----------------------------------------------------------------------------


def test_the_search_for_a_followed_event_ends_where_all_is_older_than_it():
    scene = Scene(queue_seconds=0.0, run_seconds=1000.0)
    scene.sim.add_history("agent-0", 1000, every=30.0, run_seconds=1.0)
    subscription = scene.waiting()
    gate = Gate(scene, nothing_but_agents)
    gate.cycle(9)
    assert subscription.following
    gate.asked.clear()
    searches = [query for path, query in gate.cycle(4) if path == AGENTS and "startedAfter" not in query]
    # One page shows it. None of them is continued.
    assert searches
    assert not any("nextToken" in query for query in searches)


def test_the_search_for_a_followed_event_goes_on_until_it_is_there():
    scene = Scene(queue_seconds=0.0, run_seconds=100.0)
    subscription = scene.waiting()
    Gate(scene, nothing_but_agents).cycle(9)
    assert subscription.following
    for _ in range(450):
        scene.sim.start_scheduled_run("agent-0")
    scene.clock.advance(100)
    scene.cycle()
    assert subscription.result.outcome == Outcome.COMPLETED


def test_the_search_for_an_event_that_is_gone_ends_where_all_is_older_than_it():
    scene = Scene(queue_seconds=0.0, run_seconds=1000.0)
    scene.sim.add_history("agent-0", 1000, every=30.0, run_seconds=1.0)
    subscription = scene.waiting()
    gate = Gate(scene, nothing_but_agents)
    gate.cycle(9)
    (event_id,) = subscription.following
    scene.sim.corrupt(event_id, {"id": "other"})
    gate.asked.clear()
    searches = [query for path, query in gate.cycle(4) if path == AGENTS and "startedAfter" not in query]
    assert searches
    assert not any("nextToken" in query for query in searches)


def test_an_event_of_which_only_the_id_is_known_is_searched_for_to_the_end():
    from airflow_provider_agents.api.models import ExecutionEvent

    scene = Scene(queue_seconds=0.0, run_seconds=4000.0)
    event_id = scene.sim.start_scheduled_run("agent-0")
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=1.0)
    for _ in range(450):
        scene.clock.advance(2)
        scene.sim.start_scheduled_run("agent-0")
    known = Submission.for_event(ExecutionEvent(id=event_id, status="RUNNING"), "agent-0", scene.clock.now)
    subscription = scene.driver.subscribe(
        RunTracker(known, WaitPolicy()), deadline_at=scene.clock.now + timedelta(hours=2)
    )
    gate = Gate(scene, nothing_but_agents)
    gate.cycle(2)
    assert [event.startedAt is not None for event in subscription.subscriber.active] == [True]


def test_an_event_that_says_nothing_of_its_time_is_searched_for_as_well():
    scene = Scene(queue_seconds=60.0, run_seconds=10.0)
    scene.sim.corrupt(None, {"createdAt": None})
    subscription = scene.waiting()
    Gate(scene, nothing_but_agents)
    (verdict,) = scene.driver.wait_for(subscription)
    assert verdict.outcome == Outcome.COMPLETED


def test_runs_that_have_left_the_active_set_are_looked_for_where_they_began():
    scene = Scene(agents=300, queue_seconds=0.0, run_seconds=100.0)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    gate = Gate(scene)
    scene.driver.wait_for(*subscriptions)
    windows = [query for path, query in gate.asked if path == EVENTS and "startedAfter" in query]
    assert windows
    assert all("startedBefore" in query for query in windows)


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("request_id", "known"), [("field", True), ("id", True), ("absent", False)])
def test_a_run_that_bears_its_requests_id_is_known_with_the_first_look(request_id, known):
    scene = Scene(SimulatorConfig(request_id=request_id), agents=3, queue_seconds=0.0, run_seconds=1000.0)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents]
    scene.cycle()
    mine = [(run.event_id,) if known else () for run in scene.sim.executions]
    assert [subscription.following for subscription in subscriptions] == mine


def test_an_id_means_nothing_in_an_event_of_another_agent():
    scene = Scene(SimulatorConfig(), agents=2, queue_seconds=0.0, run_seconds=1000.0)
    submission = scene.submitted("agent-0")
    stranger = scene.sim.start_scheduled_run("agent-1")
    scene.sim.corrupt(stranger, {"requestId": submission.request_id})
    deadline_at = scene.clock.now + timedelta(hours=1)
    subscription = scene.driver.subscribe(RunTracker(submission, WaitPolicy()), deadline_at=deadline_at)
    # So that the other agent's events are looked at, too.
    scene.waiting("agent-1")
    scene.cycle(2)
    assert subscription.following == ()
    scene.cycle(8)
    assert subscription.following == (scene.sim.executions[0].event_id,)


# --- requests of their own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agents", "shares"), [(("agent-0", "agent-0"), 1), (("agent-0", "agent-1"), 2)])
def test_subscribers_share_their_own_requests_if_their_keys_are_equal(agents, shares):
    def requests(agent_ids):
        scene = Scene(agents=2, queue_seconds=0.0, run_seconds=1000.0)
        gate = Gate(scene)
        for agent_id in agent_ids:
            scene.driver.subscribe(IdleAgent(agent_id, lambda *_: None), deadline_at=scene.clock() + timedelta(hours=1))
        return gate.cycle()

    assert len(requests(agents)) == shares * len(requests(agents[:1]))
