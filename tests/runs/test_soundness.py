"""No success for a run that did not COMPLETE, in every world in which its record appears within `settle`.

The world is the simulator with every point that the API's page leaves open drawn at random: late records, a schedule
of the platform's own, skewed clocks, lagging replicas, null `startedAt`, any order, short pages, ids present or not.
The machine that waits is another one than the machine that submitted, and its clock is minutes off as well.
"""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from driving import Driver, examples, wait_on_worker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_time import keep_time

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.submission import submit, take_snapshot
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, SimulatorConfig, mock_transport

SETTLE = 30.0
RULES = WaitPolicy(settle=SETTLE, appear_within=300.0)

#: How far the clock of the machine that waits is ahead of that of the machine that submitted, in seconds.
SKEWS = (0.0, -600.0, -60.0, 60.0, 600.0)

# What lags together stays within `settle`: a record is seen once it was written and the replica has it.
lags = st.tuples(st.floats(0, 20), st.floats(0, 8))


@st.composite
def worlds(draw):
    record_lag, replica_lag = draw(lags)
    sort_by, nulls = (
        draw(st.sampled_from(["createdAt", "startedAt", "updatedAt"])),
        draw(st.sampled_from(["first", "last"])),
    )
    started_at_while_pending = draw(st.booleans())
    # A run that has not begun, under a status that the page does not know, behind all that have: nothing short of the
    # whole history shows it. The documentation names this world as one that is not covered.
    hides_queued = sort_by == "startedAt" and nulls == "last" and not started_at_while_pending
    return SimulatorConfig(
        record_lag=draw(st.sampled_from([0.0, record_lag, lambda rng: rng.uniform(0, record_lag)])),
        replica_lag=draw(st.sampled_from([0.0, replica_lag, lambda rng: rng.uniform(0, replica_lag)])),
        created_at=draw(st.sampled_from(["accepted", "appeared"])),
        started_at_while_pending=started_at_while_pending,
        sort_by=sort_by,
        nulls=nulls,
        request_id=draw(st.sampled_from(["absent", "absent", "absent", "id", "field"])),
        clock_skew=draw(st.sampled_from([0.0, -600.0, 600.0, 3.3])),
        gateway_skew=draw(st.floats(-3, 3)),
        date_header=draw(st.booleans()),
        page_rows=draw(st.sampled_from([None, 1, 3])),
        empty_pages=draw(st.sampled_from([0, 0, 2])),
        queue_seconds=draw(st.sampled_from([0.0, 1.0, 70.0, lambda rng: rng.uniform(0, 90)])),
        run_seconds=draw(st.sampled_from([0.5, 20.0, 200.0, lambda rng: rng.expovariate(1 / 30)])),
        end_status=lambda rng: rng.choice(["COMPLETED", "COMPLETED", "FAILED", "CANCELLED"]),
        extra_status=None if hides_queued else draw(st.sampled_from([None, "QUEUED"])),
    )


