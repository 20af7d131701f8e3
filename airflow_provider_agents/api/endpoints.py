"""Each endpoint of the API as an `ApiCall`. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote as percent_encode

from airflow_provider_agents.api.errors import InvalidArgumentError, one_line
from airflow_provider_agents.api.flow import MAX_LIMIT, ApiCall
from airflow_provider_agents.api.models import Accepted, Agent, ExecutionEvent, Page, read_agent, read_event


def check_agent_id(agent_id: object) -> str:
    """Return `agent_id` if it can name an agent.

    Raises:
        InvalidArgumentError: it is not text, is empty, is longer than 1,024 characters, holds control characters or
            surrounding white space, or would change the path (`..`).
    """
    if not isinstance(agent_id, str):
        raise InvalidArgumentError(f"agent_id must be text, got {type(agent_id).__name__}. Pass the agent's id.")
    if not agent_id:
        raise InvalidArgumentError("agent_id must not be empty. Pass the agent's id; `airflow agents list` shows it.")
    if agent_id != agent_id.strip() or not agent_id.isprintable() or len(agent_id) > 1024:  # noqa: PLR2004 - docstring
        raise InvalidArgumentError(
            "agent_id must be at most 1,024 characters, without blanks around them and control characters, got "
            f"{one_line(repr(agent_id), 60)}. Pass the agent's id as `airflow agents list` shows it."
        )
    # Percent-encoding does not protect the path: some gateways decode slashes before they resolve dot segments.
    if any(part in {".", ".."} for part in agent_id.replace("\\", "/").split("/")):
        raise InvalidArgumentError(
            f"agent_id must be the id of an agent and not a path, got {one_line(repr(agent_id), 60)}."
        )
    return agent_id


def _agent_path(agent_id: object) -> str:
    return f"/v1/agents/{percent_encode(check_agent_id(agent_id), safe='')}"


def _timestamp(name: str, value: datetime | None) -> list[tuple[str, str]]:
    if value is None:
        return []
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidArgumentError(f"{name} must be a datetime with a time zone, got {value!r}.")
    return [(name, value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"))]


def _text(name: str, value: str | None) -> list[tuple[str, str]]:
    if value is None:
        return []
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"{name} must be text that is not empty, got {value!r}.")
    return [(name, value)]


def _limit(limit: int) -> list[tuple[str, str]]:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise InvalidArgumentError(f"limit must be a whole number from 1 to {MAX_LIMIT}, got {limit!r}.")
    return [("limit", str(limit))]


def _filters(
    status: str | None, started_after: datetime | None, started_before: datetime | None, limit: int
) -> tuple[tuple[str, str], ...]:
    after, before = _timestamp("startedAfter", started_after), _timestamp("startedBefore", started_before)
    return (*_text("status", status), *after, *before, *_limit(limit))


def _read_agents(value: Any) -> Page[Agent]:
    return Page[Agent].of(value, read_agent)


def _read_events(value: Any) -> Page[ExecutionEvent]:
    return Page[ExecutionEvent].of(value, read_event)


def list_agents(*, limit: int = MAX_LIMIT) -> ApiCall[Page[Agent]]:
    """`GET /v1/agents`: the account's agents, newest first."""
    return ApiCall("GET", "/v1/agents", _read_agents, "listing the agents", tuple(_limit(limit)))


def get_agent(agent_id: str) -> ApiCall[Agent]:
    """`GET /v1/agents/{agentId}`: one agent, bare or inside `data` (the page does not say which)."""

    def read(value: Any) -> Agent:
        wrapped = isinstance(value, dict) and "id" not in value and "data" in value
        return Agent.read(value["data"] if wrapped else value)

    return ApiCall("GET", _agent_path(agent_id), read, f"reading agent {agent_id}")


def execute_agent(agent_id: str) -> ApiCall[Accepted]:
    """`POST /v1/agents/{agentId}/execute`: start a run. It costs money and cannot be taken back."""
    return ApiCall(
        "POST",
        f"{_agent_path(agent_id)}/execute",
        lambda value: Accepted.read(value["data"]),
        f"executing agent {agent_id}",
        idempotent=False,
    )


def list_agent_events(
    agent_id: str,
    *,
    status: str | None = None,
    started_after: datetime | None = None,
    started_before: datetime | None = None,
    limit: int = MAX_LIMIT,
) -> ApiCall[Page[ExecutionEvent]]:
    """`GET /v1/agents/{agentId}/events`: an agent's runs, newest first."""
    params = _filters(status, started_after, started_before, limit)
    label = f"listing the events of agent {agent_id}"
    return ApiCall("GET", f"{_agent_path(agent_id)}/events", _read_events, label, params)


def list_events(
    *,
    agent_id: str | None = None,
    status: str | None = None,
    started_after: datetime | None = None,
    started_before: datetime | None = None,
    limit: int = MAX_LIMIT,
) -> ApiCall[Page[ExecutionEvent]]:
    """`GET /v1/events`: the account's runs, newest first."""
    of_agent = _text("agentId", check_agent_id(agent_id)) if agent_id is not None else []
    params = (*of_agent, *_filters(status, started_after, started_before, limit))
    return ApiCall("GET", "/v1/events", _read_events, "listing the account's events", params)
