"""What a plan gives to those who wait, and what it does not: which states, whose events, and as of when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from driving import Gate, Scene

from airflow_provider_agents.api.errors import AuthenticationError
from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.runs.matching import Seek
from airflow_provider_agents.runs.verdict import Outcome, Rules, Wait
from airflow_provider_agents.simulator import World

EVENTS = "/v1/events"


class Witness:
    """Seeks for ever, or follows some events, and keeps what it is given."""

    def __init__(self, agent_id="agent-0", *, floor=None, following=()):
        self.agent_id = agent_id
        self.seek = None if following else Seek(floor=floor, ids=(), ripe_at=None)
        self.going_on = tuple(following)
        self.looks, self.updates = [], []

    def take(self, look, _began_at):
        self.looks.append(look)

    def update(self, event):
        self.updates.append(event)

    def expire(self):
        return "expired"


def watch(scene, witness, **join):
    return scene.driver.join(witness, deadline_at=scene.clock.now + timedelta(hours=9), **join)


def refused_account(path, _query):
    return 403 if path == EVENTS else None


def states(look):
    return {event.id: event.status for event in look.events}


# --- as of when ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["account", "agents"])
def test_a_look_is_as_old_as_its_first_page(way):
    # A walk over many pages takes long; what began meanwhile may be on none of them.
    scene = Scene(World(page_rows=10), agents=2, queue_seconds=0.0, run_seconds=9000.0)
    floor = scene.sim.now()
    for _ in range(25):
        scene.clock.advance(10)
        scene.sim.start_scheduled_run("agent-0")
    scene.driver.rng = None
    witnesses = [Witness(agent_id, floor=floor) for agent_id in scene.agents]
    for witness in witnesses:
        watch(scene, witness)
    Gate(scene, refused_account if way == "agents" else lambda path, query: None).sweep()
    handle = scene.sim.handle

    def take_a_while(*request):
        answer = handle(*request)
        scene.clock.advance(5)
        return answer

    scene.sim.handle = take_a_while
    scene.sweep()
    began_at = scene.clock.now - timedelta(seconds=scene.driver.at().clock - scene.driver.sweeps[-1])
    first, second = ((witness.looks[-1].server_time - began_at).total_seconds() for witness in witnesses)
    assert len(witnesses[0].looks[-1].events) == 25
    # By agents, one after the other, in either order: four pages of the one, two of the other, five seconds each.
    assert (round(first), round(second)) in ([(0, 0)] if way == "account" else [(0, 20), (10, 0)])


# --- which state -----------------------------------------------------------------------------------------------------


def test_who_seeks_is_not_shown_an_older_state_after_a_newer_one():
    scene = Scene(World(), queue_seconds=20.0, run_seconds=9000.0)
    floor = scene.sim.now()
    event_id = scene.sim.start_scheduled_run("agent-0")
    scene.clock.advance(1)
    witness = Witness(floor=floor)
    watch(scene, witness)
    past = {}
    row = scene.sim._event
    scene.sim._event = lambda run, now: row(run, now) | past
    run = scene.sim.truth(event_id)
    pending = row(run, scene.sim.now())
    scene.sweep()
    assert states(witness.looks[-1]) == {event_id: "PENDING"}
    scene.clock.advance(30)
    scene.sweep()
    assert states(witness.looks[-1]) == {event_id: "RUNNING"}
    past.update({name: pending[name] for name in ("status", "startedAt", "updatedAt")})
    scene.sweep()
    assert states(witness.looks[-1]) == {event_id: "RUNNING"}


def test_who_follows_is_not_told_an_older_state_after_a_newer_one():
    scene = Scene(World(), queue_seconds=20.0, run_seconds=9000.0)
    event_id = scene.sim.start_scheduled_run("agent-0")
    run = scene.sim.truth(event_id)
    row, past = scene.sim._event, {}
    scene.sim._event = lambda run, now: row(run, now) | past
    pending = row(run, scene.sim.now())
    scene.clock.advance(1)
    witness = Witness(following=[ExecutionEvent.model_validate(pending)])
    watch(scene, witness)
    scene.clock.advance(30)
    scene.sweep(3)
    told = [event.status for event in witness.updates]
    assert told == ["RUNNING"]
    past.update({name: pending[name] for name in ("status", "startedAt", "updatedAt")})
    scene.sweep(5)
    assert [event.status for event in witness.updates] == told


# --- whose -----------------------------------------------------------------------------------------------------------


def test_an_agents_own_listing_says_whose_its_events_are_though_they_do_not():
    scene = Scene(World(), queue_seconds=40.0, run_seconds=9000.0)
    row = scene.sim._event
    scene.sim._event = lambda run, now: row(run, now) | {"agentId": None}
    floor = scene.sim.now()
    event_id = scene.sim.start_scheduled_run("agent-0")
    witness = Witness(floor=floor)
    watch(scene, witness)
    gate = Gate(scene)
    gate.sweep()
    assert states(witness.looks[-1]) == {event_id: "PENDING"}
    scene.clock.advance(60)
    gate.sweep()
    assert states(witness.looks[-1]) == {event_id: "RUNNING"}


@pytest.mark.parametrize("named", [True, False])
def test_a_run_is_not_overlooked_behind_a_page_of_others_that_wait_for_their_turn(named):
    # By `startedAt`, which it does not have yet, it stands behind all that has begun; and others queue before it.
    scene = Scene(World(sort_by="startedAt", nulls="last"), queue_seconds=0.0, run_seconds=1.0)
    scene.sim.add_history("agent-0", 300, every=30.0, run_seconds=1.0)
    scene.sim.add_agent("agent-0", queue_seconds=9000.0, run_seconds=1.0)
    row = scene.sim._event
    scene.sim._event = lambda run, now: row(run, now) | ({} if named else {"agentId": None})
    floor = scene.sim.now()
    event_ids = {scene.sim.start_scheduled_run("agent-0") for _ in range(450)}
    witness = Witness(floor=floor)
    watch(scene, witness)
    scene.sweep()
    assert event_ids <= set(states(witness.looks[-1]))


# --- nobody else's ---------------------------------------------------------------------------------------------------


def test_who_leaves_takes_nothing_from_those_who_follow_the_same_run():
    scene = Scene(queue_seconds=0.0, run_seconds=60.0)
    submission = scene.submitted()
    deadline_at = scene.clock.now + timedelta(hours=1)
    first, second, third = (scene.driver.join(Wait(submission, Rules()), deadline_at=deadline_at) for _ in range(3))
    scene.sweep(2)
    assert len(scene.plan._tracks) == 1
    scene.plan.leave(first)
    scene.sweep(2)
    scene.driver.wait_for(second, third)
    assert second.result == third.result
    assert second.result.outcome == Outcome.COMPLETED
    assert not scene.plan._tracks


def test_who_follows_several_runs_follows_the_rest_once_one_is_over():
    scene = Scene(World(), queue_seconds=0.0, run_seconds=60.0)
    submission = scene.submitted()
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=300.0)
    longer = scene.sim.start_scheduled_run("agent-0")
    ticket = scene.driver.join(Wait(submission, Rules()), deadline_at=scene.clock.now + timedelta(hours=1))
    both = {scene.sim.executions[0].event_id, longer}
    while set(ticket.following) != both:
        scene.sweep()
    assert set(scene.plan._tracks) == both
    scene.clock.advance(60)
    scene.sweep()
    assert ticket.following == (longer,)
    assert set(scene.plan._tracks) == {longer}
    scene.plan.leave(ticket)
    assert not scene.plan._tracks


# --- nothing at all --------------------------------------------------------------------------------------------------


def test_a_sweep_that_is_given_up_says_nothing_of_those_it_did_not_get_to():
    scene = Scene(World(), agents=9, queue_seconds=0.0, run_seconds=9000.0)
    submissions = [scene.submitted(agent_id).changed(request_id=None) for agent_id in scene.agents]
    scene.driver.rng = None
    # Their runs have been due for an event long since; the listings would have shown it.
    scene.clock.advance(400)
    gate = Gate(scene, lambda path, query: refused_account(path, query) or 500)
    waits = [Wait(submission, Rules(appear_within=300.0)) for submission in submissions]
    tickets = [scene.driver.join(wait, deadline_at=scene.clock.now + timedelta(hours=1)) for wait in waits]
    # The account's is refused; three of the agents' listings fail, and the rest is not tried.
    assert [path == EVENTS for path, _ in gate.sweep()] == [True, False, False, False]
    gate.sweep()
    assert not any(ticket.over for ticket in tickets)
    assert all("500" in str(ticket.trouble.error) for ticket in tickets)
    gate.refuse = refused_account
    gate.sweep(2)
    assert all(len(ticket.following) == 1 for ticket in tickets)


def test_windows_that_nobody_got_to_are_told_to_those_who_follow_them():
    scene = Scene(agents=9, queue_seconds=0.0, run_seconds=9000.0)
    gate = Gate(scene, refused_account)
    tickets = []
    for agent_id in scene.agents:
        scene.clock.advance(200)
        tickets.append(scene.waiting(agent_id))
    gate.sweep(2)
    scene.driver.rng = None
    gate.refuse = lambda path, query: refused_account(path, query) or 500
    assert len(gate.sweep()) == 3
    gate.sweep()
    assert all(ticket.trouble is not None and ticket.trouble.looks == 2 for ticket in tickets)
    gate.refuse = refused_account
    gate.sweep()
    assert all(ticket.trouble is None for ticket in tickets)


def test_each_event_that_no_narrow_listing_shows_is_searched_for():
    scene = Scene(agents=3, queue_seconds=0.0, run_seconds=100.0)
    tickets = []
    for agent_id in scene.agents:
        scene.clock.advance(10)
        tickets.append(scene.waiting(agent_id))
    gate = Gate(scene, lambda path, query: 403 if path == EVENTS else None)
    gate.sweep(2)
    handle = scene.sim.handle

    def without_narrow_rows(method, path, query, headers):
        if "startedAfter" in query:
            query = {**query, "startedAfter": "2100-01-01T00:00:00Z"}
            query.pop("startedBefore", None)
        return handle(method, path, query, headers)

    scene.sim.handle = without_narrow_rows
    scene.clock.advance(100)
    scene.sweep()
    assert {ticket.result.outcome for ticket in tickets if ticket.over} == {Outcome.COMPLETED}
    assert all(ticket.over for ticket in tickets)


def test_an_event_without_a_time_is_not_lost_behind_one_with_a_time():
    # Of two followed events of an agent one says nothing of its time, so the search may not end above it.
    scene = Scene(World(), queue_seconds=0.0, run_seconds=9000.0)
    old = scene.sim.start_scheduled_run("agent-0")
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=1.0)
    for _ in range(450):
        scene.clock.advance(20)
        scene.sim.start_scheduled_run("agent-0")
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=9000.0)
    young = scene.sim.start_scheduled_run("agent-0")
    row = scene.sim._event(scene.sim.truth(young), scene.sim.now())
    witness = Witness(
        following=[
            ExecutionEvent(id=old, status="PENDING", agentId="agent-0"),
            # As a run that has not begun, so that both are searched for.
            ExecutionEvent.model_validate({**row, "status": "PENDING", "startedAt": None}),
        ]
    )
    watch(scene, witness)
    scene.clock.advance(5)
    Gate(scene, refused_account).sweep()
    assert {event.id for event in witness.updates} == {old, young}


def test_a_key_that_is_revoked_is_told_by_the_accounts_listing():
    scene = Scene(World(), agents=3, queue_seconds=0.0, run_seconds=1000.0)
    tickets = [scene.waiting(agent_id) for agent_id in scene.agents]
    asked = Gate(scene, lambda path, query: 401).sweep()
    assert [type(ticket.error) for ticket in tickets] == [AuthenticationError] * 3
    # There is nobody left to ask for.
    assert [path for path, _ in asked] == [EVENTS]
