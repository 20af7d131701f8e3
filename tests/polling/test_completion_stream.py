"""What has ended, told once: through the plan, on a clock of the test's own, over restarts."""

from __future__ import annotations

import dataclasses
import json
import random
from datetime import UTC, datetime

import pytest
from driving import Gate, Scene, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_agents.api.endpoints import list_events
from airflow_provider_agents.api.errors import PermanentError
from airflow_provider_agents.polling.completion_stream import track_from_now
from airflow_provider_agents.polling.subscriptions import ACCOUNT
from airflow_provider_agents.runs.completions import Checkpoint, CompletionTracker
from airflow_provider_agents.runs.patience import REFUSED_SECONDS
from airflow_provider_agents.simulator import Fault, SimulatorConfig

FOREVER = datetime.max.replace(tzinfo=UTC)
SETTLE = 10.0


def listen(scene, tracker, interval=5.0):
    scene.driver.subscribe(tracker, interval=interval, deadline_at=FOREVER)
    return tracker


def from_now(scene, agent_id=ACCOUNT):
    return listen(scene, CompletionTracker.from_now(agent_id, SETTLE, scene.sim.now()))


def ids(events):
    return [event.id for event in events]


@pytest.fixture
def scene():
    return Scene(agents=3, queue_seconds=1.0, run_seconds=20.0)


@pytest.mark.parametrize("agent_id", [ACCOUNT, "agent-1"])
def test_each_run_that_ends_is_told_once_whoever_started_it(scene, agent_id):
    tracker = from_now(scene, agent_id)
    scene.cycle()
    mine = [scene.sim.start_scheduled_run(name) for name in scene.agents]
    mine.append(scene.submitted("agent-1") and None)
    emitted = []
    for _ in range(12):
        scene.cycle()
        emitted += tracker.ended()
    assert len(emitted) == len(set(ids(emitted)))
    assert {event.agentId for event in emitted} == ({"agent-1"} if agent_id else set(scene.agents))
    assert len(emitted) == (2 if agent_id else 4)
    assert all(event.status == "COMPLETED" for event in emitted)


def test_the_first_look_ever_replays_nothing(scene):
    scene.sim.add_history("agent-0", 5, every=3.0, run_seconds=1.0)
    scene.clock.advance(10)
    tracker = from_now(scene)
    scene.cycle(2)
    assert tracker.ended() == []


def test_what_goes_on_at_the_first_look_is_told_when_it_ends(scene):
    scene.sim.add_agent("slow", queue_seconds=0.0, run_seconds=7200.0)
    slow = scene.sim.start_scheduled_run("slow")
    scene.clock.advance(3600)
    active = scene.client.send(list_events(status="RUNNING")).value.data
    tracker = listen(scene, CompletionTracker.from_now(ACCOUNT, SETTLE, scene.sim.now(), active))
    scene.cycle(300)
    assert tracker.ended() == []
    scene.cycle(500)
    assert ids(tracker.ended()) == [slow]


def test_a_run_of_hours_is_told_though_it_began_long_before_the_floor(scene):
    scene.sim.add_agent("slow", queue_seconds=0.0, run_seconds=7200.0)
    tracker = from_now(scene)
    scene.cycle()
    slow = scene.sim.start_scheduled_run("slow")
    asked, emitted = [], []
    while slow not in ids(emitted):
        asked.append(len(scene.cycle()))
        emitted += tracker.ended()
    # What is queued, the account's latest, and where the long one is.
    assert max(asked) <= 4


def test_a_run_that_is_queued_for_hours_is_told(scene):
    scene.sim.add_agent("queued", queue_seconds=7200.0, run_seconds=1.0)
    tracker = from_now(scene)
    scene.cycle()
    queued = scene.sim.start_scheduled_run("queued")
    scene.cycle(1500)
    assert ids(tracker.ended()) == [queued]


def test_what_ends_while_nobody_looks_is_told_afterwards(scene):
    tracker = from_now(scene)
    scene.cycle()
    before = scene.sim.start_scheduled_run("agent-0")
    scene.cycle(2)
    checkpoint = Checkpoint.from_json(json.loads(json.dumps(tracker.checkpoint().to_json())))
    scene = scene.again()
    between = scene.sim.start_scheduled_run("agent-1")
    scene.clock.advance(3600)
    tracker = listen(scene, CompletionTracker(ACCOUNT, SETTLE, checkpoint))
    scene.cycle()
    assert sorted(ids(tracker.ended())) == sorted([before, between])