def run_once(
    config,
    *,
    seed,
    every=None,
    offset=0.0,
    other_starts=(),
    faults=(),
    on_ambiguous="all",
    deferred=False,
    skew=0.0,
    odd=None,
    is_delayed=False,
):
    """One submission and its wait in a world; what came out, and the truth about it.

    With `odd`, a function of the simulator and of a row, each row is what it returns. That may delay the verdict only
    where `is_delayed`.
    """
    clock = ManualClock()
    keep_time(clock)
    sim = Simulator(clock, config=config, seed=seed)
    sim.add_agent("agent", schedule_every=every, schedule_offset=offset)
    sim.add_history("agent", 5, every=40.0, run_seconds=30.0)
    rng = random.Random(seed)
    pending = sorted(other_starts)

    def sleep(seconds):
        end = clock.now + timedelta(seconds=seconds)
        while pending and start + timedelta(seconds=pending[0]) <= end:
            clock.now = max(clock.now, start + timedelta(seconds=pending.pop(0)))
            sim.start_scheduled_run("agent")
        clock.now = end

    keep_time(clock, sleep)
    start = clock.now
    sleep(rng.uniform(0, 90))
    sim.faults.extend(faults)
    if odd is not None:
        sim.corrupt(None, lambda row: odd(sim, row))
    client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=mock_transport(sim))
    submission = client.run_flow(submit("agent", settle=SETTLE))
    # As on another machine, some seconds later.
    sleep(rng.choice([0.0, 0.0, 3.0, 40.0]))

    def other_clock():
        return clock.now + timedelta(seconds=skew)

    tracker = RunTracker(
        submission, WaitPolicy(settle=SETTLE, appear_within=300.0, on_ambiguous=on_ambiguous), other_clock()
    )
    deadline_at = other_clock() + timedelta(seconds=7200 if odd is None else 900)
    began_at = clock.now
    if deferred:
        # As in a triggerer: with others, whose runs are of no concern to ours.
        driver = Driver(client, other_clock, sleep, rng=rng)
        subscription = driver.subscribe(tracker, deadline_at=deadline_at)
        for number in range(deferred - 1):
            sim.add_agent(f"other-{number}", schedule_every=50.0, schedule_offset=10.0 * number)
            other = client.run_flow(submit(f"other-{number}", settle=SETTLE))
            driver.subscribe(
                RunTracker(other, RULES, other_clock()), interval=rng.choice([2.0, 5.0, 30.0]), deadline_at=deadline_at
            )
        (verdict,) = driver.wait_for(subscription)
        assert subscription.error is None
    else:
        verdict = wait_on_worker(client, tracker, other_clock, sleep, deadline_at=deadline_at)
    if verdict.outcome in {Outcome.COMPLETED, Outcome.FAILED} and not is_delayed:
        ends = [sim.truth(event.id).ended_at for event in verdict.events]
        # However far off a clock is: no later than by `settle`, a replica's lag and a few looks.
        latest = max(max(ends) - timedelta(seconds=config.clock_skew), began_at + timedelta(seconds=SETTLE))
        assert clock.now - latest <= timedelta(seconds=90)
    return sim, submission, verdict


@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=worlds(),
    seed=st.integers(0, 2**32),
    every=st.sampled_from([None, 7.0, 45.0, 300.0]),
    offset=st.floats(0, 60),
    other_starts=st.lists(st.floats(0, 150), max_size=3),
    on_ambiguous=st.sampled_from(["all", "fail"]),
    deferred=st.sampled_from([0, 1, 2, 5]),
    skew=st.sampled_from(SKEWS),
)
def test_a_success_is_never_wrong(config, seed, every, offset, other_starts, on_ambiguous, deferred, skew):
    sim, submission, verdict = run_once(
        config,
        seed=seed,
        every=every,
        offset=offset,
        other_starts=other_starts,
        on_ambiguous=on_ambiguous,
        deferred=deferred,
        skew=skew,
    )
    mine = sim.event_of(submission.request_id)
    if verdict.outcome == Outcome.COMPLETED:
        assert sim.final_status(mine) == "COMPLETED"
    if verdict.outcome in {Outcome.COMPLETED, Outcome.FAILED, Outcome.AMBIGUOUS}:
        assert mine in {event.id for event in verdict.events}
    assert verdict.outcome not in {Outcome.NOT_FOUND, Outcome.TIMED_OUT}
    assert len(sim.executions) == max(1, deferred)


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=worlds(),
    seed=st.integers(0, 2**32),
    kinds=st.lists(
        st.sampled_from(
            ["reset_before", "reset_after", "hang_after", "html", "truncated", "empty", "garbage", "status"]
        ),
        max_size=4,
    ),
    skip=st.integers(0, 6),
    deferred=st.sampled_from([0, 1]),
    skew=st.sampled_from(SKEWS),
)
def test_blips_neither_change_a_verdict_nor_start_a_second_run(config, seed, kinds, skip, deferred, skew):
    faults = [Fault(kind=kind, skip=skip + n, worked=bool(n % 2)) for n, kind in enumerate(kinds)]
    sim, _, verdict = run_once(config, seed=seed, faults=faults, deferred=deferred, skew=skew)
    assert len(sim.executions) == 1
    mine = sim.executions[0].event_id
    if verdict.outcome == Outcome.COMPLETED:
        assert sim.final_status(mine) == "COMPLETED"
    assert {event.id for event in verdict.events} == {mine}


