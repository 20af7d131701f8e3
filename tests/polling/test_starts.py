"""Tasks that start one agent side by side and wait in several processes, which read each other's starts."""

from __future__ import annotations

import asyncio
import random

import pytest
from driving import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sibling_strategies import configs, tasks_in
from sibling_worlds import Task, World, config_of
from virtual_time import VirtualLoop

from airflow_provider_agents.polling.starts_reading import READ_SECONDS, StartsReading


def everything(starts):
    return starts


def nothing(_starts):
    return []


def spread(count, gap=0.0, processes=2, **more):
    """Tasks that are waited for in several processes in turn."""
    return [Task(number * gap, process=number % processes, **more) for number in range(count)]


@pytest.mark.parametrize("gap", [0.0, 1.0, 5.0])
@pytest.mark.parametrize(("count", "processes"), [(2, 2), (5, 2), (6, 3), (10, 3)])
def test_tasks_spread_over_processes_each_get_one_of_their_runs(count, processes, gap):
    for seed in range(4):
        rng, tasks = random.Random(seed), spread(count, gap, processes)
        world = World(config_of(rng), tasks, seed=seed, processes=processes, read_starts=everything).play()
        assert set(world.outcomes()) <= {"completed", "failed"}
        assert set(world.handed_on) == {task.own for task in world.tasks}
        assert max(world.handed_on.values()) == 1
        assert len(world.successes) == len(world.completed_of_ours)


@pytest.mark.parametrize("pokes", ["poke", "reschedule"])
@pytest.mark.parametrize("gap", [0.0, 1.0, 5.0])
def test_tasks_that_are_polled_on_workers_each_get_one_of_their_runs(pokes, gap):
    for seed in range(4):
        tasks = [*spread(3, gap), *spread(3, gap, pokes=pokes)]
        world = World(config_of(random.Random(seed)), tasks, seed=seed, processes=2, read_starts=everything).play()
        assert set(world.outcomes()) <= {"completed", "failed"}
        assert set(world.handed_on) == {task.own for task in world.tasks}


def test_a_start_that_is_written_down_after_the_first_reading_is_read_too():
    for seed in range(10):
        # When the first task has settled, the last one has not started. Only its start shows whose the second event is.
        tasks = [Task(0.0, process=0), Task(15.0, process=1), Task(40.0, process=2)]
        world = World(config_of(random.Random(seed)), tasks, seed=seed, processes=3, read_starts=everything).play()
        assert world.outcomes()["ambiguous"] == 0


def test_a_chain_of_starts_makes_a_task_wait_no_longer_than_two_settlings():
    tasks = spread(30, 10.0, processes=3)
    world = World(config_of(random.Random(1), lag=0.0), tasks, processes=3, read_starts=everything).play()
    assert max(task.ended_after for task in world.tasks) <= 30 + 2 * 70 + 5
    assert world.readings <= 3 * len(tasks)


def test_without_the_starts_of_others_such_tasks_end_as_ambiguous():
    ambiguous = 0
    for seed in range(10):
        world = World(config_of(random.Random(seed)), spread(4), seed=seed, processes=2, read_starts=nothing).play()
        ambiguous += world.outcomes()["ambiguous"]
    assert ambiguous > 0


tasks = tasks_in(processes=3, pokes=[None, None, "poke", "reschedule"])
others = {
    "other_starts": st.lists(st.floats(0, 120), max_size=3),
    "restarts": st.lists(st.floats(0, 120), max_size=2),
    "skew": st.sampled_from([0.0, -600.0, 240.0]),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=configs,
    tasks=tasks,
    others=st.fixed_dictionaries(others),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_whatever_a_process_reads_of_the_others_no_success_is_wrong(config, tasks, others, share):
    rng = random.Random(others["seed"])

    def some(starts):
        return [start for start in starts if rng.random() < share]

    world = World(config, tasks, processes=3, read_starts=some, **others).play()
    for task in world.tasks:
        if task.tracker.submission.in_doubt or task not in world.successes:
            continue
        assert world.status(task.verdict.event.id) == "COMPLETED"
        if task.policy.on_ambiguous != "share":
            assert world.status(task.own) == "COMPLETED"
        # If a task without an answer to its POST was given this one's event, what this one finds counts as late.
        if len(task.verdict.events) == 1 and not task.verdict.is_shared and not task.verdict.late:
            assert task.verdict.event.id == task.own
    for task in world.ended:
        if task.verdict.is_shared:
            assert task.verdict.event.id in {each.own for each in world.tasks}
    for number in range(3):
        together = [task for task in world.tasks if task.process == number and task.pokes is None]
        mine = [event_id for task in together for event_id in task.handed_on]
        assert len(set(mine)) == len(mine)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    starts=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 1)), min_size=2, max_size=7),
    lag=st.sampled_from([0.0, 5.0, 20.0]),
    created_at=st.sampled_from(["accepted", "appeared"]),
    seed=st.integers(0, 10**6),
)
def test_processes_that_see_a_closed_group_share_it_out_alike(starts, lag, created_at, seed):
    config = config_of(random.Random(seed), lag=lag, failing=0.4, run_seconds=60.0, created_at=created_at)
    tasks = [Task(seconds, process=process) for seconds, process in starts]
    world = World(config, tasks, processes=2, read_starts=everything, seed=seed).play()
    shared = [event_id for task in world.tasks if task.verdict.is_shared for event_id in task.handed_on]
    assert len(set(shared)) == len(shared)


def test_tasks_that_end_in_the_same_cycle_read_the_starts_once_together():
    config = config_of(random.Random(1), lag=0.0, failing=0.0, run_seconds=5.0)
    world = World(config, [*spread(8), Task(0.0, process=1)], processes=2, read_starts=everything).play()
    assert world.outcomes() == {"completed": 9}
    assert world.readings == 2


def test_a_task_alone_and_a_closed_group_read_nothing():
    config = config_of(random.Random(1), lag=0.0)
    assert World(config, [Task(0.0)], read_starts=everything).play().readings == 0
    assert World(config, [Task(0.0) for _ in range(3)], read_starts=everything).play().readings == 0


def test_starts_that_are_all_known_are_not_read_again_while_another_party_keeps_a_group_open():
    config = config_of(random.Random(1), lag=0.0, run_seconds=5.0)
    tasks = spread(2)
    world = World(config, tasks, processes=2, read_starts=everything, other_starts=[1.0]).play()
    assert max(task.ended_after for task in tasks) < 45.0
    assert world.readings <= 2 * len(tasks)


def test_the_starts_of_others_delay_a_verdict_by_some_polls_at_most():
    for seed in range(10):
        tasks = spread(4)
        World(config_of(random.Random(seed), lag=0.0), tasks, seed=seed, processes=2, read_starts=everything).play()
        assert max(task.ended_after for task in tasks) < 45.0


async def read_within(seconds, reading):
    reading.begin(["agent-1", "agent-2"])
    await asyncio.sleep(seconds)
    return list(reading.done())


def test_a_reading_without_an_answer_is_given_up_and_the_next_agent_is_read(caplog):
    async def read(agent_id):
        if agent_id == "agent-1":
            await asyncio.Event().wait()
        return ["a start"]

    woken = []
    reading = StartsReading(read, lambda: woken.append(True))
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(read_within(READ_SECONDS - 1, reading)) == []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        done = runner.run(read_within(READ_SECONDS + 1, StartsReading(read, lambda: woken.append(True))))
    assert done == [("agent-1", ()), ("agent-2", ["a start"])]
    assert caplog.text.count("The starts of agent agent-1 in other triggerers and workers could not be read") == 1
    assert len(woken) == 2