def test_a_cursor_stays_small():
    scene = Scene(agents=1, queue_seconds=0.0, run_seconds=1.0)
    tracker = from_now(scene)
    for _ in range(300):
        scene.sim.start_scheduled_run("agent-0")
        scene.cycle()
    assert len(tracker.ended()) >= 298
    assert len(json.dumps(tracker.checkpoint().to_json())) < 1000


def test_a_key_that_may_not_list_the_account_is_told_so(scene):
    Gate(scene, lambda path, _query: 403 if path == "/v1/events" else None)
    subscription = scene.driver.subscribe(
        CompletionTracker.from_now(ACCOUNT, SETTLE, scene.sim.now()), interval=5.0, deadline_at=FOREVER
    )
    scene.cycle()
    assert isinstance(subscription.outage.error, PermanentError)
    scene.clock.advance(REFUSED_SECONDS)
    scene.cycle()
    assert isinstance(subscription.error, PermanentError)


def damage(scene, *event_ids, **fields):
    """Make the rows of some events unreadable, until the returned function is called."""
    for event_id in event_ids:
        scene.sim.corrupt(event_id, fields)

    def restore():
        for event_id in event_ids:
            scene.sim.restore(event_id)

    return restore


def cycles(scene, tracker, times):
    emitted = []
    for _ in range(times):
        scene.cycle()
        emitted += tracker.ended()
    return emitted


@pytest.mark.parametrize(
    "damaged", [{"status": None}, {"startedAt": 7}, {"status": 1, "createdAt": [], "agentId": {}}], ids=repr
)
def test_a_run_whose_row_cannot_be_read_for_long_is_told_once_it_can_be(scene, damaged):
    tracker = from_now(scene)
    scene.cycle()
    odd = scene.sim.start_scheduled_run("agent-1")
    mended = damage(scene, odd, **damaged)
    fine = scene.sim.start_scheduled_run("agent-2")
    assert ids(cycles(scene, tracker, 20)) == [fine]
    # Long after its end, and after a restart.
    tracker = listen(
        scene := scene.again(), CompletionTracker(ACCOUNT, SETTLE, Checkpoint.from_json(tracker.checkpoint().to_json()))
    )
    assert cycles(scene, tracker, 20) == []
    mended()
    assert ids(cycles(scene, tracker, 10)) == [odd]


def test_a_row_that_cannot_be_read_is_said_once_and_not_in_every_cycle(scene, caplog):
    tracker = from_now(scene)
    scene.cycle()
    odd = scene.sim.start_scheduled_run("agent-1")
    damage(scene, odd, status=None)
    cycles(scene, tracker, 30)
    (line,) = [line for line in caplog.messages if "cannot be read" in line]
    assert line.endswith(f"agent=agent-1 event={odd}")
    assert "status" in line
    # Another row is another run.
    other = scene.sim.start_scheduled_run("agent-1")
    damage(scene, odd, other, status=None)
    cycles(scene, tracker, 30)
    assert [other in line for line in caplog.messages if "cannot be read" in line] == [False, True]


def test_rows_without_an_id_are_said_once_for_each_kind(scene, caplog):
    tracker = from_now(scene)
    scene.cycle()
    damage(scene, *[scene.sim.start_scheduled_run("agent-1") for _ in range(5)], id=None)
    cycles(scene, tracker, 30)
    (line,) = [line for line in caplog.messages if "cannot be read" in line]
    assert line.endswith("agent=agent-1 event=unknown")


def test_a_page_full_of_damaged_rows_does_not_flood_the_log(scene, caplog):
    tracker = from_now(scene)
    scene.cycle()
    damage(scene, *[scene.sim.start_scheduled_run("agent-1") for _ in range(150)], status=None)
    cycles(scene, tracker, 10)
    lines = [line for line in caplog.messages if "cannot be read" in line]
    assert len(lines) == 5 + 1
    assert "145 other" in lines[-1]


def test_a_damaged_row_costs_no_search_in_every_cycle(scene):
    tracker = from_now(scene)
    scene.cycle()
    damage(scene, scene.sim.start_scheduled_run("agent-1"), status=None)
    cycles(scene, tracker, 10)
    assert len(scene.cycle(10)) <= 10 * 3


