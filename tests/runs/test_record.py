"""What a task remembers from one try to the next."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from airflow_provider_agents.runs.record import Phase, RunRecord, UnreadableRecordError
from airflow_provider_agents.runs.submission import Submission

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
RECORD = RunRecord(
    phase=Phase.ACCEPTED, agents_conn_id="c", submission=Submission(agent_id="a", request_id="r", taken_at=T0)
)


def test_a_record_survives_json():
    ended = RECORD.changed(phase=Phase.ENDED, outcome="completed", result={"id": "e"}, generation=3)
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


@pytest.mark.parametrize(
    ("damage", "where"),
    [({"phase": "on the moon"}, "phase"), ({"version": 2}, "version"), ({"submission": {}}, "submission")],
)
def test_what_cannot_be_read_says_where_and_what_to_do(damage, where):
    with pytest.raises(UnreadableRecordError) as refused:
        RunRecord.from_json(RECORD.to_json() | damage)
    words = str(refused.value)
    assert words.startswith(f"The task's record of its run cannot be read ({where}")
    assert words.endswith(
        "so a run may already have been started. Look at the agent's runs; to start a new one, delete the task state "
        "key 'agent_run' of this task instance, or set durable=False."
    )
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("value", [None, "", [], {}, 7])
def test_nothing_else_is_taken_for_no_record(value):
    with pytest.raises(UnreadableRecordError):
        RunRecord.from_json(value)
