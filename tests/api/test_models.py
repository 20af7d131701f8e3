"""The wire models, pinned by the sample payloads of the API's page, word for word."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from airflow_provider_agents.api import calls
from airflow_provider_agents.api.models import Agent, ExecutionEvent

FIXTURES = Path(__file__).parents[1] / "fixtures"


def sample(name):
    return (FIXTURES / name).read_bytes()


def test_the_pages_sample_of_an_execute_is_read():
    accepted = calls.read_answer(calls.execute_agent("agent-123"), 202, {}, sample("execute_202.json")).value
    assert (accepted.requestId, accepted.agentId) == ("abc123", "agent-123")


def test_the_pages_sample_of_a_listing_is_read():
    page = calls.read_answer(calls.list_events(), 200, {}, sample("events_page.json")).value
    (event,) = page.data
    assert page.nextToken is None
    assert (event.id, event.agentId, event.userId) == ("event-456", "agent-123", "user-789")
    assert event.startedAt == datetime(2025, 1, 1, 9, tzinfo=UTC)
    assert event.completedAt == datetime(2025, 1, 1, 9, 1, 30, tzinfo=UTC)
    assert (event.status, event.error, event.finalModel) == ("COMPLETED", None, "claude-3-7-sonnet")
    assert (event.browserStepCount, event.browserSessionSeconds) == (5, 90)


def test_an_event_is_handed_on_word_for_word():
    body = json.loads(sample("events_page.json"))
    body["data"][0]["newField"] = {"kept": [1, None]}
    event = calls.read_answer(calls.list_events(), 200, {}, json.dumps(body).encode()).value.data[0]
    assert event.to_json() == body["data"][0]


def test_an_event_that_was_not_read_from_json_hands_on_what_was_set():
    assert ExecutionEvent(id="e", status="RUNNING").to_json() == {"id": "e", "status": "RUNNING"}


def test_a_status_that_the_page_does_not_know_is_read():
    assert ExecutionEvent.model_validate({"id": "e", "status": "TIMED_OUT"}).status == "TIMED_OUT"


def test_times_are_aware_and_in_utc():
    event = ExecutionEvent.model_validate(
        {"id": "e", "status": "RUNNING", "createdAt": "2026-01-01T10:00:00+02:00", "startedAt": "2026-01-01T09:00:00"}
    )
    assert event.createdAt == datetime(2026, 1, 1, 8, tzinfo=UTC)
    assert event.createdAt.tzinfo == UTC
    assert event.startedAt == datetime(2026, 1, 1, 9, tzinfo=UTC)


@pytest.mark.parametrize("value", [1767225600, True, [], {}, "tomorrow", ""])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ValidationError):
        ExecutionEvent.model_validate({"id": "e", "status": "RUNNING", "createdAt": value})


def test_an_agents_schedule_stays_the_text_that_it_is():
    schedule = '{"tasksPerDay":1,"times":["09:00"]}'
    assert Agent.model_validate({"id": "a", "schedule": schedule}).schedule == schedule
