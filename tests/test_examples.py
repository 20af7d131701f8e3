"""The example DAGs together: `make up` serves all of them, and a reader may trigger all at once."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
from conftest import dag_bag
from examples import POOLS, examples

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
