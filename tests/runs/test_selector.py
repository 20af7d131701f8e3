"""What a sensor may name, and which run of an agent is the first one after a moment."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_agents.api.errors import InvalidArgumentError
from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.payloads import RunEnded
from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.selector import select
from airflow_provider_agents.runs.submission import Submission

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
SUBMISSION = Submission(agent_id="a", request_id="req", taken_at=T0)


def selector(*, agent_id="a", **given):
    return select(agent_id, given)


def at(seconds):
    return T0 + timedelta(seconds=seconds)


# --- what may be named -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "none is given"),
        ({"event_id": "e", "started_after": T0}, "given are event_id, started_after"),
        ({"event_id": "e", "submission": SUBMISSION.to_json()}, "given are submission, event_id"),
    ],
)
def test_a_run_is_named_in_exactly_one_way(given, words):
    with pytest.raises(InvalidArgumentError) as refused:
        selector(**given)
    assert str(refused.value) == f"Name the run by exactly one of submission, event_id and started_after; {words}."


def test_a_submission_brings_its_agent():
    for agent_id in ("a", None):
        found = selector(agent_id=agent_id, submission=SUBMISSION.to_json())
        assert (found.agent_id, found.submission) == ("a", SUBMISSION)
        assert found.known(T0 + timedelta(hours=1)) == SUBMISSION
        assert found.words == "the run of agent a, requestId req"


def test_a_submission_of_another_agent_is_refused():
    with pytest.raises(InvalidArgumentError) as refused:
        selector(agent_id="b", submission=SUBMISSION.to_json())
    assert str(refused.value) == "The submission is one of agent a, not of b. Leave agent_id out."


def test_an_event_is_taken_as_named_and_known_without_a_look():
    found = selector(event_id=" e ")
    assert (found.agent_id, found.event_id) == ("a", "e")
    assert found.words == "the run of agent a, event e"
    known = found.known(T0)
    assert (known.agent_id, known.taken_at, known.event_id) == ("a", T0, "e")


@pytest.mark.parametrize("event_id", ["", "  ", 7, ["e"], "e" * 1025])
def test_what_can_be_no_event_is_refused(event_id):
    with pytest.raises(InvalidArgumentError, match="event_id must be the id of an event as text, got"):
        selector(event_id=event_id)


@pytest.mark.parametrize("agent_id", [None, "", 5])
def test_an_event_without_its_agent_is_refused(agent_id):
    with pytest.raises(InvalidArgumentError):
        selector(agent_id=agent_id, event_id="e")


@pytest.mark.parametrize("moment", [T0, T0.isoformat(), "2026-01-01T10:00:00+01:00", " 2026-01-01T09:00:00Z "])
def test_a_moment_may_be_a_datetime_or_text(moment):
    found = selector(started_after=moment)
    assert found.started_after == T0
    assert found.words == f"the first run of agent a that begins from {found.started_after} on"
    assert found.known(T0) is None


@pytest.mark.parametrize("name", ["started_after", "started_before"])
@pytest.mark.parametrize(
    "moment",
    [
        "yesterday",
        "None",
        "",
        "2026-01-01T09:00:00",
        datetime(2026, 1, 1),  # noqa: DTZ001 - the point
        17,
        "9999-12-31T23:59:59+00:00",
        "0001-01-01T00:00:00+00:00",
    ],
)
def test_what_is_no_moment_with_a_time_zone_is_refused(name, moment):
    with pytest.raises(InvalidArgumentError) as refused:
        selector(**{"started_after": T0, name: moment})
    assert f"{name} must be a moment with a time zone" in str(refused.value)
    assert repr(moment)[:30] in str(refused.value)


def test_an_interval_has_a_start_and_an_end():
    found = selector(started_after=T0, started_before="2026-01-01T11:00:00+01:00")
    assert (found.started_after, found.started_before) == (T0, T0 + timedelta(hours=1))
    assert found.words == f"the first run of agent a that begins from {T0} until before {found.started_before}"


@pytest.mark.parametrize("before", [T0, T0 - timedelta(seconds=1), "2026-01-01T09:30:00+01:00"])
def test_an_interval_without_a_length_is_refused_with_what_to_do_about_it(before):
    with pytest.raises(InvalidArgumentError, match="must be later than started_after.*CronDataIntervalTimetable"):
        selector(started_after=T0, started_before=before)


@pytest.mark.parametrize("given", [{}, {"event_id": "e"}, {"submission": SUBMISSION.to_json()}])
def test_an_end_without_a_start_is_refused(given):
    with pytest.raises(InvalidArgumentError, match="Give started_after, or leave started_before out"):
        selector(started_before=T0, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"submission": None},
        {"event_id": None},
        {"started_after": None},
        {"started_after": T0, "started_before": None},
    ],
)
def test_what_is_rendered_to_nothing_is_refused_rather_than_left_out(given):
    with pytest.raises(InvalidArgumentError, match="was rendered to None. Give the template a default"):
        selector(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"submission": SUBMISSION.to_json()},
        {"event_id": "e"},
        {"started_after": T0},
        {"started_after": T0, "started_before": at(9)},
    ],
)
@pytest.mark.parametrize("outcome", Outcome)
def test_a_selector_has_an_error_for_each_outcome_and_survives_in_a_payload(given, outcome):
    found = selector(**given)
    submission = found.known(T0) or Submission(agent_id="a", taken_at=T0)
    status = {"completed": "COMPLETED", "failed": "FAILED"}.get(outcome)
    events = (ExecutionEvent(id="e", status=status),) if status else ()
    error = found.to_error(Verdict(outcome, events), submission)
    assert (error is None) == (outcome == Outcome.COMPLETED)
    assert error is None or "agent=a" in str(error)
    sent = RunEnded(agents_conn_id="c", submission=submission, selector=found, outcome=outcome)
    assert RunEnded.from_json(json.loads(json.dumps(sent.to_json()))) == sent
