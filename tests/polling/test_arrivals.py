"""What it costs when many waits arrive within a minute, and how a run that is known by its event's id is found."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from driving import Gate, Scene

from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import SimulatorConfig

ARRIVALS, SECONDS = 1000, 60.0
#: A tenth of what the agents' own listings take: two requests for each arrival.
MOST_REQUESTS = 200


def arrive(scene, waits):
    """Let waits arrive evenly over a minute; the requests of the poll until the next cycle, and the subscriptions."""
    due, sent, subscriptions = scene.clock.now, 0, []
    for make in waits:
        due += timedelta(seconds=SECONDS / len(waits))
        while scene.clock.now < due:
            left = (due - scene.clock.now).total_seconds()
            next_at = scene.plan.next_at(scene.driver.at())
            if next_at is None or next_at - scene.driver.at().monotonic > left:
                scene.clock.advance(left)
            else:
                sent += len(scene.cycle())
        subscriptions.append(scene.driver.subscribe(make(), deadline_at=scene.clock.now + timedelta(days=1)))
    return sent + len(scene.cycle()), subscriptions


def by_event(scene, agent_id, event_id):
    """A wait that knows the id of its event, and nothing else."""
    known = Submission.for_event(ExecutionEvent(id=event_id, status="RUNNING"), agent_id, scene.clock.now)
    return RunTracker(known, WaitPolicy(), scene.clock.now)


def subscribe_all(scene, events):
    return [
        scene.driver.subscribe(by_event(scene, agent_id, event_id), deadline_at=scene.clock.now + timedelta(days=1))
        for agent_id, event_id in events
    ]


def started(scene, *, each, every):
    """The events of new runs of all agents in turn: `each` of an agent, begun `every` seconds after each other."""
    events = []
    for number in range(each * len(scene.agents)):
        agent_id = scene.agents[number % len(scene.agents)]
        events.append((agent_id, scene.sim.start_scheduled_run(agent_id)))
        scene.clock.advance(every)
    return events


def asked_for(gate):
    """How many pages of which listings a cycle asks for."""
    kinds = Counter()
    for path, query in gate.cycle():
        how = "window" if "startedAfter" in query else query.get("status", "whole")
        kinds[f"{'account' if path == '/v1/events' else 'agent'} {how}"] += 1
    return dict(kinds)


@pytest.mark.parametrize("run_seconds", [50_000.0, 300.0], ids=["active", "most of them ended"])
@pytest.mark.parametrize("agents", [1, 400])
def test_a_thousand_arrivals_by_event_cost_a_tenth_of_single_look_ups(agents, run_seconds):
    scene = Scene(SimulatorConfig(), agents=agents, queue_seconds=0.0, run_seconds=run_seconds)
    events = started(scene, each=ARRIVALS // agents + 1, every=3.6)[:ARRIVALS]
    # So many other runs began in the same hour.
    others = 20_000 if run_seconds > 3600 else 2000
    scene.sim.add_history("agent-0", others, every=3600.0 / others, run_seconds=1.0)
    sent, subscriptions = arrive(scene, [lambda one=one: by_event(scene, *one) for one in events])
    assert all(subscription.subscriber.is_known for subscription in subscriptions)
    assert sent <= MOST_REQUESTS


@pytest.mark.parametrize("request_id", ["absent", "field"])
def test_a_thousand_arrivals_by_submission_cost_a_tenth_of_look_ups(request_id):
    scene = Scene(SimulatorConfig(request_id=request_id), agents=300, queue_seconds=0.0, run_seconds=50_000.0)
    scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=3.0, schedule_every=0.3)
    scene.clock.advance(3600)

    def submitted(number):
        return RunTracker(scene.submitted(scene.agents[number % 300]), WaitPolicy(), scene.clock.now)

    sent, subscriptions = arrive(scene, [lambda number=number: submitted(number) for number in range(ARRIVALS)])
    assert not any(subscription.has_ended for subscription in subscriptions)
    assert sent <= MOST_REQUESTS


def test_active_runs_are_looked_up_in_the_active_set():
    scene = Scene(agents=30, queue_seconds=0.0, run_seconds=50_000.0)
    subscriptions = subscribe_all(scene, started(scene, each=2, every=60.0))
    assert asked_for(Gate(scene)) == {"account PENDING": 1, "account RUNNING": 1}
    assert all(subscription.subscriber.is_known for subscription in subscriptions)


def test_ended_runs_are_looked_up_newest_first():
    scene = Scene(agents=30, queue_seconds=0.0, run_seconds=1.0)
    subscriptions = subscribe_all(scene, started(scene, each=20, every=60.0))
    assert asked_for(Gate(scene)) == {"account PENDING": 1, "account RUNNING": 1, "account whole": 3}
    assert all(subscription.result.outcome == "completed" for subscription in subscriptions)


def test_the_look_up_ends_where_the_agents_own_listings_take_fewer_pages():
    scene = Scene(agents=6, queue_seconds=0.0, run_seconds=1.0)
    events = started(scene, each=1, every=60.0)
    scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=1.0)
    newest = started(scene, each=1, every=1.0)[:2]
    for _ in range(5000):
        scene.sim.start_scheduled_run("busy")
    scene.clock.advance(60)
    # Two of the agents have a run that the first pages do not show, either.
    subscriptions = subscribe_all(scene, [*newest, *events[2:]])
    asked = asked_for(Gate(scene))
    assert asked == {
        "account PENDING": 1,
        "account RUNNING": 1,
        # Two requests for each of six agents.
        "account whole": 12,
        "agent PENDING": 6,
        "agent whole": 6,
    }
    assert all(subscription.has_ended for subscription in subscriptions)


def test_an_event_that_its_agent_does_not_have_is_looked_up_in_the_account_once():
    scene = Scene(agents=4, queue_seconds=0.0, run_seconds=50_000.0)
    events = started(scene, each=1, every=60.0)
    subscribe_all(scene, [(agent_id, f"no-{event_id}") for agent_id, event_id in events])
    gate = Gate(scene)
    assert asked_for(gate)["account whole"] == 1
    for _ in range(3):
        assert asked_for(gate) == {"agent PENDING": 4, "agent whole": 4}


def test_an_event_of_another_agent_is_not_taken_for_the_one_that_is_looked_up():
    scene = Scene(agents=4, queue_seconds=0.0, run_seconds=50_000.0)
    events = started(scene, each=1, every=60.0)
    subscriptions = subscribe_all(scene, zip(scene.agents, [event_id for _, event_id in reversed(events)], strict=True))
    asked_for(Gate(scene))
    assert not any(subscription.subscriber.is_known for subscription in subscriptions)


def test_rows_that_hide_whose_they_are_do_not_keep_a_run_from_being_found():
    scene = Scene(agents=6, queue_seconds=0.0, run_seconds=50_000.0)
    events = started(scene, each=1, every=60.0)
    scene.sim.corrupt(None, {"agentId": None})
    subscriptions = subscribe_all(scene, events)
    asked_for(Gate(scene))
    assert all(subscription.subscriber.is_known for subscription in subscriptions)


@pytest.mark.parametrize("broken", ["PENDING", "RUNNING", None])
def test_no_agent_is_asked_for_its_own_while_the_shared_listings_fail(broken):
    scene = Scene(agents=6, queue_seconds=0.0, run_seconds=1.0)
    subscriptions = subscribe_all(scene, started(scene, each=1, every=60.0))
    gate = Gate(scene, lambda path, query: 500 if query.get("status") == broken else None)
    for _ in range(2):
        assert not [kind for kind in asked_for(gate) if kind.startswith("agent")]
    gate.refuse = lambda path, query: None
    assert not [kind for kind in asked_for(gate) if kind.startswith("agent")]
    assert all(subscription.has_ended for subscription in subscriptions)


@pytest.mark.parametrize("refused", ["PENDING", "RUNNING", None])
def test_a_shared_listing_that_is_refused_leaves_the_agents_own(refused):
    scene = Scene(agents=6, queue_seconds=0.0, run_seconds=1.0)
    subscriptions = subscribe_all(scene, started(scene, each=1, every=60.0))
    Gate(scene, lambda path, query: 403 if path == "/v1/events" and query.get("status") == refused else None).cycle()
    assert all(subscription.has_ended for subscription in subscriptions)
