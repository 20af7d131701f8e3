"""Several runs of ours together, in every world in which each record appears within `settle`: against the truth.

Tasks start one agent side by side, other parties start it too, records and replicas lag, clocks are off, answers to
POSTs are lost, and processes begin to wait late. The simulator knows whose run each event is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from driving import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_time import keep_time

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.runs import matching
from airflow_provider_agents.runs.joint import Binds, JointMatch, claim_of, key_of
from airflow_provider_agents.runs.listing import read_listing
from airflow_provider_agents.runs.matching import MatchWindow
from airflow_provider_agents.runs.status import is_success, is_terminal, newer_of
from airflow_provider_agents.runs.submission import Submission, submit
from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, SimulatorConfig, mock_transport

SETTLE, APPEAR = 30.0, 300.0
EVERYTHING = MatchWindow(
    request_id=None, event_id=None, known_event_ids=frozenset(), server_before=None, server_after=None
)


@dataclass
class Task:
    """A task of ours that waits, and what its process knows."""

    submission: Submission
    event_id: str | None  # the truth; None if its POST started nothing
    begins_at: Any
    candidate_ids: frozenset[str] | None = None
    is_settled: bool = False
    key: str = field(init=False)

    def __post_init__(self):
        self.key = key_of(self.submission)

    def listing(self, events, now, server_time):
        """Take in a listing that began now."""
        if self.is_settled or now < self.begins_at:
            return
        passed = self.submission.window.passed(now - self.begins_at, server_time)
        if passed >= timedelta(seconds=SETTLE):
            found = matching.candidates(self.submission.window, events, within=SETTLE)
            self.is_settled, self.candidate_ids = True, frozenset(event.id for event in found)

    @property
    def claim(self):
        binds = Binds.NOW if self.is_settled else Binds.LATER
        return claim_of(self.submission, binds, within=SETTLE, candidate_ids=self.candidate_ids)


class World:
    """A simulator, the tasks of ours in it, and what has been seen of its events."""

    def __init__(self, config, *, seed, every=None):
        self.rng, self.clock = random.Random(seed), ManualClock()
        self.skew = timedelta()
        keep_time(lambda: self.clock.now + self.skew, self.clock.advance)
        self.sim = Simulator(self.clock, config=config, seed=seed)
        self.sim.add_agent("agent", schedule_every=every, schedule_offset=self.rng.uniform(0, every or 1))
        self.sim.add_history("agent", 5, every=40.0, run_seconds=30.0)
        self.client = Client(
            Settings(api_key="test-key", base_url="http://127.0.0.1"),
            transport=mock_transport(self.sim),
        )
        self.tasks, self.seen = [], {}
        self.clock.advance(100)

    def submit(self, lost=None, *, joins_after=0.0, skew=0.0):
        if lost is not None:
            self.sim.faults.append(Fault(kind=lost, method="POST"))
        before, self.skew = len(self.sim.executions), timedelta(seconds=skew)
        submission = self.client.run_flow(submit("agent", settle=SETTLE))
        started = self.sim.executions[before:]
        event_id = started[-1].event_id if started else None
        begins_at = self.clock.now + timedelta(seconds=joins_after)
        self.tasks.append(Task(submission, event_id, begins_at))

    def listing(self):
        """Read all events, as each poll does that looks for a run."""
        now = self.clock.now
        listing = self.client.run_flow(read_listing("agent", EVERYTHING))
        for event in listing.events:
            self.seen[event.id] = newer_of(self.seen.get(event.id), event)
        for task in self.tasks:
            task.listing(self.seen.values(), now, listing.server_time)

    def match(self, tasks):
        claims = [task.claim for task in tasks]
        self.rng.shuffle(claims)
        return JointMatch(claims, self.seen.values())

    def completed(self):
        return {event.id for event in self.seen.values() if is_success(event)}


lags = st.tuples(st.floats(0, 18), st.floats(0, 8))


@st.composite
def configs(draw):
    record_lag, replica_lag = draw(lags)
    return SimulatorConfig(
        record_lag=draw(st.sampled_from([0.0, record_lag, lambda rng: rng.uniform(0, record_lag)])),
        replica_lag=draw(st.sampled_from([0.0, replica_lag, lambda rng: rng.uniform(0, replica_lag)])),
        created_at=draw(st.sampled_from(["accepted", "appeared"])),
        request_id=draw(st.sampled_from(["absent", "absent", "absent", "absent", "id", "field"])),
        clock_skew=draw(st.sampled_from([0.0, -600.0, 600.0, 3.3])),
        gateway_skew=draw(st.floats(-3, 3)),
        date_header=draw(st.sampled_from([True, True, False])),
        page_rows=draw(st.sampled_from([None, 3])),
        queue_seconds=draw(st.sampled_from([0.0, 1.0, lambda rng: rng.uniform(0, 40)])),
        run_seconds=draw(st.sampled_from([0.5, 20.0, lambda rng: rng.expovariate(1 / 30)])),
        end_status=lambda rng: rng.choice(["COMPLETED", "COMPLETED", "COMPLETED", "FAILED"]),
    )


def check(world, tasks, given_before):
    """What must be true of any tasks of ours together, at any moment. Gives events as tasks would get them."""
    match, completed = world.match(tasks), world.completed()
    for task in tasks:
        if task.event_id in world.seen and (task.is_settled or task.submission.in_doubt):
            assert task.event_id in match.event_ids(task.key)
        if task.is_settled and not task.submission.in_doubt:
            assert match.group(task.key) is not None
    truth = {task.key: task.event_id for task in tasks}
    shared = match.share(given_before)
    for group in match.groups:
        mine = [truth[key] for key in group.keys]
        if group.is_closed:
            assert set(group.event_ids) == set(mine)
            given_before.update(
                {
                    key: shared[key]
                    for key in group.keys
                    if is_terminal(world.seen[shared[key]]) and shared[key] in completed
                }
            )
        else:
            given_before.update(match.certain_successes(group, completed, given_before))
        successes = [key for key in group.keys if key in given_before]
        assert len(successes) <= sum(one in completed for one in mine)
    assert len(set(given_before.values())) == len(given_before)
    assert set(given_before.values()) <= completed


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=configs(),
    seed=st.integers(0, 2**32),
    every=st.sampled_from([None, None, 7.0, 45.0]),
    other_starts=st.floats(0, 0.5),
    spacing=st.sampled_from([0.3, 3.0, 15.0]),
    lost=st.lists(st.sampled_from([None, None, None, "reset_before", "reset_after"]), min_size=2, max_size=6),
    skews=st.lists(st.sampled_from([0.0, -60.0, 60.0]), min_size=6, max_size=6),
    joins_after=st.lists(st.sampled_from([0.0, 0.0, 20.0, 70.0]), min_size=6, max_size=6),
)
def test_together_the_right_event_is_never_ruled_out_nor_one_given_twice(
    config, seed, every, other_starts, spacing, lost, skews, joins_after
):
    world = World(config, seed=seed, every=every)
    given_before, given_without_one = {}, {}
    for number, kind in enumerate(lost):
        world.submit(kind, joins_after=joins_after[number], skew=skews[number])
        if world.rng.random() < other_starts:
            world.sim.start_scheduled_run("agent")
        world.clock.advance(spacing * world.rng.uniform(0.5, 1.5))
        world.listing()
    left_out = world.rng.choice(world.tasks)
    for _ in range(30):
        known = [task for task in world.tasks if task.begins_at <= world.clock.now]
        check(world, known, given_before)
        # A process that does not know of all tasks is never wrong, and only less often sure.
        check(world, [task for task in known if task is not left_out], given_without_one)
        world.clock.advance(5)
        world.listing()


@pytest.mark.parametrize(("number", "spacing"), [(2, 0.3), (5, 0.3), (5, 5.0), (10, 1.0)])
def test_tasks_side_by_side_share_out_their_runs_and_nothing_is_ambiguous(number, spacing):
    config = SimulatorConfig(
        request_id="absent",
        record_lag=lambda rng: rng.uniform(0, 2),
        end_status=lambda rng: rng.choice(["COMPLETED", "FAILED"]),
    )
    world = World(config, seed=number)
    for _ in range(number):
        world.submit()
        world.clock.advance(spacing)
    for _ in range(20):
        world.clock.advance(5)
        world.listing()
    match = world.match(world.tasks)
    assert all(group.is_closed for group in match.groups)
    shared = match.share({})
    assert set(shared.values()) == {task.event_id for task in world.tasks}
    assert set(shared) == {task.key for task in world.tasks}