@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=worlds(),
    seed=st.integers(0, 2**32),
    every=st.sampled_from([None, None, 45.0]),
    other_starts=st.lists(st.floats(0, 130), max_size=3),
    lost=st.lists(
        st.sampled_from(["reset_before", "reset_after", "hang_before", "hang_after", "garbage", "refused"]), max_size=2
    ),
    on_ambiguous=st.sampled_from(["all", "fail"]),
)
def test_a_success_is_never_wrong_unless_the_task_accepts_a_run_without_an_answer(
    config, seed, every, other_starts, lost, on_ambiguous
):
    faults = [
        Fault(kind="status", status=429, method="POST") if kind == "refused" else Fault(kind=kind, method="POST")
        for kind in lost
    ]
    sim, submission, verdict = run_once(
        config, seed=seed, every=every, other_starts=other_starts, faults=faults, on_ambiguous=on_ambiguous
    )
    assert len(sim.executions) <= 1
    if verdict.outcome == Outcome.COMPLETED and not (submission.in_doubt and on_ambiguous == "all"):
        (mine,) = sim.executions
        assert sim.final_status(mine.event_id) == "COMPLETED"
    if submission.in_doubt and on_ambiguous == "fail":
        assert verdict.outcome == Outcome.AMBIGUOUS


@pytest.mark.parametrize("end_status", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_lone_run_gets_its_own_verdict_in_the_friendliest_world(end_status):
    sim, submission, verdict = run_once(SimulatorConfig(end_status=end_status), seed=1)
    assert [event.id for event in verdict.events] == [sim.event_of(submission.request_id)]
    assert verdict.outcome == (Outcome.COMPLETED if end_status == "COMPLETED" else Outcome.FAILED)


def test_a_pending_run_that_stands_behind_everything_else_is_not_overlooked():
    # Sorted by a `startedAt` that it does not have yet, ours is the last of all rows; a stranger seems the only one.
    long_queue = iter([70.0, 0.0])
    config = SimulatorConfig(
        sort_by="startedAt",
        nulls="last",
        queue_seconds=lambda rng: next(long_queue),
        run_seconds=5.0,
        end_status=lambda rng: "COMPLETED",
    )
    clock = ManualClock()
    keep_time(clock)
    sim = Simulator(clock, config=SimulatorConfig())
    sim.add_agent("agent")
    sim.add_history("agent", 60)
    sim.config = config
    client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=mock_transport(sim))
    submission = client.run_flow(submit("agent", settle=SETTLE))
    clock.advance(1)
    stranger = sim.start_scheduled_run("agent")
    clock.advance(SETTLE + 2)
    tracker = RunTracker(submission, RULES)
    assert tracker.apply_listing(client.run_flow(tracker.read_listing()), clock()) is None
    assert {event.id for event in tracker.events} == {sim.event_of(submission.request_id), stranger}


def test_an_old_run_that_has_not_begun_does_not_end_the_look_before_ours():
    # Sorted by a `startedAt` that it does not have, a stranger that queues since long ago stands before everything.
    clock = ManualClock()
    keep_time(clock)
    sim = Simulator(clock, config=SimulatorConfig(sort_by="startedAt", nulls="first", page_rows=1, run_seconds=100.0))
    sim.add_agent("agent")
    sim.add_agent("agent", queue_seconds=10_000.0)
    sim.start_scheduled_run("agent")
    sim.add_agent("agent", queue_seconds=0.0)
    clock.advance(600)
    client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=mock_transport(sim))
    submission = client.run_flow(submit("agent", settle=SETTLE))
    clock.advance(SETTLE + 2)
    tracker = RunTracker(submission, RULES)
    tracker.apply_listing(client.run_flow(tracker.read_listing()), clock())
    assert [event.id for event in tracker.events] == [sim.event_of(submission.request_id)]


