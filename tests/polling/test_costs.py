"""What a cycle asks for, page by page: where a walk ends, when it is broken off, and what its price teaches."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from driving import Gate, Scene

from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.polling.planner import BELIEVED_SECONDS
from airflow_provider_agents.polling.subscriptions import ACCOUNT
from airflow_provider_agents.runs.completions import CompletionTracker
from airflow_provider_agents.runs.patience import REFUSED_SECONDS
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import SimulatorConfig

EVENTS = "/v1/events"


def kind(path, query):
    """Which listing is asked: whose, and how it is narrowed."""
    how = "window" if "startedAfter" in query else query.get("status", "whole")
    return f"{'account' if path == EVENTS else 'agent'} {how}"


def pages(asked):
    """How many pages of each listing were asked for."""
    return dict(Counter(kind(path, query) for path, query in asked))


def spread_out(*, crowd, agents=5):
    """A few runs that began far apart, and many others that go on; the account may only be listed by status."""
    scene = Scene(agents=agents, queue_seconds=0.0, run_seconds=50_000.0)
    scene.sim.add_agent("crowd", queue_seconds=0.0, run_seconds=1e6)
    for _ in range(crowd):
        scene.sim.start_scheduled_run("crowd")
    scene.clock.advance(7200)
    for agent_id in scene.agents:
        scene.clock.advance(100)
        scene.waiting(agent_id)
    gate = Gate(scene, lambda path, query: 403 if kind(path, query) in {"account whole", "account window"} else None)
    gate.cycle()
    return gate


def test_an_active_set_that_is_larger_than_thought_is_broken_off_and_remembered():
    gate = spread_out(crowd=3000)
    # Ten: twice what the agents' five narrow listings cost.
    assert pages(gate.cycle()) == {"account PENDING": 1, "account RUNNING": 10}
    for _ in range(3):
        assert pages(gate.cycle()) == {"agent window": 5}
    gate.scene.clock.advance(BELIEVED_SECONDS)
    # Perhaps it has shrunk.
    assert pages(gate.cycle())["account RUNNING"] == 10


def test_an_active_set_that_is_as_small_as_thought_is_read_to_its_end():
    gate = spread_out(crowd=150)
    for _ in range(4):
        assert pages(gate.cycle()) == {"account PENDING": 1, "account RUNNING": 1}


def test_an_active_set_whose_price_is_known_is_not_taken_where_others_are_cheaper():
    gate = spread_out(crowd=1100)
    assert pages(gate.cycle()) == {"account PENDING": 1, "account RUNNING": 6}
    for _ in range(3):
        assert pages(gate.cycle()) == {"agent window": 5}


@pytest.mark.parametrize(
    ("agents", "asked"), [(2, {"agent window": 2}), (3, {"account PENDING": 1, "account RUNNING": 1})]
)
def test_the_active_set_is_taken_where_it_is_cheaper_than_a_listing_for_each(agents, asked):
    gate = spread_out(crowd=10, agents=agents)
    for _ in range(3):
        assert pages(gate.cycle()) == asked


def test_what_leaves_the_active_set_is_reckoned_with():
    scene = Scene(agents=6, queue_seconds=0.0, run_seconds=50_000.0)
    for number, agent_id in enumerate(scene.agents):
        # The first three will end together.
        seconds = 1000.0 - 100.0 * number if number < 3 else 50_000.0
        scene.sim.add_agent(agent_id, queue_seconds=0.0, run_seconds=seconds)
        scene.waiting(agent_id)
        scene.clock.advance(100)
    gate = Gate(scene, lambda path, query: 403 if kind(path, query) in {"account whole", "account window"} else None)
    gate.cycle()
    assert pages(gate.cycle()) == {"account PENDING": 1, "account RUNNING": 1}
    scene.clock.advance(400)
    assert pages(gate.cycle()) == {"account PENDING": 1, "account RUNNING": 1, "agent window": 3}
    # The rest takes three listings, and that way took five.
    for _ in range(3):
        assert pages(gate.cycle()) == {"agent window": 3}
    scene.clock.advance(BELIEVED_SECONDS)
    assert pages(gate.cycle()) == {"account PENDING": 1, "account RUNNING": 1}


def inferred(scene):
    """Those who seek a run that nothing names."""
    submissions = [scene.submitted(agent_id).changed(request_id=None) for agent_id in scene.agents]
    deadline_at = scene.clock.now + timedelta(hours=20)
    return [(RunTracker(submission, WaitPolicy()), deadline_at) for submission in submissions]


def test_the_accounts_listing_ends_where_all_is_older_than_what_is_sought():
    scene = Scene(SimulatorConfig(), agents=8, queue_seconds=0.0, run_seconds=1000.0)
    for number in range(8):
        scene.sim.add_history(f"agent-{number}", 200, every=60.0, run_seconds=1.0)
    for wait, deadline_at in inferred(scene):
        scene.driver.subscribe(wait, deadline_at=deadline_at)
    gate = Gate(scene)
    assert pages(gate.cycle()) == {"account PENDING": 1, "account whole": 1}
    for _ in range(3):
        # There is nothing else to be had for less.
        assert pages(gate.cycle()) == {"account PENDING": 1, "account whole": 1}


@pytest.mark.parametrize("clock_skew", [0.0, -3600.0, 3600.0])
@pytest.mark.parametrize(("every", "listed"), [(1.0, 13), (0.5, 1)])
def test_the_accounts_listing_is_read_as_far_as_it_is_cheap(every, listed, clock_skew):
    # Forty minutes of an account that starts a run every `every` seconds: twelve pages and some, or 24. Twice what the
    # agents' own listings cost is twelve.
    scene = Scene(SimulatorConfig(clock_skew=clock_skew), agents=3, queue_seconds=0.0, run_seconds=9000.0)
    waits = inferred(scene)
    scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=3.0, schedule_every=every)
    scene.clock.advance(2400)
    for wait, deadline_at in waits:
        scene.driver.subscribe(wait, deadline_at=deadline_at)
    asked = pages(Gate(scene).cycle())
    assert asked["account whole"] == listed
    assert ("agent whole" in asked) == (listed == 1)


@pytest.mark.parametrize("clock_skew", [0.0, -3600.0, 3600.0])
def test_how_busy_an_account_is_decides_how_it_is_asked_from_then_on(clock_skew):
    scene = Scene(SimulatorConfig(clock_skew=clock_skew), agents=2, queue_seconds=0.0, run_seconds=9000.0)
    scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=3.0, schedule_every=0.5)
    scene.clock.advance(600)
    for wait, deadline_at in inferred(scene):
        scene.driver.subscribe(RunTracker(wait.submission, WaitPolicy(settle=290.0)), deadline_at=deadline_at)
    gate = Gate(scene)
    assert pages(gate.cycle()) == {"account PENDING": 1, "account whole": 1}
    scene.clock.advance(180)
    # 360 runs have begun since.
    assert pages(gate.cycle()) == {"account PENDING": 1, "account whole": 2}
    scene.clock.advance(95)
    # 560 runs have begun since. Three pages of them, and one of what is PENDING, are no less than the agents' four.
    assert pages(gate.cycle()) == {"agent PENDING": 2, "agent whole": 2}


def test_a_listing_that_turns_out_dearer_than_its_first_page_promised_is_broken_off():
    # The last hour was quiet, the six before it were not: more than seventy pages in all.
    scene = Scene(SimulatorConfig(), agents=2, queue_seconds=0.0, run_seconds=50_000.0)
    waits = inferred(scene)
    for every, seconds in ((1.5, 6 * 3600), (36.0, 3600)):
        scene.sim.add_agent("busy", queue_seconds=0.0, run_seconds=1.0, schedule_every=every)
        scene.clock.advance(seconds)
        scene.sim.runs()
    for wait, deadline_at in waits:
        scene.driver.subscribe(wait, deadline_at=deadline_at)
    asked = pages(Gate(scene).cycle())
    assert asked == {"account PENDING": 1, "account whole": 2, "agent PENDING": 2, "agent whole": 2}


@pytest.mark.parametrize("is_watched", [False, True])
def test_the_account_is_not_listed_for_seekers_once_a_row_has_hidden_whose_it_is(is_watched):
    scene = Scene(SimulatorConfig(), agents=3, queue_seconds=9000.0)
    waits = inferred(scene)
    scene.sim.corrupt(
        None, lambda row: row | ({"status": None, "agentId": None} if row["agentId"] == "agent-0" else {})
    )
    for wait, deadline_at in waits:
        scene.driver.subscribe(wait, deadline_at=deadline_at)
    if is_watched:
        watcher = scene.driver.subscribe(
            CompletionTracker.from_now(ACCOUNT, 10.0, scene.sim.now()), deadline_at=scene.clock.now + timedelta(days=9)
        )
    asked = pages(Gate(scene).cycle())
    assert asked.get("account whole", 0) == (1 if is_watched else 0)
    assert asked["agent PENDING"] == 3
    assert not is_watched or watcher.subscriber.was_listed()


def test_how_long_an_agents_listing_is_decides_how_it_is_asked_from_then_on():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=9000.0)
    ((wait, deadline_at),) = inferred(scene)
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=3.0, schedule_every=1.0)
    scene.clock.advance(300)
    scene.driver.subscribe(RunTracker(wait.submission, WaitPolicy(settle=3600.0)), deadline_at=deadline_at)
    gate = Gate(scene)
    assert pages(gate.cycle()) == {"agent PENDING": 1, "agent whole": 2}
    # That was more than the account's takes at best, which turns out not to be shorter.
    assert pages(gate.cycle()) == {"account PENDING": 1, "account whole": 2}
    assert pages(gate.cycle()) == {"agent PENDING": 1, "agent whole": 2}


def test_an_event_that_is_named_ends_the_walk_over_an_agents_listing():
    scene = Scene(SimulatorConfig(), queue_seconds=0.0, run_seconds=1.0)
    for _ in range(1000):
        scene.sim.start_scheduled_run("agent-0")
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=9000.0)
    event_id = scene.sim.start_scheduled_run("agent-0")
    known = Submission.for_event(ExecutionEvent(id=event_id, status="RUNNING"), "agent-0", scene.clock.now)
    # Of a run that is known by its event alone, nobody can say how far back it lies.
    scene.driver.subscribe(RunTracker(known, WaitPolicy()), deadline_at=scene.clock.now + timedelta(hours=2))
    assert pages(Gate(scene).cycle()) == {"agent PENDING": 1, "agent whole": 1}


@pytest.mark.parametrize("clock_skew", [0.0, -3600.0])
def test_runs_of_a_busy_agent_are_not_followed_in_one_long_window(clock_skew):
    # Between the two, 500 others began: three pages instead of two.
    scene = Scene(SimulatorConfig(request_id="field", clock_skew=clock_skew), queue_seconds=0.0, run_seconds=9000.0)
    gate = Gate(scene, lambda path, query: 403 if path == EVENTS else None)
    scene.waiting()
    gate.cycle()
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=3.0, schedule_every=1.0)
    scene.clock.advance(500)
    scene.sim.add_agent("agent-0", queue_seconds=0.0, run_seconds=9000.0)
    scene.waiting()
    gate.cycle()
    assert pages(gate.cycle()) == {"agent window": 2}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "with_it"),
    [
        ("account PENDING", ()),
        ("account whole", ()),
        # Else the windows would be cheaper anyway.
        ("account RUNNING", ("account whole", "account window")),
    ],
)
def test_a_way_that_is_refused_is_not_asked_again_for_some_minutes(way, with_it, caplog):
    caplog.set_level("INFO")
    scene = Scene(SimulatorConfig(), agents=30, queue_seconds=0.0, run_seconds=50_000.0)
    refused = {way, *with_it}
    gate = Gate(scene, lambda path, query: 403 if kind(path, query) in refused else None)

    def asked_for_newcomers():
        for wait, deadline_at in inferred(scene):
            scene.driver.subscribe(wait, deadline_at=deadline_at)
            scene.clock.advance(2.0)
        return sum(pages(gate.cycle()).get(way, 0) for _ in range(2))

    assert asked_for_newcomers() == 1
    name = way.removeprefix("account ").replace("whole", "account")
    told = [line for line in caplog.messages if line.startswith(f"Doing without the account's listing ({name}): ")]
    assert len(told) == 1
    assert "403" in told[0]
    assert asked_for_newcomers() == 0
    scene.clock.advance(BELIEVED_SECONDS)
    refused.clear()
    refused.update(with_it)
    assert asked_for_newcomers() >= 1


def test_a_watcher_that_may_not_list_the_account_is_told_so():
    scene = Scene(SimulatorConfig(), agents=2, queue_seconds=0.0, run_seconds=1000.0)
    deadline_at = scene.clock.now + timedelta(days=9)
    watcher = scene.driver.subscribe(
        CompletionTracker.from_now(ACCOUNT, 10.0, scene.sim.now()), deadline_at=deadline_at
    )
    other = scene.waiting()
    gate = Gate(scene, lambda path, query: 403 if kind(path, query) == "account whole" else None)
    gate.cycle()
    assert "403" in str(watcher.outage.error)
    scene.clock.advance(REFUSED_SECONDS)
    gate.cycle()
    assert "403" in str(watcher.error)
    assert not other.has_ended


# --- what is followed ------------------------------------------------------------------------------------------------


def test_a_followed_run_that_has_not_begun_is_asked_for_among_those():
    scene = Scene(queue_seconds=50_000.0)
    scene.waiting()
    gate = Gate(scene)
    gate.cycle()
    for _ in range(5):
        assert pages(gate.cycle()) == {"account PENDING": 1}
    # If they may not be listed, its agent's whole listing is what shows it.
    gate.refuse = lambda path, query: 403 if kind(path, query) == "account PENDING" else None
    assert pages(gate.cycle()) == {"account PENDING": 1, "agent whole": 1}
    for _ in range(5):
        assert pages(gate.cycle()) == {"agent whole": 1}


def test_a_run_that_nothing_shows_is_searched_for_more_and_more_rarely():
    scene = Scene(SimulatorConfig(request_id="field", retention_seconds=0.0), queue_seconds=0.0, run_seconds=100.0)
    scene.sim.add_history("agent-0", 100)
    scene.waiting()
    gate = Gate(scene)
    gate.cycle()
    scene.clock.advance(100)
    searched = [number for number in range(1, 70) if "agent whole" in pages(gate.cycle())]
    assert searched == [1, 2, 4, 8, 16, 32, 48, 64]


def test_a_run_that_a_narrow_listing_shows_is_not_searched_for():
    scene = Scene(agents=2, queue_seconds=0.0, run_seconds=9000.0)
    for agent_id in scene.agents:
        scene.clock.advance(400)
        scene.waiting(agent_id)
    gate = Gate(scene, lambda path, query: 403 if path == EVENTS else None)
    gate.cycle()
    for _ in range(20):
        assert pages(gate.cycle()) == {"agent window": 2}


def test_a_row_that_hides_whose_it_is_does_not_hide_the_followed_ones_behind_it():
    scene = Scene(agents=2, queue_seconds=0.0, run_seconds=9000.0)
    for agent_id in scene.agents:
        scene.waiting(agent_id)
    nameless = scene.sim.start_scheduled_run("agent-1")
    gate = Gate(scene)
    gate.cycle()
    scene.sim.corrupt(nameless, {"agentId": None})
    for _ in range(3):
        assert pages(gate.cycle()) == {"account window": 1}


# --- what a failure spares -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "asked"),
    [
        ("account PENDING", {"account PENDING": 1}),
        ("account whole", {"account PENDING": 1, "account whole": 1}),
    ],
)
def test_a_platform_in_trouble_is_not_asked_in_other_ways(broken, asked):
    scene = Scene(SimulatorConfig(), agents=8, queue_seconds=0.0, run_seconds=9000.0)
    subscriptions = [scene.driver.subscribe(wait, deadline_at=deadline_at) for wait, deadline_at in inferred(scene)]
    gate = Gate(scene, lambda path, query: 500 if kind(path, query) == broken else None)
    for _ in range(2):
        assert pages(gate.cycle()) == asked
    assert all("500" in str(subscription.outage.error) for subscription in subscriptions)


def test_while_the_active_set_cannot_be_read_its_events_are_not_asked_for_one_by_one():
    gate = spread_out(crowd=150)
    assert pages(gate.cycle()) == {"account PENDING": 1, "account RUNNING": 1}
    allowed = gate.refuse
    for broken, asked in (
        ("account PENDING", {"account PENDING": 1}),
        ("account RUNNING", {"account PENDING": 1, "account RUNNING": 1}),
    ):
        gate.refuse = lambda path, query, broken=broken: 500 if kind(path, query) == broken else allowed(path, query)
        assert pages(gate.cycle()) == asked
        gate.refuse = allowed
        assert pages(gate.cycle()) == {"account PENDING": 1, "account RUNNING": 1}


def test_why_nothing_was_brought_is_known_until_something_is():
    scene = Scene(agents=3, queue_seconds=0.0, run_seconds=9000.0)
    gate = Gate(scene, lambda path, query: 403 if path == EVENTS else None)
    for agent_id in scene.agents:
        scene.clock.advance(100)
        scene.waiting(agent_id)
    gate.cycle(3)
    assert scene.plan.failing is None
    gate.refuse = lambda path, query: 500
    gate.cycle()
    assert "500" in str(scene.plan.failing)
    # Something was brought, if not all.
    gate.refuse = lambda path, query: 403 if path == EVENTS else 500 if "agent-0" in path else None
    assert pages(gate.cycle()) == {"agent window": 3}
    assert scene.plan.failing is None
