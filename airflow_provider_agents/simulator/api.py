"""The simulated platform's HTTP API: which response a request gets, apart from faults."""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections import deque
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow_provider_agents.simulator.config import draw
from airflow_provider_agents.simulator.faults import IncomingRequest, Reply
from airflow_provider_agents.simulator.listings import Listing, SortKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_agents.simulator.platform import Simulator
    from airflow_provider_agents.simulator.runs import Agent

_MAX_LIMIT = 200
#: Microseconds from 1970, within the range of a datetime.
_MAX_MICROSECONDS = 2**53


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The API of a simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._recent: deque[datetime] = deque()

    def respond(self, request: IncomingRequest) -> Reply:
        """The response to a request."""
        try:
            self._check_rate()
            self._check_key(request.headers)
            status, body = self._route(request.method, request.path, request.query)
        except _RefusedError as error:
            return self.error(error.status, str(error))
        return Reply(status, self._headers("application/json"), json.dumps(body).encode())

    def error(self, status: int, message: str, more: Mapping[str, str] | None = None) -> Reply:
        """The response to a request that is refused.

        Args:
            status: the HTTP status.
            message: what the body says, if the config's errors have one.
            more: further headers.
        """
        config = self._simulator.config
        headers = self._headers("application/json" if config.error_body == "json" else "text/plain")
        if status in {429, 503} and config.retry_after != "absent":
            seconds = math.ceil(config.rate_limit[1]) if config.rate_limit else 1
            headers["Retry-After"] = str(seconds) if config.retry_after == "seconds" else self._http_date(seconds)
        headers.update(more or {})
        match config.error_body:
            case "json":
                return Reply(status, headers, json.dumps({"error": {"message": message}}).encode())
            case "text":
                return Reply(status, headers, message.encode())
            case _:
                return Reply(status, headers)

    def _headers(self, content_type: str) -> dict[str, str]:
        headers = {"Content-Type": content_type}
        if self._simulator.config.date_header:
            headers["Date"] = self._http_date()
        return headers

    def _http_date(self, seconds_from_now: float = 0.0) -> str:
        moment = self._simulator.now() + timedelta(seconds=self._simulator.config.gateway_skew + seconds_from_now)
        return format_datetime(moment.astimezone(UTC).replace(microsecond=0), usegmt=True)

    def _check_rate(self) -> None:
        if self._simulator.config.rate_limit is None:
            return
        requests, seconds = self._simulator.config.rate_limit
        now = self._simulator.clock()
        while self._recent and now - self._recent[0] >= timedelta(seconds=seconds):
            self._recent.popleft()
        if len(self._recent) >= requests:
            raise _RefusedError(429, "too many requests")
        self._recent.append(now)

    def _check_key(self, headers: Mapping[str, str]) -> None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" and bearer else headers.get("x-api-key")
        if given not in self._simulator.api_keys:
            raise _RefusedError(401, "the API key is not valid")

    def _route(self, method: str, path: str, query: Mapping[str, str]) -> tuple[int, object]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        match method, parts:
            case "GET", ["v1", "agents"]:
                return 200, self._list_agents(query)
            case "GET", ["v1", "agents", agent_id]:
                agent = self._agent(agent_id).to_json()
                return 200, {"data": agent} if self._simulator.config.agent_envelope else agent
            case "POST", ["v1", "agents", agent_id, "execute"]:
                return 202, self._execute(self._agent(agent_id))
            case "GET", ["v1", "agents", agent_id, "events"]:
                return 200, self._list_events(self._agent(agent_id).id, query)
            case "GET", ["v1", "events"]:
                return 200, self._list_events(query.get("agentId"), query)
            case _, ["v1", "agents" | "events"] | ["v1", "agents", _] | ["v1", "agents", _, "events" | "execute"]:
                raise _RefusedError(405, f"{method} is not allowed here")
        raise _RefusedError(404, "no such endpoint")

    def _agent(self, agent_id: str) -> Agent:
        agent = self._simulator.agent(agent_id)
        if agent is None:
            raise _RefusedError(404, "no such agent")
        return agent

    def _execute(self, agent: Agent) -> dict[str, Any]:
        if agent.status == "PAUSED" and not self._simulator.config.paused_executes:
            raise _RefusedError(409, "the agent is paused")
        run = self._simulator.execute(agent)
        message = "Execution started. Poll events for status."
        return {"data": {"message": message, "requestId": run.request_id, "agentId": agent.id}}

    def _list_agents(self, query: Mapping[str, str]) -> dict[str, Any]:
        def rows(limit: int, below: SortKey | None) -> list[tuple[SortKey, Any]]:
            agents = (agent for agent in self._simulator.agents() if below is None or agent.number < below[2])
            return [((0, 0, agent.number), agent.to_json()) for agent in itertools.islice(agents, limit)]

        return self._page(query, 100, rows)

    def _list_events(self, agent_id: str | None, query: Mapping[str, str]) -> dict[str, Any]:
        simulator = self._simulator
        status = query.get("status")
        if status == "":
            raise _RefusedError(400, "status is empty")
        after, before = _moment(query, "startedAfter"), _moment(query, "startedBefore")

        def rows(limit: int, below: SortKey | None) -> list[tuple[SortKey, Any]]:
            now = simulator.now() - timedelta(seconds=draw(simulator.config.replica_lag, simulator.rng))
            listing = Listing(
                config=simulator.config,
                timeline=simulator.timeline(agent_id),
                is_listed=simulator.is_listed,
                now=now,
                status=status,
                after=after,
                before=before,
                below=below,
            )
            return [(key, simulator.row_of(run, now)) for key, run in listing.first(limit)]

        return self._page(query, 50, rows)

    def _page(
        self,
        query: Mapping[str, str],
        default_limit: int,
        rows: Callable[[int, SortKey | None], list[tuple[SortKey, Any]]],
    ) -> dict[str, Any]:
        config = self._simulator.config
        limit = _limit(query, default_limit)
        limit = min(limit, config.page_rows) if config.page_rows is not None else limit
        token = query.get("nextToken", "")
        if config.endless_tokens:
            return {"data": [], "nextToken": f"{token or 'x'}x"}
        empty_pages, below = _read_token(token)
        if empty_pages < config.empty_pages:
            return {"data": [], "nextToken": _token(empty_pages + 1, below)}
        # One more row than the page holds shows whether there is a next page.
        found = rows(limit + 1, below)
        next_token = _token(empty_pages, found[limit - 1][0]) if len(found) > limit else None
        if config.repeated_token:
            next_token = "again"  # noqa: S105 - a page's token is no secret
        return {"data": [row for _, row in found[:limit]], "nextToken": next_token}


def _limit(query: Mapping[str, str], default: int) -> int:
    text = query.get("limit")
    if text is None:
        return default
    # No more digits than int() takes.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _MAX_LIMIT):  # noqa: PLR2004
        raise _RefusedError(400, f"limit must be from 1 to {_MAX_LIMIT}")
    return int(text)


def _moment(query: Mapping[str, str], name: str) -> datetime | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _RefusedError(400, f"{name} is not ISO 8601") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _token(empty_pages: int, below: SortKey | None) -> str:
    return base64.urlsafe_b64encode(json.dumps([empty_pages, *(below or ())]).encode()).decode()


def _read_token(token: str) -> tuple[int, SortKey | None]:
    if token in {"", "again"}:
        return 0, None
    try:
        numbers = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, RecursionError):
        numbers = None
    match numbers:
        case [int(empty_pages)]:
            return empty_pages, None
        case [int(empty_pages), int(rank), int(microseconds), int(number)] if abs(microseconds) < _MAX_MICROSECONDS:
            return empty_pages, (rank, microseconds, number)
    raise _RefusedError(400, "nextToken is not valid")
