"""Tasks of ours that start the same agent side by side: each event goes to one of them, and no success is wrong."""

from __future__ import annotations

import random

import pytest
from driving import Driver, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sibling_strategies import configs, tasks_in
from sibling_worlds import Task, World, config_of

from airflow_provider_agents.api.flow import through
from airflow_provider_agents.runs import siblings
from airflow_provider_agents.runs.joint import JointMatch
from airflow_provider_agents.runs.tracker import WaitPolicy


@pytest.mark.parametrize("gap", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("count", [2, 5, 10])
def test_side_by_side_tasks_without_other_parties_each_get_one_of_their_runs(count, gap):
    for seed in range(5):
        rng = random.Random(seed)
        world = World(config_of(rng), [Task(number * gap) for number in range(count)], seed=seed).play()
        assert set(world.outcomes()) <= {"completed", "failed"}
        assert set(world.handed_on) == {task.own for task in world.tasks}
        assert max(world.handed_on.values()) == 1
        assert len(world.successes) == len(world.completed_of_ours)


tasks = tasks_in(processes=1)
others = {
    "other_starts": st.lists(st.floats(0, 120), max_size=4),
    "restarts": st.lists(st.floats(0, 120), max_size=3),
    "skew": st.sampled_from([0.0, -600.0, 240.0]),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs, tasks=tasks, others=st.fixed_dictionaries(others))
def test_whatever_happens_no_event_goes_to_two_and_no_success_is_wrong(config, tasks, others):
    world = World(config, tasks, **others).play()
    assert max(world.handed_on.values(), default=1) == 1
    assert all(len(task.handed_on) <= 1 for task in world.tasks)
    # A POST that was sent again and answered is one like the others.
    answered = [task for task in world.tasks if not task.tracker.submission.in_doubt]
    successes = [task for task in answered if task in world.successes]
    assert len(successes) <= len([task for task in answered if task in world.completed_of_ours])
    for task in successes:
        assert world.status(task.verdict.event.id) == "COMPLETED"
        if task.policy.on_ambiguous != "share":
            assert world.status(task.own) == "COMPLETED"
        # If a task without an answer to its POST was given this one's event, what this one finds counts as late.
        if len(task.verdict.events) == 1 and not task.verdict.is_shared and not task.verdict.late:
            assert task.verdict.event.id == task.own
    for task in world.ended:
        if task.verdict.is_shared:
            assert task.verdict.event.id in {each.own for each in world.tasks}


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tasks=tasks, lag=st.sampled_from([40.0, 100.0, 400.0]), others=st.fixed_dictionaries(others))
def test_records_that_come_too_late_give_no_event_to_two(tasks, lag, others):
    world = World(config_of(random.Random(), lag=lag), tasks, **others).play()
    assert max(world.handed_on.values(), default=1) == 1
    assert all(len(task.handed_on) <= 1 for task in world.tasks)


@pytest.mark.parametrize("gap", [0.0, 5.0])
def test_a_task_whose_only_event_went_to_a_sibling_searches_on_and_is_late(gap):
    # The event of one run appears after `settle`, so both tasks see the other run alone, and one of them is given it.
    for seed in (5, 11, 19, 28):
        config = config_of(random.Random(seed), lag=40.0, failing=0.0)
        world = World(config, [Task(0.0), Task(gap)], seed=seed).play()
        first, second = sorted(world.tasks, key=lambda task: task.ended_after + task.starts_at)
        assert world.outcomes() == {"completed": 2}
        assert max(world.handed_on.values()) == 1
        assert second.ended_after < 60.0
        assert (first.verdict.late, second.verdict.late) == (False, True)


def test_a_task_beside_another_partys_run_succeeds_if_both_completed():
    world = World(config_of(random.Random(1), lag=0.0, failing=0.0), [Task(0.0)], other_starts=[1.0]).play()
    assert world.outcomes() == {"completed": 1}