def test_an_old_row_that_is_damaged_is_not_told_when_it_is_mended(scene):
    old = scene.sim.start_scheduled_run("agent-1")
    scene.clock.advance(3600)
    mended = damage(scene, old, status=None)
    tracker = from_now(scene)
    cycles(scene, tracker, 5)
    mended()
    assert cycles(scene, tracker, 5) == []


def test_a_tracker_shares_its_cycles_with_those_who_wait(scene):
    tracker = from_now(scene)
    subscriptions = [scene.waiting(agent_id) for agent_id in scene.agents for _ in range(2)]
    asked = [len(scene.cycle()) for _ in range(8)]
    assert max(asked) <= 4
    scene.driver.wait_for(*subscriptions)
    assert {subscription.result.event.id for subscription in subscriptions} == set(ids(tracker.ended()))


# --- what one agent answers ---


def follow_one_of_each(scene, interval=5.0):
    """A watcher of the account that follows a long run of each agent; the runs, by agent."""
    tracker = listen(scene, CompletionTracker.from_now(ACCOUNT, SETTLE, scene.sim.now()), interval)
    scene.cycle()
    runs = {agent_id: scene.sim.start_scheduled_run(agent_id) for agent_id in scene.agents}
    scene.cycle(3)
    return tracker, runs


def of_agent(agent_id):
    """Whether a request is for one agent: its own listings, and the account's where they are narrowed to it."""
    return lambda path, query: f"/agents/{agent_id}/" in path or query.get("agentId") == agent_id


