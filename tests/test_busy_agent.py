"""`if_running="wait"` in the triggerer: whose turn it is, and what a busy agent is."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from conftest import Task, connection

from airflow_provider_agents.api.errors import AgentBusyError
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.payloads import AgentIdle
from airflow_provider_agents.simulator import Fault
from airflow_provider_agents.triggers import AgentIdleTrigger, AgentRunTrigger

TRIGGERS = {"AgentRunTrigger": AgentRunTrigger, "AgentIdleTrigger": AgentIdleTrigger}
HOLD = 30.0


def trigger(agent_id="agent-1", *, seconds=86400.0, hold_seconds=HOLD, poll_interval=5.0, conn="agents_default"):
    deadline_at = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    return AgentIdleTrigger(
        agents_conn_id=conn,
        agent_id=agent_id,
        poll_interval=poll_interval,
        deadline_at=deadline_at,
        settle=30.0,
        hold_seconds=hold_seconds,
    )


async def payload_of(one):
    async with aclosing(one.run()) as events:
        return AgentIdle.from_json((await anext(events)).payload)


async def start_all(*triggers):
    """Start waits one after the other, as tasks."""
    tasks = []
    for one in triggers:
        tasks.append(asyncio.ensure_future(payload_of(one)))
        await asyncio.sleep(0.01)
    return tasks


def busy(platform, seconds=60.0, agent_id="agent-1"):
    platform.sim.add_agent(agent_id, queue_seconds=0.0, run_seconds=seconds)
    platform.sim.start_scheduled_run(agent_id)
    platform.sim.add_agent(agent_id, queue_seconds=0.0, run_seconds=60.0)


# --- one at a time ---


def test_waiting_tasks_are_released_one_at_a_time_in_their_order(platform):
    busy(platform)

    async def main():
        return [idle.released_at for idle in await asyncio.gather(*await start_all(*(trigger() for _ in range(4))))]

    released = asyncio.run(main())
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(released)]
    assert all(HOLD <= gap <= HOLD + 6 for gap in gaps)


def test_the_next_task_is_released_once_the_run_of_the_one_before_is_over(platform):
    busy(platform)

    async def main():
        first, second = await start_all(trigger(hold_seconds=3600.0), trigger())
        await first
        await asyncio.sleep(4)
        mine = platform.sim.start_scheduled_run("agent-1")
        idle = await second
        return platform.sim.truth(mine), idle

    run, idle = asyncio.run(main())
    # Its hour is not over, but its run is.
    assert timedelta(0) <= idle.released_at - run.ended_at <= timedelta(seconds=8)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_task_that_leaves_holds_up_no_other(platform, gone):
    busy(platform)

    async def main():
        tasks = await start_all(*(trigger() for _ in range(4)))
        await asyncio.sleep(20)
        tasks.pop(gone).cancel()
        return [idle.released_at for idle in await asyncio.gather(*tasks)]

    released = asyncio.run(main())
    assert released == sorted(released)
    assert released[-1] - released[0] <= timedelta(seconds=2 * (HOLD + 6))


def test_a_task_that_comes_after_a_release_waits_as_well(platform):
    # The poller is closed by then, as nothing else waits.
    busy(platform)

    async def main():
        first = await payload_of(trigger())
        await asyncio.sleep(2)
        return first, await payload_of(trigger())

    first, second = asyncio.run(main())
    assert second.released_at - first.released_at >= timedelta(seconds=HOLD)


@pytest.mark.parametrize("other", ["agent", "connection"])
def test_another_agent_or_connection_has_a_queue_of_its_own(platform, monkeypatch, other):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_OTHER", connection(platform.url))
    busy(platform)
    busy(platform, agent_id="agent-2")
    second = trigger("agent-2") if other == "agent" else trigger(conn="agents_other")

    async def main():
        return [idle.released_at for idle in await asyncio.gather(*await start_all(trigger(), second))]

    released = asyncio.run(main())
    assert abs(released[0] - released[1]) <= timedelta(seconds=6)


def test_a_task_whose_turn_does_not_come_fails_at_its_deadline(platform):
    busy(platform)

    async def main():
        tasks = await start_all(trigger(), trigger(), trigger(seconds=70.0))
        return await tasks[2]

    began = platform.sim.clock()
    idle = asyncio.run(main())
    assert "Tasks that came first and still wait for it: 1. Nothing was started." in idle.error
    assert not idle.for_good
    assert 70 <= (platform.sim.clock() - began).total_seconds() <= 72


def test_what_is_refused_ends_all_waits_together(platform):
    busy(platform, seconds=9000.0)
    begin = platform.sim.clock() + timedelta(seconds=100)
    platform.sim.faults.append(Fault(kind="status", status=404, times=None, not_before=begin))

    async def main():
        return await asyncio.gather(*await start_all(*(trigger() for _ in range(5))))

    ends = asyncio.run(main())
    assert all("404" in idle.error and idle.for_good for idle in ends)
    assert (platform.sim.clock() - begin).total_seconds() <= 600


def test_many_waiting_tasks_cost_no_more_requests_than_one(platform):
    asked = {}
    for count in (1, 50):
        busy(platform, seconds=600.0)
        before = platform.sim.count()

        async def main(count=count):
            tasks = await start_all(*(trigger() for _ in range(count)))
            await tasks[0]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())
        asked[count] = platform.sim.count() - before
        platform.advance(HOLD)
    assert asked[50] <= asked[1] + 10


# --- what a busy agent is ---


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_run_that_vanishes_keeps_an_agent_busy_for_some_minutes_at_most(platform, task, monkeypatch, deferrable):
    platform.sim.add_agent("agent-1", queue_seconds=1e6)
    platform.sim.start_scheduled_run("agent-1")
    platform.sim.add_agent("agent-1", queue_seconds=0.0)
    began, passed = platform.sim.clock(), platform.advance

    def advance(seconds):
        passed(seconds)
        if platform.sim.clock() - began >= timedelta(seconds=60) and not platform.sim.executions:
            platform.sim.forget(platform.sim.clock() + timedelta(days=30))

    monkeypatch.setattr(platform, "advance", advance)
    drive_to_end(
        task, ExecuteAgentOperator(task_id="run", agent_id="agent-1", if_running="wait", deferrable=deferrable)
    )
    assert platform.sim.executions[0].accepted_at - began <= timedelta(seconds=60 + 70)


def test_a_slow_listing_does_not_put_off_the_deadline(platform):
    busy(platform, seconds=9000.0)
    # An idle agent's page after page, each of them empty.
    platform.sim.config = replace(platform.sim.config, endless_tokens=True)
    monkey = {"max_requests_per_second": 0.05}

    async def main():
        return await payload_of(trigger(seconds=100.0, conn="agents_slow"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AGENTS_SLOW", connection(platform.url, **monkey))
        began = platform.sim.clock()
        idle = asyncio.run(main())
    assert "not answered in full" in idle.error
    assert (platform.sim.clock() - began).total_seconds() <= 165


# --- the task that is released ---


def drive_to_end(task, op, pause=lambda: 0.0):
    """Drive a task through its triggers."""
    return asyncio.run(adrive(task, op, pause))


async def adrive(task, op, pause=lambda: 0.0):
    call, context, arguments = op.execute, task.context(), {}
    while True:
        try:
            return call(context, **arguments)
        except TaskDeferred as deferred:
            path, trigger_arguments = deferred.trigger.serialize()
            one = TRIGGERS[path.rpartition(".")[2]](**json.loads(json.dumps(trigger_arguments)))
            async with aclosing(one.run()) as events:
                event = await anext(events)
            await asyncio.sleep(pause())
            call, context = getattr(op, deferred.method_name), task.resumed()
            arguments = {"event": json.loads(json.dumps(event.payload)), **(deferred.kwargs or {})}


@pytest.mark.parametrize(("least", "most"), [(1.0, 5.0), (20.0, 100.0), (200.0, 400.0)])
@pytest.mark.parametrize("run_seconds", [10.0, 90.0])
def test_tasks_that_wait_for_each_other_start_in_turn_on_a_quick_or_slow_cluster(platform, least, most, run_seconds):
    platform.sim.config = replace(platform.sim.config, record_lag=2.0)
    rng = random.Random(7)
    busy(platform)
    platform.advance(5)
    ends = iter(["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"])
    platform.sim.add_agent("agent-1", queue_seconds=1.0, run_seconds=run_seconds, end_status=lambda _: next(ends))

    def operator():
        return ExecuteAgentOperator(task_id="run", agent_id="agent-1", if_running="wait")

    async def main():
        return await asyncio.gather(
            *(adrive(Task(), operator(), lambda: rng.uniform(least, most)) for _ in range(4)), return_exceptions=True
        )

    results = asyncio.run(main())
    # Each knows how its own run ended, as none started beside another.
    assert sorted(type(result).__name__ for result in results) == ["AgentRunFailedError", "dict", "dict", "dict"]
    runs = started(platform)
    assert len(runs) == 4
    assert all(later.accepted_at >= earlier.ended_at for earlier, later in pairwise(runs))


def started(platform):
    """The runs that were started, in the order of acceptance."""
    return sorted((platform.sim.truth(done.event_id) for done in platform.sim.executions), key=lambda r: r.accepted_at)


def test_tasks_that_find_the_agent_idle_together_start_one_after_the_other(platform):
    platform.sim.config = replace(platform.sim.config, record_lag=2.0)

    def operator():
        return ExecuteAgentOperator(task_id="run", agent_id="agent-1", if_running="wait")

    async def main():
        return await asyncio.gather(*(adrive(Task(), operator(), lambda: 3.0) for _ in range(3)))

    results = asyncio.run(main())
    runs = started(platform)
    assert len({result["id"] for result in results}) == len(runs) == 3
    assert all(later.accepted_at >= earlier.ended_at for earlier, later in pairwise(runs))


@pytest.mark.parametrize("record_lag", [2.0, 25.0])
def test_a_run_that_is_accepted_and_not_listed_yet_keeps_its_agent_busy(platform, record_lag):
    platform.sim.config = replace(platform.sim.config, record_lag=record_lag)
    plain = ExecuteAgentOperator(task_id="run", agent_id="agent-1")

    async def main():
        first = asyncio.ensure_future(adrive(Task(), plain, lambda: 3.0))
        await asyncio.sleep(1.0)
        idle = await payload_of(trigger())
        await first
        return idle

    idle = asyncio.run(main())
    (run,) = started(platform)
    assert idle.released_at >= run.ended_at


def test_a_run_that_never_appears_keeps_its_agent_busy_until_it_counts_as_lost(platform):
    platform.sim.config = replace(platform.sim.config, record_lag=10_000.0)
    plain = ExecuteAgentOperator(task_id="run", agent_id="agent-1", appear_within=100.0)

    async def main():
        first = asyncio.ensure_future(adrive(Task(), plain, lambda: 3.0))
        await asyncio.sleep(1.0)
        idle = await payload_of(trigger())
        await asyncio.gather(first, return_exceptions=True)
        return idle

    before = datetime.now(UTC)
    idle = asyncio.run(main())
    assert 100 <= (idle.released_at - before).total_seconds() <= 115


def resumed(task, *, ago, hold_seconds=HOLD, seconds=3600.0):
    """Resume a task some seconds after its release."""
    released_at = datetime.now(UTC) - timedelta(seconds=ago)
    payload = AgentIdle(
        agents_conn_id="agents_default",
        agent_id="agent-1",
        deadline_at=datetime.now(UTC) + timedelta(seconds=seconds),
        released_at=released_at,
        hold_seconds=hold_seconds,
    ).to_json()
    task.context()
    op = ExecuteAgentOperator(task_id="run", agent_id="agent-1", if_running="wait")
    with pytest.raises(TaskDeferred) as deferred:
        op.start_when_idle(task.resumed(), payload)
    return deferred.value.trigger


def test_a_task_that_is_resumed_in_time_starts_its_run(platform, task):
    assert isinstance(resumed(task, ago=HOLD - 1), AgentRunTrigger)
    assert len(platform.executions()) == 1


@pytest.mark.parametrize(
    ("hold_seconds", "next_hold"), [(HOLD, 2 * HOLD), (1000.0, 2000.0), (2000.0, 3600.0), (3600.0, 3600.0)]
)
def test_a_task_that_is_resumed_too_late_waits_for_another_and_longer_turn(platform, task, hold_seconds, next_hold):
    again = resumed(task, ago=hold_seconds + 1, hold_seconds=hold_seconds)
    assert isinstance(again, AgentIdleTrigger)
    assert again.hold_seconds == next_hold
    assert platform.executions() == []


def test_a_task_that_finds_the_agent_busy_again_waits_another_turn_of_equal_length(platform, task):
    busy(platform)
    assert resumed(task, ago=1, hold_seconds=120.0).hold_seconds == 120.0


def test_a_task_that_is_resumed_after_its_deadline_fails_and_starts_nothing(platform, task):
    with pytest.raises(AgentBusyError, match="Its deadline has passed, and nothing was started"):
        resumed(task, ago=HOLD + 1, seconds=-1.0)
    assert platform.executions() == []


@pytest.mark.parametrize("deferrable", [True, False])
def test_an_agent_that_stays_busy_ends_either_wait_with_the_same_error(platform, task, deferrable):
    busy(platform, seconds=7200.0)
    op = ExecuteAgentOperator(
        task_id="run", agent_id="agent-1", if_running="wait", deferrable=deferrable, timeout=100.0, retries=0
    )
    with pytest.raises(AgentBusyError, match="Nothing was started"):
        drive_to_end(task, op)