def test_with_fail_no_event_of_several_is_taken_unless_the_siblings_take_the_others():
    policy = WaitPolicy(on_ambiguous="fail")
    apart = World(config_of(random.Random(1), lag=0.0), [Task(0.0, policy=policy), Task(8.0, policy=policy)]).play()
    assert "ambiguous" not in apart.outcomes()
    beside = World(config_of(random.Random(1), lag=0.0), [Task(0.0, policy=policy)], other_starts=[1.0]).play()
    assert beside.outcomes() == {"ambiguous": 1}


def test_a_chain_of_starts_that_does_not_end_is_not_waited_for_without_end():
    world = World(config_of(random.Random(1)), [Task(10.0 * number) for number in range(20)]).play()
    assert max(task.ended_after for task in world.tasks) < 150


def at_once(*policies, seed):
    tasks = [Task(0.0, policy=WaitPolicy(on_ambiguous=policy)) for policy in policies]
    return World(config_of(random.Random(seed), created_at="appeared"), tasks, seed=seed).play()


def test_every_run_that_is_shared_out_is_said_to_be_so():
    for seed in range(10):
        assert all(task.verdict.is_shared for task in at_once("share", "share", "share", seed=seed).tasks)


@pytest.mark.parametrize(
    ("policy", "outcomes"), [("fail", {"ambiguous"}), ("all", {"completed", "failed", "ambiguous"})]
)
def test_what_a_sibling_was_given_makes_a_task_that_does_not_share_no_surer(policy, outcomes):
    for seed in range(20):
        world = at_once("share", policy, seed=seed)
        (other,) = [task for task in world.tasks if task.policy.on_ambiguous == policy]
        assert str(other.verdict.outcome) in outcomes
        if other in world.successes:
            assert world.status(other.own) == "COMPLETED"


def test_events_that_name_their_requests_are_not_decided_together(mocker):
    decide = mocker.spy(JointMatch, "__init__")
    tasks = [Task(0.0) for _ in range(5)]
    world = World(config_of(random.Random(1), request_id="field"), tasks).play()
    assert [task.verdict.event.id for task in world.ended] == [task.own for task in world.tasks]
    assert decide.call_count == 0


def test_tasks_wait_for_a_sibling_whose_window_only_the_tolerance_lets_reach_theirs():
    policy = WaitPolicy(settle=2.0, appear_within=60.0)
    for seed in range(8):
        tasks = [Task(number * 5.0, policy=policy) for number in range(8)]
        config = config_of(random.Random(seed), lag=2.0, run_seconds=1.0, failing=0.5)
        assert set(World(config, tasks, seed=seed).play().outcomes()) <= {"completed", "failed"}


class CountingDriver(Driver):
    """A driver that counts how many waits end between two turns of the event loop."""

    ended = ()

    def follow_all(self, batch):
        super().follow_all([self._counted(flow) for flow in batch])

    def _counted(self, flow):
        def perform(step):
            nonlocal waits
            self.ended += (waits - self.plan.stats().waits,)
            answer = yield step
            waits = self.plan.stats().waits
            return answer

        waits = self.plan.stats().waits
        yield from through(flow, perform)
        self.ended += (waits - self.plan.stats().waits,)


def test_many_siblings_that_end_together_end_in_small_steps():
    config = config_of(random.Random(1), lag=0.0, run_seconds=1.0)
    world = World(config, [Task(0.0) for _ in range(80)], driver=CountingDriver).play()
    assert set(world.handed_on) == {task.own for task in world.tasks}
    assert sum(world.drivers[0].ended) == 80
    assert max(world.drivers[0].ended) <= 25


def test_a_change_of_one_event_does_not_read_the_submissions_of_all_siblings(mocker):
    keys = mocker.spy(siblings, "key_of")
    read = []
    for count in (20, 40):
        keys.reset_mock()
        World(config_of(random.Random(1), run_seconds=60.0), [Task(0.0) for _ in range(count)]).play()
        read.append(keys.call_count / count)
    assert read[1] < 1.5 * read[0]
