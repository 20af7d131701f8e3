"""The wire models, pinned by the sample payloads of the API's page, word for word."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import XCom
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_provider_agents.api import calls
from airflow_provider_agents.api.bodies import storable
from airflow_provider_agents.api.models import Accepted, Agent, ExecutionEvent

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


MOMENTS = st.one_of(st.none(), st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2900, 1, 1)))  # noqa: DTZ001 - as sent
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
#: Of each model that the hook returns: what must be there, and what may be.
SENT = {
    Agent: ({"id": st.just("a")}, {"name": TEXTS, "status": TEXTS, "schedule": TEXTS, "createdAt": MOMENTS}),
    Accepted: ({}, {"requestId": st.just("r"), "agentId": TEXTS, "message": TEXTS}),
    ExecutionEvent: (
        {"id": st.just("e"), "status": st.just("RUNNING")},
        {"error": JSON, "startedAt": MOMENTS, "browserStepCount": st.integers() | st.floats()},
    ),
}


def with_times_as_text(value):
    return {name: one.isoformat() + "Z" if isinstance(one, datetime) else one for name, one in value.items()}


@pytest.mark.parametrize("model", SENT, ids=lambda model: model.__name__)
@given(data=st.data())
def test_what_the_hook_returns_passes_an_xcom_as_json_and_comes_back(model, data):
    required, optional = SENT[model]
    not_documented = TEXTS.filter(lambda name: name not in model.model_fields)
    sent = data.draw(st.dictionaries(not_documented, JSON, max_size=2))
    sent |= with_times_as_text(data.draw(st.fixed_dictionaries(required, optional=optional)))
    plain = model.model_validate(sent).to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain == storable(plain)
    read = XCom.deserialize_value(SimpleNamespace(value=XCom.serialize_value(plain)))
    assert read == plain
    assert model.model_validate(read).to_json() == plain


def test_an_agent_and_an_acceptance_keep_the_apis_names_and_what_is_not_documented():
    agent = {"id": "a", "baseUrl": "https://x", "createdAt": "2026-01-01T09:00:00Z", "newField": [1, None]}
    assert Agent.model_validate(agent).to_json() == agent
    accepted = {"requestId": "r", "agentId": "a", "message": "started"}
    assert Accepted.model_validate(accepted).to_json() == accepted
