"""The tasks and the platform of `make cluster-test`."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from cluster_consumer import ended_between
from cluster_platform import SIBLINGS, SPENT_AGENT, places, platform, side_by_side, started_runs

from airflow_provider_agents.simulator import Simulator


@pytest.mark.parametrize("part", [0.25, 0.75, 1.0])
@pytest.mark.parametrize("count", [SIBLINGS, 30, 200])
def test_a_part_of_the_tasks_share_agents_and_no_other_task_does(count, part):
    made = places(count, part)
    assert len(made) == count
    of_agents = Counter(place.agent_id for place in made)
    assert {(place.is_shared, of_agents[place.agent_id]) for place in made} <= {(True, SIBLINGS), (False, 1)}
    assert abs(sum(place.is_shared for place in made) - count * part) <= SIBLINGS


def test_the_platform_has_the_agents_that_the_tasks_want():
    made = places(30)
    wanted = {place.agent_id for place in made}
    assert {agent.id for agent in platform(made, seed=1).agents()} == {*wanted, SPENT_AGENT}


def test_the_agent_whose_budget_is_used_up_has_had_a_run_today():
    ((run, status),) = platform([], seed=1).runs()
    assert (run.agent_id, status) == (SPENT_AGENT, "COMPLETED")
    assert datetime.now(UTC) - run.accepted_at < timedelta(hours=2)


def test_runs_that_ended_within_the_period_are_awaited_and_no_others():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    simulator = Simulator(lambda: start, api_keys=("key",))
    simulator.add_agent("a", queue_seconds=0.0)
    events = []
    for seconds in (9, 10, 20, 21):
        simulator.add_agent("a", queue_seconds=0.0, run_seconds=float(seconds))
        events.append(simulator.start_scheduled_run("a"))
    runs = [run for run, _ in simulator.runs()]
    period = (start + timedelta(seconds=seconds) for seconds in (10, 20))
    assert ended_between(runs, *period) == set(events[1:3])


def test_runs_of_one_agent_within_a_second_are_counted():
    now = start = datetime(2026, 1, 1, tzinfo=UTC)
    simulator = Simulator(lambda: now, api_keys=("key",))
    simulator.add_agent("a")
    simulator.add_agent("b")
    for seconds, agent_id in [(0, "a"), (5, "a"), (5.5, "a"), (5.5, "b"), (9, "b")]:
        now = start + timedelta(seconds=seconds)
        simulator.handle("POST", f"/v1/agents/{agent_id}/execute", {}, {"Authorization": "Bearer key"})
    assert len(started_runs(simulator)) == 5
    assert side_by_side(simulator) == 2
