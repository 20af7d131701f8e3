"""The platform as a state on a clock that the caller owns: agents, runs, faults, and the whole API as one function.

It follows the API's page. Each point that the page leaves open is a knob of `World`. A run's state is arithmetic on
the clock, so nothing has to tick: ask at any time and see what is true then. No threads, no waiting, no real time.
"""

from __future__ import annotations

import bisect
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal
from urllib.parse import unquote

Clock = Callable[[], datetime]
#: A number of seconds, or how to draw one for each run or request.
Seconds = float | Callable[[random.Random], float]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ManualClock:
    """A clock that moves when it is told to.

    Args:
        start: its first moment, aware.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.now = start

    def __call__(self) -> datetime:
        """Now."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on by `seconds` (≥ 0)."""
        self.now += timedelta(seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class World:
    """What the API's page leaves open, each point with its friendliest reading as the default. Times are seconds.

    Attributes:
        record_lag: from acceptance until the run's event can be seen.
        created_at: whether `createdAt` is the moment of acceptance or of the record's appearing.
        started_at_while_pending: whether a PENDING event has a `startedAt` already.
        started_filter_keeps_pending: whether `startedAfter` and `startedBefore` let events without `startedAt` through.
        sort_by: the timestamp that "newest first" sorts by.
        nulls: where events without that timestamp stand.
        request_id: whether the event's id is the `requestId`, or a field of it holds it, or nothing does.
        replica_lag: a listing shows what was true this long ago, drawn anew for each request.
        clock_skew: the server's clock minus the caller's.
        gateway_skew: the clock of the `Date` header minus the one of the events.
        date_header: whether there is a `Date` header.
        agent_envelope: whether a single agent comes inside `data`.
        paused_executes: whether a paused agent can be executed; else 409.
        page_rows: a page holds no more rows than this, however many are asked for.
        empty_pages: so many empty pages, each with a token, come before the first row of a listing.
        repeated_token: every page has the same `nextToken`, for ever.
        endless_tokens: every page has a new `nextToken`, for ever.
        error_body: the shape of an error's body.
        extra_event_fields: fields that the page does not know, in every event.
        queue_seconds: how long a run is PENDING.
        run_seconds: how long it is RUNNING.
        end_status: how it ends.
        extra_status: a status between PENDING and RUNNING that the page does not know, for half of the queue's time.
        rate_limit: so many requests in so many seconds; more are answered 429. None for no limit.
        retry_after: how a 429 and a 503 say when to come back.
    """

    record_lag: Seconds = 0.0
    created_at: Literal["accepted", "appeared"] = "accepted"
    started_at_while_pending: bool = False
    started_filter_keeps_pending: bool = False
    sort_by: Literal["createdAt", "startedAt", "updatedAt"] = "createdAt"
    nulls: Literal["first", "last"] = "first"
    request_id: Literal["absent", "id", "field"] = "absent"
    replica_lag: Seconds = 0.0
    clock_skew: float = 0.0
    gateway_skew: float = 0.0
    date_header: bool = True
    agent_envelope: bool = False
    paused_executes: bool = False
    page_rows: int | None = None
    empty_pages: int = 0
    repeated_token: bool = False
    endless_tokens: bool = False
    error_body: Literal["json", "text", "empty"] = "json"
    extra_event_fields: Mapping[str, Any] = field(default_factory=dict)
    queue_seconds: Seconds = 1.0
    run_seconds: Seconds = 5.0
    end_status: str | Callable[[random.Random], str] = "COMPLETED"
    extra_status: str | None = None
    rate_limit: tuple[int, float] | None = None
    retry_after: Literal["seconds", "date", "absent"] = "seconds"


FaultKind = Literal[
    "status",
    "reset_before",
    "reset_after",
    "hang_before",
    "hang_after",
    "html",
    "garbage",
    "truncated",
    "empty",
    "huge",
    "wrong_shape",
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong with requests that match.

    `reset` breaks the connection without an answer and `hang` never answers, each *before* or *after* the server has
    done the work: for an execute, whether a run was started. The other kinds answer after the work, with the right
    status and a spoilt body; `status` answers with `status` instead, before the work unless `worked`.

    Attributes:
        kind: what goes wrong.
        status: the HTTP status of kind `status`.
        worked: whether the server does the work before it answers with `status`.
        method: only requests of this method.
        path: only requests whose path holds this text.
        times: how many requests; None for all from now on.
        skip: let so many matching requests through first.
        headers: added to the answer.
    """

    kind: FaultKind
    status: int = 503
    worked: bool = False
    method: str | None = None
    path: str | None = None
    times: int | None = 1
    skip: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """An answer, or none: `broken` says that the connection breaks or hangs."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    broken: Literal["reset", "hang"] | None = None


@dataclass(frozen=True)
class Execution:
    """An execute that was accepted: the truth about which run belongs to which request."""

    agent_id: str
    request_id: str
    event_id: str
    accepted_at: datetime


@dataclass(frozen=True)
class Request:
    """A request that was received, and the status of its answer (0 if there was none)."""

    method: str
    path: str
    status: int
    at: datetime


@dataclass
class Agent:
    """An agent, and how its runs go."""

    id: str
    name: str
    created_at: datetime
    status: str = "ACTIVE"
    queue_seconds: Seconds | None = None
    run_seconds: Seconds | None = None
    end_status: str | Callable[[random.Random], str] | None = None
    error: str = "the agent could not finish its task"
    schedule_every: float | None = None
    next_scheduled: datetime | None = None


@dataclass(frozen=True)
class Run:
    """One run: every moment of its life, decided when it is accepted. Moments are on the server's clock."""

    event_id: str
    request_id: str
    agent_id: str
    accepted_at: datetime
    visible_at: datetime
    started_at: datetime
    ended_at: datetime
    end_status: str
    error: str
    by: Literal["execute", "schedule"]
    steps: int

    def status_at(self, now: datetime, world: World) -> str:
        """The status at a moment."""
        if now >= self.ended_at:
            return self.end_status
        if now >= self.started_at:
            return "RUNNING"
        if world.extra_status is not None and now >= self.accepted_at + (self.started_at - self.accepted_at) / 2:
            return world.extra_status
        return "PENDING"


def _draw(value: Seconds, rng: random.Random) -> float:
    return value(rng) if callable(value) else value


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _BadRequestError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Simulator:
    """The platform.

    Args:
        clock: the caller's clock, aware UTC. The server's own is `world.clock_skew` away from it.
        world: the open points; may be replaced while it runs.
        api_keys: the keys that are accepted; may be replaced while it runs.
        seed: of everything that is drawn.

    Attributes:
        executions: each execute that started a run, in order.
        requests: each request, in order.
        faults: what is about to go wrong; append to it.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        world: World | None = None,
        api_keys: tuple[str, ...] = ("test-key",),
        seed: int = 0,
    ) -> None:
        self.clock = clock
        self.world = world if world is not None else World()
        self.api_keys = api_keys
        self.executions: list[Execution] = []
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._agents: dict[str, Agent] = {}
        self._runs: dict[str, Run] = {}
        # Sorted by acceptance; the order of a listing is decided per page, near its place.
        self._by_agent: dict[str, list[Run]] = {}
        self._all: list[Run] = []
        self._recent: list[datetime] = []
        self._rng = random.Random(seed)  # noqa: S311 - a simulation
        self._numbers = 0

    # --- what a test or demo does ---

    def now(self) -> datetime:
        """The server's clock."""
        return self.clock() + timedelta(seconds=self.world.clock_skew)

    def add_agent(
        self,
        agent_id: str,
        *,
        name: str | None = None,
        status: str = "ACTIVE",
        queue_seconds: Seconds | None = None,
        run_seconds: Seconds | None = None,
        end_status: str | Callable[[random.Random], str] | None = None,
        error: str = "the agent could not finish its task",
        schedule_every: float | None = None,
        schedule_offset: float = 0.0,
    ) -> None:
        """Add an agent, or replace it. With `schedule_every` seconds, the platform starts runs of it by itself."""
        now = self.now()
        first = None if schedule_every is None else now + timedelta(seconds=schedule_offset)
        self._agents[agent_id] = Agent(
            agent_id,
            name or agent_id,
            now,
            status,
            queue_seconds,
            run_seconds,
            end_status,
            error,
            schedule_every,
            first,
        )
        self._by_agent.setdefault(agent_id, [])

    def remove_agent(self, agent_id: str) -> None:
        """Delete an agent; its runs are forgotten with it."""
        del self._agents[agent_id]

    def start_scheduled_run(self, agent_id: str) -> str:
        """Start a run as the platform's schedule would, now. Returns its event's id."""
        return self._start(self._agents[agent_id], "schedule", self.now()).event_id

    def add_history(
        self,
        agent_id: str,
        count: int,
        *,
        every: float = 3600.0,
        run_seconds: float = 60.0,
        end_status: str = "COMPLETED",
    ) -> None:
        """Add `count` runs that ended in the past, one each `every` seconds, the last one `every` ago."""
        agent, now = self._agents[agent_id], self.now()
        for number in range(count, 0, -1):
            accepted = now - timedelta(seconds=number * every)
            self._start(agent, "schedule", accepted, queue=0.0, run=run_seconds, end_status=end_status, lag=0.0)

    def event_of(self, request_id: str) -> str:
        """The id of the event of the run that a request started."""
        return next(done.event_id for done in reversed(self.executions) if done.request_id == request_id)

    def truth(self, event_id: str) -> Run:
        """A run, whatever a listing shows of it."""
        return self._runs[event_id]

    def final_status(self, event_id: str) -> str:
        """How a run ends, whether it has or not."""
        return self._runs[event_id].end_status

    def runs(self) -> list[tuple[Run, str]]:
        """Every run and its status now, oldest first."""
        self._run_schedules()
        now = self.now()
        return [(run, run.status_at(now, self.world)) for run in self._all]

    def count(self, method: str | None = None, path_prefix: str = "") -> int:
        """How many requests of a method, and of paths that begin so, were received."""
        return sum(
            1 for request in self.requests if method in (None, request.method) and request.path.startswith(path_prefix)
        )

    # --- runs ---

    def _id(self, prefix: str) -> str:
        self._numbers += 1
        return f"{prefix}-{self._numbers:06d}{self._rng.getrandbits(32):08x}"

    def _start(
        self,
        agent: Agent,
        by: Literal["execute", "schedule"],
        accepted_at: datetime,
        *,
        queue: float | None = None,
        run: float | None = None,
        end_status: str | None = None,
        lag: float | None = None,
    ) -> Run:
        world, rng = self.world, self._rng
        if queue is None:
            queue = _draw(world.queue_seconds if agent.queue_seconds is None else agent.queue_seconds, rng)
        if run is None:
            run = _draw(world.run_seconds if agent.run_seconds is None else agent.run_seconds, rng)
        if end_status is None:
            drawn = world.end_status if agent.end_status is None else agent.end_status
            end_status = drawn(rng) if callable(drawn) else drawn
        if lag is None:
            lag = _draw(world.record_lag, rng)
        request_id = self._id("req")
        started_at = accepted_at + timedelta(seconds=queue)
        made = Run(
            event_id=request_id if world.request_id == "id" else self._id("event"),
            request_id=request_id,
            agent_id=agent.id,
            accepted_at=accepted_at,
            visible_at=accepted_at + timedelta(seconds=lag),
            started_at=started_at,
            ended_at=started_at + timedelta(seconds=run),
            end_status=end_status,
            error=agent.error,
            by=by,
            steps=1 + int(run // 2),
        )
        self._runs[made.event_id] = made
        for runs in (self._all, self._by_agent[agent.id]):
            bisect.insort(runs, made, key=lambda r: r.accepted_at)
        return made

    def _run_schedules(self) -> None:
        now = self.now()
        for agent in self._agents.values():
            while agent.next_scheduled is not None and agent.schedule_every and agent.next_scheduled <= now:
                self._start(agent, "schedule", agent.next_scheduled)
                agent.next_scheduled += timedelta(seconds=agent.schedule_every)

    def _event(self, run: Run, now: datetime) -> dict[str, Any]:
        world = self.world
        status = run.status_at(now, world)
        begun = now >= run.started_at
        over = now >= run.ended_at
        created_at = run.accepted_at if world.created_at == "accepted" else run.visible_at
        started_at = run.started_at if begun else (created_at if world.started_at_while_pending else None)
        updated_at = max(created_at, run.ended_at if over else run.started_at if begun else created_at)
        event: dict[str, Any] = {
            "id": run.event_id,
            "agentId": run.agent_id,
            "userId": "user-789",
            "status": status,
            "startedAt": _iso(started_at),
            "completedAt": _iso(run.ended_at) if over else None,
            "error": run.error if over and status != "COMPLETED" else None,
            "finalModel": "claude-3-7-sonnet" if over else None,
            "browserStepCount": run.steps if over else 0,
            "browserSessionSeconds": round((min(now, run.ended_at) - run.started_at).total_seconds()) if begun else 0,
            "createdAt": _iso(created_at),
            "updatedAt": _iso(updated_at),
        }
        if world.request_id == "field" and run.by == "execute":
            event["requestId"] = run.request_id
        event.update(world.extra_event_fields)
        return event

    # --- the API ---

    def handle(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        """Answer one request.

        Args:
            method: GET or POST; others are answered 405.
            path: as it came, percent-encoded.
            query: decoded.
            headers: any spelling of the names.
        """
        self._run_schedules()
        received_at = self.clock()
        fault = self._next_fault(method, path)
        if fault is not None and fault.kind in {"reset_before", "hang_before"}:
            reply = Reply(broken="reset" if fault.kind == "reset_before" else "hang")
        elif fault is not None and fault.kind == "status" and not fault.worked:
            reply = self._error(fault.status, "a fault was asked for", fault.headers)
        else:
            reply = self._answer(method, path, query, {k.lower(): v for k, v in headers.items()})
            if fault is not None:
                reply = self._spoil(reply, fault)
        self.requests.append(Request(method, path, 0 if reply.broken else reply.status, received_at))
        return reply

    def _next_fault(self, method: str, path: str) -> Fault | None:
        for index, fault in enumerate(self.faults):
            if (fault.method or method) != method or (fault.path or "") not in path:
                continue
            if fault.skip:
                self.faults[index] = _changed(fault, skip=fault.skip - 1)
                continue
            if fault.times is not None:
                if fault.times <= 1:
                    del self.faults[index]
                else:
                    self.faults[index] = _changed(fault, times=fault.times - 1)
            return fault
        return None

    def _answer(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        try:
            self._check_rate()
            self._check_key(headers)
            status, body = self._route(method, path, query)
        except _BadRequestError as error:
            return self._error(error.status, str(error))
        return self._json(status, body)

    def _spoil(self, reply: Reply, fault: Fault) -> Reply:
        headers = {**reply.headers, **fault.headers}
        bodies = {
            "html": b"<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>",
            "garbage": bytes(range(256)),
            "truncated": reply.body[: len(reply.body) // 2],
            "empty": b"",
            "huge": b'{"data": [' + b" " * (33 * 1024 * 1024) + b"]}",
            "wrong_shape": b'{"data": "none"}',
        }
        match fault.kind:
            case "reset_after":
                return Reply(broken="reset")
            case "hang_after":
                return Reply(broken="hang")
            case "status":
                return self._error(fault.status, "a fault was asked for", fault.headers)
            case "html":
                headers["Content-Type"] = "text/html"
        return Reply(reply.status, headers, bodies[fault.kind])

    def _headers(self, kind: str) -> dict[str, str]:
        headers = {"Content-Type": kind}
        if self.world.date_header:
            moment = self.now() + timedelta(seconds=self.world.gateway_skew)
            headers["Date"] = format_datetime(moment.astimezone(UTC).replace(microsecond=0), usegmt=True)
        return headers

    def _json(self, status: int, body: object) -> Reply:
        return Reply(status, self._headers("application/json"), json.dumps(body).encode())

    def _error(self, status: int, message: str, more: Mapping[str, str] | None = None) -> Reply:
        headers = self._headers("application/json" if self.world.error_body == "json" else "text/plain")
        if status in {429, 503} and self.world.retry_after != "absent":
            seconds = int(self.world.rate_limit[1]) if self.world.rate_limit else 1
            moment = self.now() + timedelta(seconds=self.world.gateway_skew + seconds)
            headers["Retry-After"] = (
                str(seconds)
                if self.world.retry_after == "seconds"
                else format_datetime(moment.astimezone(UTC).replace(microsecond=0), usegmt=True)
            )
        headers.update(more or {})
        match self.world.error_body:
            case "json":
                return Reply(status, headers, json.dumps({"error": {"message": message}}).encode())
            case "text":
                return Reply(status, headers, message.encode())
            case _:
                return Reply(status, headers)

    def _check_rate(self) -> None:
        if self.world.rate_limit is None:
            return
        requests, seconds = self.world.rate_limit
        now = self.clock()
        self._recent = [at for at in self._recent if now - at < timedelta(seconds=seconds)]
        if len(self._recent) >= requests:
            raise _BadRequestError(429, "too many requests")
        self._recent.append(now)

    def _check_key(self, headers: Mapping[str, str]) -> None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" and bearer else headers.get("x-api-key")
        if given not in self.api_keys:
            raise _BadRequestError(401, "the API key is not valid")

    def _route(self, method: str, path: str, query: Mapping[str, str]) -> tuple[int, object]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        match method, parts:
            case "GET", ["v1", "agents"]:
                return 200, self._list_agents(query)
            case "GET", ["v1", "agents", agent_id]:
                agent = self._agent_json(self._agent(agent_id))
                return 200, {"data": agent} if self.world.agent_envelope else agent
            case "POST", ["v1", "agents", agent_id, "execute"]:
                return 202, self._execute(self._agent(agent_id))
            case "GET", ["v1", "agents", agent_id, "events"]:
                return 200, self._list_events(self._by_agent[self._agent(agent_id).id], query)
            case "GET", ["v1", "events"]:
                wanted = query.get("agentId")
                return 200, self._list_events(self._all if wanted is None else self._by_agent.get(wanted, []), query)
            case _, ["v1", "agents"] | ["v1", "events"] | ["v1", "agents", _] | [
                "v1",
                "agents",
                _,
                "events" | "execute",
            ]:
                raise _BadRequestError(405, f"{method} is not allowed here")
        raise _BadRequestError(404, "no such endpoint")

    def _agent(self, agent_id: str) -> Agent:
        agent = self._agents.get(agent_id)
        if agent is None or agent.status == "DELETED":
            raise _BadRequestError(404, "no such agent")
        return agent

    def _agent_json(self, agent: Agent) -> dict[str, Any]:
        schedule = None if agent.schedule_every is None else json.dumps({"tasksPerDay": 1, "times": ["09:00"]})
        return {
            "id": agent.id,
            "name": agent.name,
            "baseUrl": "https://example.com",
            "status": agent.status,
            "schedule": schedule,
            "createdAt": _iso(agent.created_at),
            "updatedAt": _iso(agent.created_at),
        }

    def _execute(self, agent: Agent) -> dict[str, Any]:
        if agent.status == "PAUSED" and not self.world.paused_executes:
            raise _BadRequestError(409, "the agent is paused")
        run = self._start(agent, "execute", self.now())
        self.executions.append(Execution(agent.id, run.request_id, run.event_id, run.accepted_at))
        return {
            "data": {
                "message": "Execution started. Poll events for status.",
                "requestId": run.request_id,
                "agentId": agent.id,
            }
        }

    def _list_agents(self, query: Mapping[str, str]) -> dict[str, Any]:
        limit = _whole_number(query, "limit", 100)
        agents = [agent for agent in reversed(self._agents.values()) if agent.status != "DELETED"]
        start = _offset(query)
        rows = agents[start : start + limit]
        token = str(start + limit) if start + limit < len(agents) else None
        return {"data": [self._agent_json(agent) for agent in rows], "nextToken": token}

    def _list_events(self, runs: list[Run], query: Mapping[str, str]) -> dict[str, Any]:  # noqa: C901 - one listing
        world = self.world
        limit = _whole_number(query, "limit", 50)
        limit = min(limit, world.page_rows) if world.page_rows is not None else limit
        status = query.get("status")
        if status == "":
            raise _BadRequestError(400, "status is empty")
        after, before = _moment(query, "startedAfter"), _moment(query, "startedBefore")
        token = query.get("nextToken", "")
        if world.endless_tokens:
            return {"data": [], "nextToken": f"{token or 'x'}x"}
        empties, place = _read_token(token)
        if empties < world.empty_pages:
            return {"data": [], "nextToken": _token(empties + 1, place)}

        now = self.now() - timedelta(seconds=_draw(world.replica_lag, self._rng))
        rows: list[tuple[tuple[int, float, str], dict[str, Any]]] = []
        for run in reversed(runs):
            if run.visible_at > now or run.agent_id not in self._agents:
                continue
            if status is not None and run.status_at(now, world) != status:
                continue
            event = self._event(run, now)
            if not _started_between(event, after, before, keep_pending=world.started_filter_keeps_pending):
                continue
            key = self._sort_key(event)
            # A place in the order, not a number of rows: it stays good when newer events arrive.
            if place is not None and key >= place:
                continue
            rows.append((key, event))
            # Runs come newest accepted first. Where that is the order of the listing, the rest need not be looked at.
            if len(rows) > limit and world.sort_by == "createdAt" and world.created_at == "accepted":
                break
        rows.sort(key=lambda row: row[0], reverse=True)
        page = rows[:limit]
        next_token = _token(empties, page[-1][0]) if len(rows) > limit else None
        if world.repeated_token:
            next_token = "again"  # noqa: S105 - a page's token is no secret
        return {"data": [event for _, event in page], "nextToken": next_token}

    def _sort_key(self, event: dict[str, Any]) -> tuple[int, float, str]:
        text = event[self.world.sort_by]
        if text is None:
            return (1 if self.world.nulls == "first" else -1, 0.0, event["id"])
        return (0, (datetime.fromisoformat(text) - _EPOCH).total_seconds(), event["id"])


def _changed(fault: Fault, **fields: Any) -> Fault:
    return Fault(**{**fault.__dict__, **fields})


def _whole_number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 200):  # noqa: PLR2004 - the API's page
        raise _BadRequestError(400, f"{name} must be from 1 to 200")
    return int(text)


def _moment(query: Mapping[str, str], name: str) -> datetime | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _BadRequestError(400, f"{name} is not ISO 8601") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _offset(query: Mapping[str, str]) -> int:
    text = query.get("nextToken", "0")
    if not (text.isascii() and text.isdigit()):
        raise _BadRequestError(400, "nextToken is not valid")
    return int(text)


def _token(empties: int, place: tuple[int, float, str] | None) -> str:
    return json.dumps([empties, place])


def _read_token(token: str) -> tuple[int, tuple[int, float, str] | None]:
    if token in {"", "again"}:
        return 0, None
    try:
        empties, place = json.loads(token)
        return int(empties), None if place is None else (int(place[0]), float(place[1]), str(place[2]))
    except (ValueError, TypeError, IndexError):
        raise _BadRequestError(400, "nextToken is not valid") from None


def _started_between(
    event: dict[str, Any], after: datetime | None, before: datetime | None, *, keep_pending: bool
) -> bool:
    if after is None and before is None:
        return True
    if event["startedAt"] is None:
        return keep_pending
    started = datetime.fromisoformat(event["startedAt"])
    return (after is None or started > after) and (before is None or started < before)
