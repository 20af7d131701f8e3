"""What is asked of the API, endpoint by endpoint."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api import endpoints
from airflow_provider_agents.api.errors import InvalidArgumentError

LISTING = endpoints.list_agent_events("agent-1")


@pytest.mark.parametrize(
    ("agent_id", "path"),
    [
        ("agent-1", "/v1/agents/agent-1/execute"),
        ("a/b", "/v1/agents/a%2Fb/execute"),
        ("a?b#c d", "/v1/agents/a%3Fb%23c%20d/execute"),
        ("50%", "/v1/agents/50%25/execute"),
        ("ä", "/v1/agents/%C3%A4/execute"),
    ],
)
def test_an_agent_id_is_quoted_into_its_place_in_the_path(agent_id, path):
    assert endpoints.execute_agent(agent_id).path == path


@pytest.mark.parametrize("agent_id", ["", "..", "../x", "a/../b", "a\\..\\b", ".", " a", "a ", "a\nb", None, 7, b"a"])
def test_what_cannot_name_an_agent_is_refused_before_anything_is_sent(agent_id):
    with pytest.raises(InvalidArgumentError, match="agent_id"):
        endpoints.execute_agent(agent_id)


@given(st.text(min_size=1))
def test_no_agent_id_reaches_another_endpoint(agent_id):
    try:
        path = endpoints.get_agent(agent_id).path
    except InvalidArgumentError:
        return
    prefix, _, rest = path.rpartition("/")
    assert prefix == "/v1/agents"
    assert not set(rest) & set("/?#\\ ")
    assert rest not in {"", ".", ".."}


def test_only_an_execute_must_not_be_repeated():
    assert not endpoints.execute_agent("a").idempotent
    assert all(
        c.idempotent for c in (endpoints.get_agent("a"), endpoints.list_agents(), LISTING, endpoints.list_events())
    )


def test_filters_become_the_query_that_the_api_documents():
    after = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    call = endpoints.list_events(agent_id="a", status="FAILED", started_after=after, started_before=after, limit=7)
    assert call.params == (
        ("agentId", "a"),
        ("status", "FAILED"),
        ("startedAfter", "2026-01-02T03:04:05.678Z"),
        ("startedBefore", "2026-01-02T03:04:05.678Z"),
        ("limit", "7"),
    )


@pytest.mark.parametrize("limit", [0, -1, 201, 1.5, True, "5", None])
def test_a_limit_that_the_api_refuses_is_refused_first(limit):
    with pytest.raises(InvalidArgumentError, match="limit"):
        endpoints.list_agent_events("a", limit=limit)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(InvalidArgumentError, match="time zone"):
        endpoints.list_events(started_after=datetime(2026, 1, 1))  # noqa: DTZ001 - the point
