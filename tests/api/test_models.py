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

from airflow_provider_agents.api import endpoints, responses
from airflow_provider_agents.api.body import to_storable
from airflow_provider_agents.api.models import Accepted, Agent, ExecutionEvent, Page, read_agent, read_event

FIXTURES = Path(__file__).parents[1] / "fixtures"


def sample(name):
    return (FIXTURES / name).read_bytes()


def test_the_pages_sample_of_an_execute_is_read():
    accepted = responses.read_response(endpoints.execute_agent("agent-123"), 202, {}, sample("execute_202.json")).value
    assert (accepted.requestId, accepted.agentId) == ("abc123", "agent-123")


def test_the_pages_sample_of_a_listing_is_read():
    page = responses.read_response(endpoints.list_events(), 200, {}, sample("events_page.json")).value
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
    event = responses.read_response(endpoints.list_events(), 200, {}, json.dumps(body).encode()).value.data[0]
    assert event.to_json() == body["data"][0]


def test_an_event_that_was_not_read_from_json_hands_on_what_was_set():
    assert ExecutionEvent(id="e", status="RUNNING").to_json() == {"id": "e", "status": "RUNNING"}


def test_a_status_that_the_page_does_not_know_is_read():
    assert ExecutionEvent.read({"id": "e", "status": "TIMED_OUT"}).status == "TIMED_OUT"


def test_times_are_aware_and_in_utc():
    event = ExecutionEvent.read(
        {"id": "e", "status": "RUNNING", "createdAt": "2026-01-01T10:00:00+02:00", "startedAt": "2026-01-01T09:00:00"}
    )
    assert event.createdAt == datetime(2026, 1, 1, 8, tzinfo=UTC)
    assert event.createdAt.tzinfo == UTC
    assert event.startedAt == datetime(2026, 1, 1, 9, tzinfo=UTC)


@pytest.mark.parametrize("value", [1767225600, True, [], {}, "tomorrow", ""])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ValidationError):
        ExecutionEvent.read({"id": "e", "status": "RUNNING", "createdAt": value})


def test_an_agents_schedule_stays_the_text_that_it_is():
    schedule = '{"tasksPerDay":1,"times":["09:00"]}'
    assert Agent.read({"id": "a", "schedule": schedule}).schedule == schedule


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
    plain = model.read(sent).to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain == to_storable(plain)
    read = XCom.deserialize_value(SimpleNamespace(value=XCom.serialize_value(plain)))
    assert read == plain
    assert model.read(read).to_json() == plain


def test_an_agent_and_an_acceptance_keep_the_apis_names_and_what_is_not_documented():
    agent = {"id": "a", "baseUrl": "https://x", "createdAt": "2026-01-01T09:00:00Z", "newField": [1, None]}
    assert Agent.read(agent).to_json() == agent
    accepted = {"requestId": "r", "agentId": "a", "message": "started"}
    assert Accepted.read(accepted).to_json() == accepted


# --- odd values -------------------------------------------------------------------------------------------------------

WHOLE = {
    "id": "e",
    "agentId": "a",
    "userId": "u",
    "status": "COMPLETED",
    "startedAt": "2026-01-01T09:00:00Z",
    "completedAt": "2026-01-01T09:01:00Z",
    "error": None,
    "finalModel": "m",
    "browserStepCount": 1,
    "browserSessionSeconds": 1,
    "createdAt": "2026-01-01T09:00:00Z",
    "updatedAt": "2026-01-01T09:01:00Z",
    "requestId": "r",
}
NEEDED = {"id", "status", "createdAt", "startedAt", "completedAt"}
#: Values that no field of a row has, but `error`.
ODD = [True, [], {}, [1], {"a": 1}]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*WHOLE, "x", "__type"]), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("field", [*sorted(WHOLE.keys() - NEEDED)])
def test_an_odd_value_in_a_field_that_no_verdict_needs_is_absent_and_handed_on(field, odd):
    sent = WHOLE | {field: odd}
    event = read_event(sent)
    assert event.unreadable is None
    assert getattr(event, field) == (odd if field == "error" else None)
    assert event.status == "COMPLETED"
    assert event.to_json() == sent


@pytest.mark.parametrize("odd", [*ODD, 7], ids=repr)
@pytest.mark.parametrize("field", sorted(NEEDED))
def test_an_odd_value_in_a_needed_field_makes_a_row_that_says_why_and_keeps_the_rest(field, odd):
    sent = WHOLE | {field: odd}
    event, whole = read_event(sent), read_event(WHOLE)
    assert str(event.unreadable).startswith(f"{field}: ")
    assert event.lacks_id == (field == "id")
    assert event.status == "RUNNING"
    assert event.to_json() == sent
    kept = WHOLE.keys() - {"status", field}
    assert {name: getattr(event, name) for name in kept} == {name: getattr(whole, name) for name in kept}


@pytest.mark.parametrize("odd", [*ODD, 7], ids=repr)
@pytest.mark.parametrize("field", ["name", "baseUrl", "status", "schedule", "createdAt", "updatedAt"])
def test_an_agent_needs_its_id_alone(field, odd):
    agent = read_agent({"id": "a", field: odd})
    assert (agent.id, agent.unreadable, getattr(agent, field)) == ("a", None, None)
    assert agent.to_json() == {"id": "a", field: odd}
    assert str(read_agent({"id": odd}).unreadable).startswith("id: ")


@given(json_values | st.fixed_dictionaries({}, optional=dict.fromkeys(WHOLE, json_values)))
def test_any_value_is_read_as_a_row_and_is_the_same_once_it_was_handed_on(value):
    for read in (read_event, read_agent):
        row = read(value)
        again = read(json.loads(json.dumps(row.to_json())))
        assert (again.id, again.lacks_id, again.unreadable is None) == (row.id, row.lacks_id, row.unreadable is None)
        assert row.id


def test_a_row_without_an_id_has_the_same_made_up_id_while_its_run_is_under_way():
    queued = {"id": None, "status": "PENDING", "createdAt": "2026-01-01T09:00:00Z"}
    over = queued | {"status": "COMPLETED", "completedAt": "2026-01-01T09:01:00Z"}
    other = queued | {"createdAt": "2026-01-01T09:00:01Z"}
    assert read_event(queued).id == read_event(over).id != read_event(other).id
    assert read_event({"status": "RUNNING"}).id == read_event({"status": "RUNNING"}).id != read_event({}).id


def test_rows_of_a_page_that_are_the_same_and_have_no_id_are_told_apart():
    def ids(*rows):
        return {event.id for event in Page[ExecutionEvent].of({"data": list(rows)}, read_event).data}

    before = ids(None, 7, None, WHOLE)
    assert len(before) == 4
    # The new one stands before the others.
    assert len(ids(None, None, 7, None, WHOLE) - before) == 1
