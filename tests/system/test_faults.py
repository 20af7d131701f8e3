"""The short form of `make faults`, in a real Airflow on PostgreSQL: one run for each task, and its own verdict."""

from __future__ import annotations

import faults
import pytest

pytestmark = pytest.mark.system


def test_no_fault_starts_a_second_run_or_changes_a_verdict(tmp_path):
    names = ["post-acted", "triggerer", "odd-rows"]
    tallies = faults.run(names, tries=2, seed=1, home=tmp_path)
    assert [tally.wrong for tally in tallies] == [[]] * len(names)
    assert all(tally.hits for tally in tallies)
    assert sum(tally.doubled for tally in tallies) == 0
    assert sum(tally.right for tally in tallies) == sum(tally.tasks for tally in tallies) > len(names)
