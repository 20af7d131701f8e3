"""Which tests `make check` runs for a changed file."""

from __future__ import annotations

from pathlib import Path

import pytest
from changed_tests import BY_FOLDER, related_tests

ROOT = Path(__file__).parents[1]
TESTS = {
    "tests/runs/test_tracker.py": "from airflow_provider_agents.runs.tracker import RunTracker",
    "tests/runs/test_joint_worlds.py": "from airflow_provider_agents.runs import joint",
    "tests/test_cli_probe.py": "",
    "tests/polling/test_plan.py": "from driving import Driver",
    "tests/test_operators.py": "from airflow_provider_agents.operators import ExecuteAgentOperator",
}


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("airflow_provider_agents/runs/tracker.py", {"tests/runs/test_tracker.py"}),
        ("airflow_provider_agents/cli/probe.py", {"tests/test_cli_probe.py"}),
        ("airflow_provider_agents/runs/joint.py", {"tests/runs/test_joint_worlds.py"}),
        ("tests/support/driving.py", {"tests/polling/test_plan.py"}),
        ("tests/test_operators.py", {"tests/test_operators.py"}),
        ("tests/test_deleted.py", set()),
        ("docs/operator.md", {"tests/test_docs.py"}),
        ("LICENSE", set()),
    ],
)
def test_a_changed_file_has_the_tests_that_are_named_after_it_or_import_it(changed, tests):
    assert related_tests(changed, TESTS) == tests


def test_the_related_tests_what_is_no_module_exist():
    assert [test for tests in BY_FOLDER.values() for test in tests if not (ROOT / test).exists()] == []
    assert [start for start in BY_FOLDER if not (ROOT / start).exists()] == []
