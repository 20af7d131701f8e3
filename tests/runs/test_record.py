"""What a task remembers from one try to the next."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from driving import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.record import Attempt, Phase, RunRecord
from airflow_provider_agents.runs.submission import Submission

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
RECORD = RunRecord(
    phase=Phase.ACCEPTED,
    agents_conn_id="c",
    submission=Submission(agent_id="a", request_id="r", taken_at=T0),
    attempt=Attempt(try_number=1, max_tries=3, clear_number=0),
)


class Airflow:
    """How Airflow counts the tries of one task instance."""

    def __init__(self, retries):
        self.retries, self.try_number, self.max_tries, self.clear_number = retries, 1, retries, 0

    def retry(self):
        self.try_number += 1

    def clear(self):
        self.max_tries = self.try_number + self.retries
        self.clear_number += 1
        self.try_number += 1

    def clear_sibling(self):
        self.clear_number += 1

    def attempt(self, *, counts_clears):
        return Attempt(
            try_number=self.try_number,
            max_tries=self.max_tries,
            clear_number=self.clear_number if counts_clears else None,
        )


def test_a_record_survives_json():
    ended = RECORD.changed(phase=Phase.ENDED, outcome=Outcome.COMPLETED, result={"id": "e"}, is_own=True)
    for record in (RECORD, ended):
        assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_change_leaves_the_record_as_it_was():
    changed = RECORD.changed(phase=Phase.DEFERRED, ends_in_trigger=True)
    assert (changed.phase, changed.ends_in_trigger, changed.submission) == ("deferred", True, RECORD.submission)
    assert (RECORD.phase, RECORD.ends_in_trigger) == ("accepted", False)


def test_a_record_is_of_one_agent_over_one_connection():
    assert RECORD.belongs_to("a", "c")
    assert not RECORD.belongs_to("b", "c")
    assert not RECORD.belongs_to("a", "d")


# --- cleared, or retried ---


@settings(max_examples=examples(500))
@given(
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    earlier=st.lists(st.sampled_from(["retry", "clear"]), max_size=4),
    since=st.lists(st.sampled_from(["retry", "clear", "clear_sibling"]), max_size=4),
    last=st.sampled_from(["retry", "clear"]),
    counts_clears=st.booleans(),
)
def test_a_clear_is_told_from_a_retry(before, after, earlier, since, last, counts_clears):
    airflow = Airflow(before)
    for step in earlier:
        getattr(airflow, step)()
    recorded = airflow.attempt(counts_clears=counts_clears)
    airflow.retries = after
    for step in (*since, last):
        getattr(airflow, step)()
    cleared = "clear" in (*since, last)

    decided = airflow.attempt(counts_clears=counts_clears).is_cleared_since(recorded, retries=after)
    # A task whose `retries` were lowered looks so too if only another task was cleared, or if that is unknown.
    looks_cleared = after < before and ("clear_sibling" in since or not counts_clears)
    assert decided == cleared or (decided and looks_cleared)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (2, 1), (3, 2), (2, 2), (0, 3)])
@pytest.mark.parametrize("counts_clears", [True, False])
def test_a_clear_after_the_first_try_is_seen_whatever_became_of_the_retries(before, after, counts_clears):
    airflow = Airflow(before)
    recorded = airflow.attempt(counts_clears=counts_clears)
    airflow.retries = after
    airflow.clear()
    assert airflow.attempt(counts_clears=counts_clears).is_cleared_since(recorded, retries=after)


@pytest.mark.parametrize("retries", [1, 3])
def test_a_retry_is_none_although_another_task_of_the_dag_run_was_cleared(retries):
    airflow = Airflow(retries)
    recorded = airflow.attempt(counts_clears=True)
    airflow.clear_sibling()
    airflow.retry()
    assert not airflow.attempt(counts_clears=True).is_cleared_since(recorded, retries=retries)


def test_a_try_is_not_cleared_since_itself():
    airflow = Airflow(0)
    airflow.clear()
    attempt = airflow.attempt(counts_clears=True)
    assert not attempt.is_cleared_since(attempt, retries=0)