def follow_slowly(client, clock, steps):
    """Follow a dialogue whose listings each take seconds."""
    try:
        call = next(steps)
        while True:
            answer = client.send_once(call)
            clock.advance(0.5 if "nextToken" in dict(call.params) else 2)
            call = steps.send(answer)
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize("step", ["snapshot", "listing"])
def test_a_run_that_begins_between_the_two_listings_of_a_look_is_in_one_of_them(step):
    # While it queues it stands behind everything else; once it has begun it is no longer PENDING.
    clock = ManualClock()
    keep_time(clock)
    sim = Simulator(clock, config=SimulatorConfig())
    sim.add_agent("agent")
    sim.add_history("agent", 60, every=600.0)
    sim.config = SimulatorConfig(sort_by="startedAt", nulls="last", queue_seconds=3.0, run_seconds=60.0)
    client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=mock_transport(sim))
    first = sim.start_scheduled_run("agent")
    if step == "listing":
        clock.advance(120)
        submission = client.run_flow(submit("agent", settle=SETTLE))
        first = sim.event_of(submission.request_id)
        steps = RunTracker(submission, RULES).read_listing()
    else:
        steps = take_snapshot("agent")
    clock.advance(2)
    seen = follow_slowly(client, clock, steps)
    assert first in (seen.known_event_ids if step == "snapshot" else {event.id for event in seen.events})


# --- rows that cannot be read ----------------------------------------------------------------------------------------

FIELDS = ["id", "agentId", "userId", "status", "error", "finalModel", "browserStepCount", "requestId"]
FIELDS += ["startedAt", "completedAt", "createdAt", "updatedAt"]
#: Anything but another moment or another status, which would be a lie that can be read.
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abc", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=2),
    max_leaves=4,
)
#: What becomes of a row: some fields are others, or all of it is.
changes = st.dictionaries(st.sampled_from(FIELDS), any_json, min_size=1, max_size=4) | any_json


def changed(row, change):
    # Equal rows that name no run cannot be counted over several pages.
    return {**row, **change} if isinstance(change, dict) else [change, row["id"]]


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=worlds(),
    seed=st.integers(0, 2**32),
    history=st.lists(changes, min_size=1, max_size=5),
    deferred=st.sampled_from([0, 1, 2]),
)
def test_odd_rows_of_the_history_neither_keep_a_run_from_starting_nor_from_ending(config, seed, history, deferred):
    old = []

    def odd(sim, row):
        old.extend(run.event_id for run, _ in sim.runs() if not sim.executions and run.event_id not in old)
        if row["id"] not in old:
            return row
        change = history[old.index(row["id"]) % len(history)]
        # Equal rows that name no run cannot be counted over several pages.
        return {**row, **change} if isinstance(change, dict) else [change, old.index(row["id"])]

    sim, submission, verdict = run_once(config, seed=seed, deferred=deferred, odd=odd)
    mine = sim.event_of(submission.request_id)
    assert {event.id for event in verdict.events} == {mine}
    assert verdict.outcome == (Outcome.COMPLETED if sim.final_status(mine) == "COMPLETED" else Outcome.FAILED)


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=worlds(),
    seed=st.integers(0, 2**32),
    other_starts=st.lists(st.floats(0, 150), max_size=3),
    odd_ones=st.lists(st.none() | changes, min_size=1, max_size=8),
    until=st.none() | st.floats(0, 400),
    deferred=st.sampled_from([0, 1, 2]),
)
def test_odd_rows_of_any_run_never_make_a_verdict_wrong(config, seed, other_starts, odd_ones, until, deferred):
    began = []

    def odd(sim, row):
        began.append(sim.clock())
        change = odd_ones[sum(row["id"].encode()) % len(odd_ones)]
        is_over = until is not None and (sim.clock() - began[0]).total_seconds() > until
        return row if change is None or is_over else changed(row, change)

    sim, submission, verdict = run_once(
        config, seed=seed, other_starts=other_starts, deferred=deferred, odd=odd, is_delayed=True
    )
    mine = sim.event_of(submission.request_id)
    if verdict.outcome == Outcome.COMPLETED:
        assert sim.final_status(mine) == "COMPLETED"
    if verdict.outcome == Outcome.TIMED_OUT:
        assert any(event.unreadable is not None for event in verdict.events)
        assert until is None