@pytest.mark.parametrize("status", [302, 400, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("is_listed", [True, False])
def test_what_one_agent_answers_keeps_a_watcher_of_the_account_from_no_other(status, is_listed):
    scene = Scene(agents=3, queue_seconds=1.0, run_seconds=600.0)
    tracker, runs = follow_one_of_each(scene)
    (subscription,) = scene.plan.subscriptions
    if not is_listed:
        scene.sim.remove_agent("agent-0")
    theirs = of_agent("agent-0")
    Gate(scene, lambda path, query: status if theirs(path, query) else None)
    emitted = []
    for _ in range(300):
        scene.cycle()
        emitted += ids(tracker.ended())
    assert not subscription.has_ended
    assert set(emitted) >= {runs["agent-1"], runs["agent-2"]}
    later = scene.sim.start_scheduled_run("agent-1")
    scene.clock.advance(600)
    scene.cycle(3)
    assert later in ids(tracker.ended())


@pytest.mark.parametrize("status", [403, 404])
def test_a_run_is_told_though_its_agents_own_listing_is_refused(status):
    scene = Scene(agents=3, queue_seconds=1.0, run_seconds=600.0)
    tracker, runs = follow_one_of_each(scene)
    Gate(scene, lambda path, _query: status if "/agents/agent-0/" in path else None)
    emitted = []
    for _ in range(140):
        scene.cycle()
        emitted += ids(tracker.ended())
    assert sorted(emitted) == sorted(runs.values())


def test_a_refused_agent_ends_the_wait_for_its_run_and_not_the_watcher_of_that_run():
    scene = Scene(agents=2, queue_seconds=1.0, run_seconds=600.0)
    tracker, runs = follow_one_of_each(scene)
    (watching,) = scene.plan.subscriptions
    waiting = scene.waiting("agent-0")
    scene.cycle(3)
    Gate(scene, lambda path, _query: 404 if "/agents/agent-0/" in path else None)
    emitted = []
    for _ in range(300):
        scene.cycle()
        emitted += ids(tracker.ended())
    assert waiting.has_ended
    assert not watching.has_ended
    assert set(runs.values()) <= set(emitted)


def hours(scene, tracker, count, interval=60.0):
    """The ids of what is told and of what is given up in so many hours of cycles."""
    emitted, lost = [], []
    for _ in range(int(count * 3600 / interval)):
        scene.cycle()
        emitted += ids(tracker.ended())
        lost += ids(tracker.lost())
    return emitted, lost


def vanishing(scene):
    """A watcher that follows a run of each agent; agent-0 has been deleted."""
    tracker, runs = follow_one_of_each(scene, interval=60.0)
    scene.sim.remove_agent("agent-0")
    return tracker, runs


def test_a_followed_run_that_no_listing_shows_any_more_is_given_up_after_an_hour():
    scene = Scene(agents=2, queue_seconds=1.0, run_seconds=7200.0)
    tracker, runs = vanishing(scene)
    assert hours(scene, tracker, 0.9) == ([], [])
    assert hours(scene, tracker, 0.2) == ([], [runs["agent-0"]])
    assert [event.id for event in tracker.active] == [runs["agent-1"]]
    assert hours(scene, tracker, 1.5) == ([runs["agent-1"]], [])
    assert len(scene.cycle(10)) <= 10 * 3


def test_the_hour_is_counted_over_restarts():
    scene = Scene(agents=2, queue_seconds=1.0, run_seconds=72_000.0)
    tracker, runs = vanishing(scene)
    lost = []
    for _ in range(4):
        lost += hours(scene, tracker, 0.3)[1]
        # Nobody looks for a day, which says nothing about the run.
        scene.clock.advance(86_400)
        scene = scene.again()
        checkpoint = json.loads(json.dumps(tracker.checkpoint().to_json()))
        tracker = listen(scene, CompletionTracker(ACCOUNT, SETTLE, Checkpoint.from_json(checkpoint)), 60.0)
    assert lost == [runs["agent-0"]]


def test_a_run_that_is_shown_again_starts_the_hour_anew():
    scene = Scene(agents=2, queue_seconds=1.0, run_seconds=20_000.0)
    tracker, runs = follow_one_of_each(scene, interval=60.0)
    for _ in range(4):
        scene.sim.hide(runs["agent-0"])
        assert hours(scene, tracker, 0.7) == ([], [])
        scene.sim.restore(runs["agent-0"])
        assert hours(scene, tracker, 0.4) == ([], [])


def test_an_outage_does_not_count_towards_the_hour():
    scene = Scene(agents=2, queue_seconds=1.0, run_seconds=72_000.0)
    tracker, _ = vanishing(scene)
    gate = Gate(scene)
    hours(scene, tracker, 0.5)
    gate.refuse = lambda _path, _query: 503
    scene.clock.advance(36_000)
    scene.cycle(20)
    gate.refuse = lambda _path, _query: None
    assert hours(scene, tracker, 0.3) == ([], [])


# --- more than a rate limit allows at once ---


def limited(scene, requests=12, page_rows=5):
    """So many requests a minute, and so many rows on a page."""
    scene.sim.config = dataclasses.replace(scene.sim.config, rate_limit=(requests, 60.0), page_rows=page_rows)


@pytest.mark.parametrize("sort_by", ["createdAt", "startedAt", "updatedAt"])
@pytest.mark.parametrize("agent_id", [ACCOUNT, "agent-0"])
def test_more_than_a_rate_limit_allows_at_once_is_caught_up_with_in_parts(sort_by, agent_id):
    scene = Scene(SimulatorConfig(request_id="absent", sort_by=sort_by), agents=1, queue_seconds=0.0, run_seconds=60.0)
    tracker = from_now(scene, agent_id)
    scene.cycle()
    scene = scene.again()
    started = []
    for _ in range(200):
        started.append(scene.sim.start_scheduled_run("agent-0"))
        scene.clock.advance(5)
    limited(scene)
    tracker = listen(scene, CompletionTracker(agent_id, SETTLE, tracker.checkpoint()))
    began, emitted = scene.clock.now, []
    while not emitted:
        # What goes on meanwhile is told, too.
        started.append(scene.sim.start_scheduled_run("agent-0"))
        scene.cycle()
        emitted += ids(tracker.ended())
    # 40 pages and two more in each part; a pause may be twice as long as the limit asks for.
    assert (scene.clock.now - began).total_seconds() <= 8 * 120
    for _ in range(40):
        scene.cycle()
        emitted += ids(tracker.ended())
    assert sorted(emitted) == sorted(started)


def test_more_active_runs_than_a_rate_limit_allows_at_once_are_followed_in_parts():
    scene = Scene(SimulatorConfig(request_id="absent"), agents=4, queue_seconds=0.0, run_seconds=3600.0)
    tracker = from_now(scene)
    scene.cycle()
    started = [scene.sim.start_scheduled_run(f"agent-{number % 4}") for number in range(100)]
    scene.cycle(2)
    limited(scene)
    emitted = []
    for _ in range(200):
        scene.cycle()
        emitted += ids(tracker.ended())
    assert sorted(emitted) == sorted(started)


class Watching:
    """A watcher's life: it keeps its cursor one cycle late, and is restarted now and then."""

    def __init__(self, seed, agent_id, sort_by, page_rows):
        self.rng, self.agent_id = random.Random(seed), agent_id
        config = SimulatorConfig(
            request_id="absent",
            record_lag=lambda rng: rng.uniform(0, SETTLE / 2),
            replica_lag=lambda rng: rng.uniform(0, SETTLE / 3),
            sort_by=sort_by,
            page_rows=page_rows,
            clock_skew=self.rng.choice([0.0, 600.0, -600.0]),
            date_header=self.rng.random() < 0.5,
        )
        self.scene = Scene(
            config,
            agents=3,
            seed=seed,
            queue_seconds=lambda rng: rng.choice([0.0, 1.0, 90.0]),
            run_seconds=lambda rng: rng.choice([0.0, 2.0, 30.0, 400.0]),
        )
        history = self.rng.choice([0, 0, 2, 300])
        self.scene.sim.add_history("agent-1", history, every=5.0, run_seconds=2.0)
        # A run that ended before the start and appears after it may be reported: that no run is lost matters more.
        self.scene.clock.advance(60)
        steps = track_from_now(agent_id, settle=SETTLE)
        self.tracker = listen(self.scene, self.scene.client.run_flow(steps))
        self.scene.cycle()
        assert self.tracker.ended() == []
        self.emitted, self.started, self.restarts = [], [], 0
        self.cursors = [self.tracker.checkpoint()] * 3

    def _record(self, agent_id, event_id):
        if self.agent_id in (ACCOUNT, agent_id):
            self.started.append(event_id)

    def run(self):
        agent_id = self.rng.choice(self.scene.agents)
        self._record(agent_id, self.scene.sim.start_scheduled_run(agent_id))

    def cycle(self):
        self.scene.cycle()
        if self.tracker.was_listed():
            self.emitted.extend(ids(self.tracker.ended()))
            self.cursors = [*self.cursors[1:], self.tracker.checkpoint()]

    def limit(self):
        """Allow so few requests a minute that a look takes more than one cycle."""
        self.scene.sim.config = dataclasses.replace(self.scene.sim.config, rate_limit=(self.rng.randrange(4, 9), 60.0))

    def fault(self):
        self.scene.sim.faults.append(Fault(kind=self.rng.choice(["reset_before", "html", "truncated"])))

    def wait(self):
        self.scene.sim.faults.clear()
        self.scene.sim.config = dataclasses.replace(self.scene.sim.config, rate_limit=None)
        self.scene.waiting(self.rng.choice(self.scene.agents))
        self._record(self.scene.sim.executions[-1].agent_id, self.scene.sim.executions[-1].event_id)

    def pause(self):
        self.scene.clock.advance(self.rng.choice([3.0, 100.0, 1000.0]))

    def restart(self):
        self.restarts += 1
        self.scene = self.scene.again()
        kept = Checkpoint.from_json(json.loads(json.dumps(self.cursors[0].to_json())))
        self.tracker = listen(self.scene, CompletionTracker(self.agent_id, SETTLE, kept))
        self.cursors = [kept] * 3


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(
        st.sampled_from(["run", "run", "run", "cycle", "cycle", "cycle", "fault", "wait", "restart", "pause", "limit"]),
        min_size=5,
        max_size=60,
    ),
    agent_id=st.sampled_from([ACCOUNT, "agent-1"]),
    sort_by=st.sampled_from(["startedAt", "createdAt"]),
    page_rows=st.sampled_from([None, 2, 5]),
)
def test_over_restarts_every_run_is_told_and_repeated_only_after_one(seed, steps, agent_id, sort_by, page_rows):
    watching = Watching(seed, agent_id, sort_by, page_rows)
    for step in steps:
        getattr(watching, step)()
    watching.scene.sim.faults.clear()
    watching.scene.clock.advance(600)
    for _ in range(60):
        watching.cycle()
    emitted = watching.emitted
    assert set(emitted) == set(watching.started)
    assert max((emitted.count(event_id) for event_id in emitted), default=1) <= 1 + watching.restarts
