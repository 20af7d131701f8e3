"""Everything that one process writes as JSON and another one reads: one base, one error, one wording."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from airflow_provider_agents.payloads import AgentIdle, RunEnded
from airflow_provider_agents.runs.completions import Checkpoint
from airflow_provider_agents.runs.copies import RecordCopy, TaskPlace
from airflow_provider_agents.runs.record import Attempt, Phase, RunRecord
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.versioned_json import UnusableDataError
from airflow_provider_agents.watchers import FinishedRuns

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
SUBMISSION = Submission(agent_id="a", request_id="r", taken_at=T0)
RECORD = RunRecord(
    phase=Phase.ACCEPTED,
    agents_conn_id="c",
    submission=SUBMISSION,
    attempt=Attempt(try_number=1, max_tries=2),
)
#: One of each kind, the field that is missing first in an empty one, and what to do.
FAMILY = [
    (SUBMISSION, "agent_id", "Pass what ExecuteAgentOperator(wait_for_completion=False) returned, unchanged."),
    (RECORD, "phase", "delete the task state key 'agent_run' of this task instance, or set durable=False."),
    (
        RecordCopy(place=TaskPlace(dag_id="d", run_id="r", task_id="t"), record=RECORD, written_at=T0, until=T0),
        "place",
        "",
    ),
    (Checkpoint(watermark=T0, emitted=("e",)), "watermark", ""),
    (
        RunEnded(agents_conn_id="c", submission=SUBMISSION, outcome="timed_out"),
        "agents_conn_id",
        "Workers and triggerers must run the same version.",
    ),
    (AgentIdle(agents_conn_id="c", agent_id="a", deadline_at=T0), "agents_conn_id", "The run is left as it is."),
    (FinishedRuns(runs=({"id": "e"},)), "runs", "Workers and triggerers must run the same version."),
]
each_kind = pytest.mark.parametrize(
    ("sample", "first_field", "what_to_do"), FAMILY, ids=[type(sample).__name__ for sample, *_ in FAMILY]
)


@each_kind
def test_what_is_written_is_read_again(sample, first_field, what_to_do):
    assert type(sample).from_json(json.loads(json.dumps(sample.to_json()))) == sample
    assert type(sample).from_text(json.dumps(sample.to_json())) == sample


@each_kind
@pytest.mark.parametrize("value", [None, 7, "x", "", [], {}, {"secret": 1}])
def test_anything_else_is_refused_with_where_and_what_to_do(sample, first_field, what_to_do, value):
    with pytest.raises(UnusableDataError) as refused:
        type(sample).from_json(value)
    words = str(refused.value)
    where = first_field if isinstance(value, dict) else "the whole"
    assert f"cannot be read by this version of the provider ({where}: " in words
    assert what_to_do in words
    assert "secret" not in words
    assert not refused.value.is_retryable
    assert refused.value.__cause__ is None


@each_kind
def test_another_version_is_refused(sample, first_field, what_to_do):
    with pytest.raises(UnusableDataError, match=r"\(version: "):
        type(sample).from_json({**sample.to_json(), "version": 2})


@each_kind
def test_a_field_that_a_newer_version_has_added_is_ignored(sample, first_field, what_to_do):
    assert type(sample).from_json({**sample.to_json(), "of_tomorrow": 1}) == sample


@each_kind
@pytest.mark.parametrize("text", ["", "\x00", '"a text"', "{"])
def test_text_that_is_something_else_is_refused(sample, first_field, what_to_do, text):
    with pytest.raises(UnusableDataError):
        type(sample).from_text(text)


@pytest.mark.parametrize("value", [{"agent_id": " "}, {"agent_id": "a", "taken_at": "2026-01-01T00:00"}])
def test_a_submission_needs_an_agent_and_moments_with_a_time_zone(value):
    with pytest.raises(UnusableDataError):
        Submission.from_json({**SUBMISSION.to_json(), **value})


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z", "2999-12-31T23:59:59-12:00"])
def test_a_moment_that_cannot_be_reckoned_with_is_refused(moment):
    for sample, name in ((SUBMISSION, "server_before"), (Checkpoint(watermark=T0), "watermark")):
        with pytest.raises(UnusableDataError, match=name):
            type(sample).from_json({**sample.to_json(), name: moment})


@pytest.mark.parametrize("seconds", [1e308, float("inf"), float("nan"), -1.0])
def test_a_length_of_time_that_cannot_be_reckoned_with_is_refused(seconds):
    copy = RecordCopy(place=TaskPlace(dag_id="d", run_id="r", task_id="t"), record=RECORD, written_at=T0, until=T0)
    idle = AgentIdle(agents_conn_id="c", agent_id="a", deadline_at=T0)
    for sample, name in ((copy, "settle"), (idle, "hold_seconds")):
        with pytest.raises(UnusableDataError, match=name):
            type(sample).from_json({**sample.to_json(), name: seconds})


def test_an_id_that_would_break_its_log_line_is_refused():
    with pytest.raises(UnusableDataError, match="request_id"):
        Submission.from_json({**SUBMISSION.to_json(), "request_id": "r\nerror: forged"})
    with pytest.raises(UnusableDataError, match="open_runs"):
        Checkpoint.from_json({"watermark": T0.isoformat(), "open_runs": {"e\0": {}}})
