"""The example DAGs together: `make up` serves all of them, and a reader may trigger all at once."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
from conftest import dag_bag, needs_airflow
from examples import POOLS, examples

from airflow_provider_agents.api.errors import AgentRunFailedError, TemporaryError

EXAMPLES = sorted((Path(__file__).parents[1] / "example_dags").glob("*.py"))


def agents_of(file):
    """The agents that an example names."""
    return set(re.findall(r'"(agent-[\w-]+)"', file.read_text()))


def test_no_two_examples_share_an_agent():
    shared = {(a.stem, b.stem): agents_of(a) & agents_of(b) for a, b in combinations(EXAMPLES, 2)}
    assert {pair: agents for pair, agents in shared.items() if agents} == {}


@pytest.mark.parametrize("file", examples().values(), ids=lambda file: file.stem)
def test_every_pool_of_an_example_is_made_for_it(file):
    (dag,) = dag_bag(file).dags.values()
    assert {task.pool for task in dag.tasks} - {"default_pool"} <= set(POOLS)


@needs_airflow("3.3")
def test_the_example_of_a_final_failure_still_retries_an_outage():
    (dag,) = dag_bag(examples()["agent_failed_is_final"]).dags.values()
    policy = dag.get_task("run_agent").retry_policy
    failed = AgentRunFailedError("The run FAILED.", agent_id="a", request_id="r", event_ids=["e"])
    decisions = [policy.evaluate(error, try_number=1, max_tries=3) for error in (failed, TemporaryError("down"))]
    assert [decision.action.value for decision in decisions] == ["fail", "default"]
