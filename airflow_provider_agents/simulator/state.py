"""The platform as a state on a clock that the caller owns: agents, runs, faults, and the whole API as one function.

It follows the API's page. Each point that the page leaves open is a knob of `World`. A run's state is arithmetic on
the clock, so nothing has to tick: ask at any time and see what is true then. No threads, no waiting, no real time.
"""

from __future__ import annotations

import base64
import bisect
import heapq
import itertools
import json
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import unquote

from airflow_provider_agents.simulator.checks import (
    MOST_SECONDS,
    check,
    check_seconds,
    check_status,
    is_seconds,
    is_whole,
)
from airflow_provider_agents.simulator.faults import Fault, IncomingRequest, Interceptor, Reply

Clock = Callable[[], datetime]
#: A number of seconds, or how to draw one for each run or request.
Seconds = float | Callable[[random.Random], float]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MOST_ROWS = 200
#: Microseconds from 1970, within the range of a datetime.
_FARTHEST = 2**53


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
        """Move on by `seconds`.

        Raises:
            ValueError: they are negative.
        """
        if seconds < 0:
            raise ValueError("time only moves on")
        self.now += timedelta(seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class World:
    """What the API's page leaves open, each point with its friendliest reading as the default. Times are seconds.

    Attributes:
        record_lag: from acceptance until the run's event can be seen.
        created_at: whether `createdAt` is the moment of acceptance or of the record's appearing.
        started_at_while_pending: whether `startedAt` is the moment of acceptance, so that a PENDING event has one.
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
        page_rows: a page holds no more rows than this, however many are asked for, of events or of agents.
        empty_pages: so many empty pages, each with a token, come before the first row of a listing.
        repeated_token: every page has the same `nextToken`, for ever.
        endless_tokens: every page has a new `nextToken`, for ever.
        error_body: the shape of an error's body.
        extra_event_fields: fields that the page does not know, in every event.
        queue_seconds: how long a run is PENDING.
        run_seconds: how long it is RUNNING.
        end_status: how it ends.
        extra_status: a status between PENDING and RUNNING that the page does not know, for half of the queue's time.
        retention_seconds: for how long after its end an event is listed. None for ever.
        rate_limit: so many requests in so many seconds; more are answered 429. None for no limit.
        retry_after: how a 429 and a 503 say when to come back.

    Raises:
        ValueError: a knob has no such value; the message names it.
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
    retention_seconds: float | None = None
    rate_limit: tuple[int, float] | None = None
    retry_after: Literal["seconds", "date", "absent"] = "seconds"

    def __post_init__(self) -> None:
        for name in ("record_lag", "replica_lag", "queue_seconds", "run_seconds"):
            check_seconds(getattr(self, name), name)
        for name in ("clock_skew", "gateway_skew"):
            check(is_seconds(getattr(self, name), -MOST_SECONDS), name, "a number of seconds")
        for name, choices in _CHOICES.items():
            check(getattr(self, name) in choices, name, f"one of {', '.join(choices)}")
        for name in _SWITCHES:
            check(isinstance(getattr(self, name), bool), name, "true or false")
        check(self.page_rows is None or is_whole(self.page_rows, 1), "page_rows", "a number of rows, 1 or more")
        check(is_whole(self.empty_pages, 0), "empty_pages", "a number of pages, 0 or more")
        fields: object = self.extra_event_fields
        check(isinstance(fields, Mapping), "extra_event_fields", "a mapping")
        check_status(self.end_status, "end_status")
        extra: object = self.extra_status
        check(extra is None or (isinstance(extra, str) and extra != ""), "extra_status", "a status")
        kept = self.retention_seconds
        check(kept is None or is_seconds(kept), "retention_seconds", "a number of seconds, 0 or more")
        limit: object = self.rate_limit
        if limit is not None:
            match limit:
                case [requests, seconds]:
                    ok = is_whole(requests, 0) and is_seconds(seconds) and seconds != 0
                case _:
                    ok = False
            check(ok, "rate_limit", "a pair: requests (0 or more), seconds (above 0)")


_HINTS = get_type_hints(World)
_CHOICES = {name: get_args(hint) for name, hint in _HINTS.items() if get_origin(hint) is Literal}
_SWITCHES = [name for name, hint in _HINTS.items() if hint is bool]


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


_ERROR = "the agent could not finish its task"


@dataclass
class Agent:
    """An agent, and how its runs go."""

    id: str
    number: int
    name: str
    created_at: datetime
    status: str = "ACTIVE"
    queue_seconds: Seconds | None = None
    run_seconds: Seconds | None = None
    end_status: str | Callable[[random.Random], str] | None = None
    error: str = _ERROR
    schedule_every: float | None = None
    next_scheduled: datetime | None = None


@dataclass(frozen=True)
class Run:
    """One run: every moment of its life, decided when it is accepted. Moments are on the server's clock.

    `number` counts runs in the order in which they were made: of two runs accepted at one moment the higher is newer.
    `by` says what started it; `row` is no run, but a row that `Simulator.add_row` has put into the listings.
    """

    number: int
    event_id: str
    request_id: str
    agent_id: str
    accepted_at: datetime
    visible_at: datetime
    started_at: datetime
    ended_at: datetime
    end_status: str
    error: str
    by: Literal["execute", "schedule", "row"]
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


#: Where an event stands in a listing: whether its time is null, its time in microseconds, its run's number.
_Place = tuple[int, int, int]


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


class _Timeline:
    """Runs in the order of their acceptance.

    No event's time is before its run's acceptance, nor more than `span` after it. So an order or a filter by any of
    these times needs only the runs near it, however long the timeline is.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.span = timedelta()
        self.end_statuses: set[str] = set()

    def add(self, run: Run) -> None:
        bisect.insort(self.runs, run, key=lambda other: (other.accepted_at, other.number))
        self.span = max(self.span, run.visible_at - run.accepted_at, run.ended_at - run.accepted_at)
        self.end_statuses.add(run.end_status)

    def newest_first(self, until: datetime | None) -> Iterator[Run]:
        """Runs that were accepted at or before `until`, or all."""
        last = len(self.runs)
        if until is not None:
            last = bisect.bisect_right(self.runs, until, key=lambda run: run.accepted_at)
        return map(self.runs.__getitem__, range(last - 1, -1, -1))


def _draw(value: Seconds, rng: random.Random) -> float:
    return value(rng) if callable(value) else value


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class _RowChange:
    """What a row is in place of the honest one."""

    row: object
    without: tuple[str, ...]

    def of(self, honest: Any) -> Any:
        fields = honest if isinstance(honest, Mapping) else {}
        if callable(self.row):
            changed = self.row(dict(fields))
        elif isinstance(self.row, Mapping):
            changed = {**fields, **self.row}
        else:
            changed = self.row
        if isinstance(changed, Mapping):
            return {name: value for name, value in changed.items() if name not in self.without}
        return changed


def _names(without: Iterable[str]) -> tuple[str, ...]:
    names = () if isinstance(without, str) else tuple(without)
    ok = not isinstance(without, str) and all(isinstance(name, str) for name in names)
    check(ok, "without", "a list of fields' names")
    return names


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
        faults: what is about to go wrong; append to it, or use `add_fault`.
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
        self._interceptors: list[Interceptor] = []
        #: By event; None is for every event.
        self._row_changes: dict[str | None, _RowChange] = {}
        self._hidden: set[str] = set()
        self._event_ids: dict[str, str] = {}
        self._agents: dict[str, Agent] = {}
        self._runs: dict[str, Run] = {}
        self._by_agent: dict[str, _Timeline] = {}
        self._all = _Timeline()
        self._next_due: datetime | None = None
        self._recent: deque[datetime] = deque()
        self._agent_count = 0
        self._rng = random.Random(seed)  # noqa: S311 - a simulation
        self._numbers = 0
        self._run_numbers = itertools.count()

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
        error: str | None = None,
        schedule_every: float | None = None,
        schedule_offset: float = 0.0,
    ) -> None:
        """Add an agent, or replace it, which leaves its runs as they are.

        Args:
            agent_id: not empty.
            name: the id if None.
            status: `ACTIVE`, `PAUSED` or `DELETED`.
            queue_seconds: how long its runs are PENDING; the world's if None.
            run_seconds: how long its runs are RUNNING; the world's if None.
            end_status: how its runs end; the world's if None.
            error: the `error` of its runs that do not end COMPLETED.
            schedule_every: the platform starts a run by itself once in so many seconds (above 0); None for never.
            schedule_offset: seconds from now to the first of those.

        Raises:
            ValueError: an argument has no such value; the message names it.
        """
        for label, text in (("agent_id", agent_id), ("name", name or agent_id), ("status", status)):
            check(isinstance(text, str) and text != "", label, "a text that is not empty")
        check(error is None or isinstance(error, str), "error", "a text")
        for label, seconds in (("queue_seconds", queue_seconds), ("run_seconds", run_seconds)):
            if seconds is not None:
                check_seconds(seconds, label)
        if end_status is not None:
            check_status(end_status, "end_status")
        ok = schedule_every is None or (is_seconds(schedule_every) and schedule_every > 0)
        check(ok, "schedule_every", "a number of seconds, above 0")
        check(is_seconds(schedule_offset), "schedule_offset", "a number of seconds, 0 or more")
        # What the agent that is replaced has started by now is still its own.
        self._run_schedules()
        now = self.now()
        first = None if schedule_every is None else now + timedelta(seconds=schedule_offset)
        known = self._agents.get(agent_id)
        self._agent_count += known is None
        self._agents[agent_id] = Agent(
            agent_id,
            self._agent_count if known is None else known.number,
            name or agent_id,
            now,
            status,
            queue_seconds,
            run_seconds,
            end_status,
            _ERROR if error is None else error,
            schedule_every,
            first,
        )
        self._by_agent.setdefault(agent_id, _Timeline())
        if first is not None:
            self._next_due = first if self._next_due is None else min(self._next_due, first)

    def remove_agent(self, agent_id: str, *, keep_events: bool = False) -> None:
        """Delete an agent: it is answered 404, and so are its own listing and its execute. Its runs stay true.

        Args:
            agent_id: its id.
            keep_events: whether the account's listing still shows its events.

        Raises:
            KeyError: there is no such agent.
        """
        self._run_schedules()
        if keep_events:
            agent = self._agents[agent_id]
            agent.status, agent.schedule_every, agent.next_scheduled = "DELETED", None, None
        else:
            del self._agents[agent_id]

    def start_scheduled_run(self, agent_id: str, *, after: float = 0.0) -> str:
        """Start a run as the platform's schedule would, now or so many seconds from now. Returns its event's id.

        Raises:
            KeyError: there is no such agent.
            ValueError: `after` is no number of seconds, 0 or more.
        """
        check(is_seconds(after), "after", "a number of seconds, 0 or more")
        return self._start(self._agents[agent_id], "schedule", self.now() + timedelta(seconds=after)).event_id

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
        """The id of the event of the run that a request started.

        Raises:
            KeyError: no request of this id was accepted.
        """
        return self._event_ids[request_id]

    def truth(self, event_id: str) -> Run:
        """A run, whatever a listing shows of it."""
        return self._runs[event_id]

    def final_status(self, event_id: str) -> str:
        """How a run ends, whether it has or not."""
        return self._runs[event_id].end_status

    def row(self, event_id: str) -> Any:
        """What a listing shows of an event now: the honest row, or what it was changed to.

        Raises:
            KeyError: there is no such event.
        """
        return self._row(self.truth(event_id), self.now())

    def runs(self) -> list[tuple[Run, str]]:
        """Every run that was started by now and its status, oldest first."""
        self._run_schedules()
        now = self.now()
        runs = (run for run in self._all.newest_first(now) if run.by != "row")
        return [(run, run.status_at(now, self.world)) for run in runs][::-1]

    def count(self, method: str | None = None, path_prefix: str | None = None) -> int:
        """How many requests of a method, and of paths that begin so, were received."""
        return sum(
            1
            for request in self.requests
            if method in (None, request.method) and request.path.startswith(path_prefix or "")
        )

    def forget(self, ended_before: datetime) -> None:
        """Drop the runs that ended before a moment, as if they had never been, and the record of all requests.

        A simulation of months needs it: nothing else here ever goes away.
        """
        gone = {event_id for event_id, run in self._runs.items() if run.ended_at < ended_before}
        self._runs = {event_id: run for event_id, run in self._runs.items() if event_id not in gone}
        self._event_ids = {name: event_id for name, event_id in self._event_ids.items() if event_id not in gone}
        self.executions[:] = [done for done in self.executions if done.event_id not in gone]
        self.requests.clear()
        for timeline in (self._all, *self._by_agent.values()):
            timeline.runs[:] = [run for run in timeline.runs if run.event_id not in gone]
        for event_id in gone:
            self.restore(event_id)

    # --- what goes wrong ---

    def add_fault(self, fault: Fault, *, after: float = 0.0, seconds: float | None = None) -> None:
        """Add a fault, for a window of time if wanted.

        Args:
            fault: with `times=None` all requests in the window match, by default only the first.
            after: seconds from now until it begins.
            seconds: how long it lasts; None for as long as its `times` last.

        Raises:
            ValueError: an argument has no such value; the message names it.
        """
        check(is_seconds(after), "after", "a number of seconds, 0 or more")
        check(seconds is None or is_seconds(seconds), "seconds", "a number of seconds, 0 or more")
        begins_at = self.clock() + timedelta(seconds=after)
        if after:
            fault = replace(fault, not_before=begins_at)
        if seconds is not None:
            fault = replace(fault, not_after=begins_at + timedelta(seconds=seconds))
        self.faults.append(fault)

    def intercept(self, interceptor: Interceptor) -> Callable[[], None]:
        """Let a function stand before the platform and its faults. The last one that was added gets a request first.

        Returns:
            A function that takes it away again; it may be called more than once.
        """
        self._interceptors.append(interceptor)

        def remove() -> None:
            if interceptor in self._interceptors:
                self._interceptors.remove(interceptor)

        return remove

    def corrupt(self, event_id: str | None, row: object, *, without: Iterable[str] = ()) -> None:
        """Change the row of an event in every listing. What is true of the run stays, and so do order and filters.

        A second change of the same row replaces the first.

        Args:
            event_id: None for every row; the change of a single row comes after that.
            row: a mapping replaces these fields; a function gets the row as a dictionary and returns another one; any
                other value that JSON has stands in the row's place.
            without: fields that the row does not have.

        Raises:
            KeyError: there is no such event.
            TypeError: JSON has no such value.
        """
        if event_id is not None:
            self.truth(event_id)
        change = _RowChange(row, _names(without))
        if not callable(row):
            json.dumps(row)
        self._row_changes[event_id] = change

    def add_row(self, agent_id: str, row: object, *, without: Iterable[str] = (), age: float = 0.0) -> str:
        """Add a row without a run to the listings of an agent and of the account: a COMPLETED event, changed as wanted.

        Args:
            agent_id: an agent that there is.
            row: as in `corrupt`; `{}` for a row like any other.
            without: as in `corrupt`.
            age: for so many seconds it has been there and COMPLETED.

        Returns:
            The id of its event, for `corrupt`, `hide` and `restore`.

        Raises:
            KeyError: there is no such agent.
            TypeError: JSON has no such value.
            ValueError: `age` is no number of seconds, 0 or more.
        """
        check(is_seconds(age), "age", "a number of seconds, 0 or more")
        if not callable(row):
            json.dumps(row)
        names = _names(without)
        accepted_at = self.now() - timedelta(seconds=age)
        made = self._start(
            self._agents[agent_id], "row", accepted_at, queue=0.0, run=0.0, end_status="COMPLETED", lag=0.0
        )
        self._row_changes[made.event_id] = _RowChange(row, names)
        return made.event_id

    def hide(self, event_id: str) -> None:
        """Show an event in no listing any more. Its run stays true.

        Raises:
            KeyError: there is no such event.
        """
        self._hidden.add(self.truth(event_id).event_id)

    def restore(self, event_id: str | None) -> None:
        """Undo `corrupt` and `hide` of an event, or `corrupt` of every event if None."""
        self._row_changes.pop(event_id, None)
        if event_id is not None:
            self._hidden.discard(event_id)

    # --- runs ---

    def _id(self, prefix: str) -> str:
        self._numbers += 1
        return f"{prefix}-{self._numbers:06d}{self._rng.getrandbits(32):08x}"

    def _start(
        self,
        agent: Agent,
        by: Literal["execute", "schedule", "row"],
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
            number=next(self._run_numbers),
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
        for timeline in (self._all, self._by_agent[agent.id]):
            timeline.add(made)
        return made

    def _run_schedules(self) -> None:
        now = self.now()
        if self._next_due is None or self._next_due > now:
            return
        for agent in self._agents.values():
            while agent.next_scheduled is not None and agent.schedule_every and agent.next_scheduled <= now:
                self._start(agent, "schedule", agent.next_scheduled)
                agent.next_scheduled += timedelta(seconds=agent.schedule_every)
        due = (agent.next_scheduled for agent in self._agents.values())
        self._next_due = min((moment for moment in due if moment is not None), default=None)

    def _time_of(self, run: Run, now: datetime, name: str) -> datetime | None:
        if name == "startedAt":
            if self.world.started_at_while_pending:
                return run.accepted_at
            return run.started_at if now >= run.started_at else None
        created_at = run.accepted_at if self.world.created_at == "accepted" else run.visible_at
        if name == "createdAt" or now < run.started_at:
            return created_at
        return max(created_at, run.ended_at if now >= run.ended_at else run.started_at)

    def _event(self, run: Run, now: datetime) -> dict[str, Any]:
        world = self.world
        status = run.status_at(now, world)
        begun = now >= run.started_at
        over = now >= run.ended_at
        event: dict[str, Any] = {
            "id": run.event_id,
            "agentId": run.agent_id,
            "userId": "user-789",
            "status": status,
            "startedAt": _iso(self._time_of(run, now, "startedAt")),
            "completedAt": _iso(run.ended_at) if over else None,
            "error": run.error if over and status != "COMPLETED" else None,
            "finalModel": "claude-3-7-sonnet" if over else None,
            "browserStepCount": run.steps if over else 0,
            "browserSessionSeconds": round((min(now, run.ended_at) - run.started_at).total_seconds()) if begun else 0,
            "createdAt": _iso(self._time_of(run, now, "createdAt")),
            "updatedAt": _iso(self._time_of(run, now, "updatedAt")),
        }
        if world.request_id == "field" and run.by == "execute":
            event["requestId"] = run.request_id
        event.update(world.extra_event_fields)
        return event

    def _row(self, run: Run, now: datetime) -> Any:
        row: Any = self._event(run, now)
        for name in (None, run.event_id):
            change = self._row_changes.get(name)
            if change is not None:
                row = change.of(row)
        return row

    def _is_listed(self, run: Run) -> bool:
        return run.agent_id in self._agents and run.event_id not in self._hidden

    # --- the API ---

    def handle(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        """Answer one request.

        Args:
            method: GET or POST; others are answered 405.
            path: as it came, percent-encoded.
            query: decoded.
            headers: any spelling of the names.
        """
        request = IncomingRequest(method, path, query, {name.lower(): value for name, value in headers.items()})
        received_at = self.clock()
        answer: Callable[[], Reply] = partial(self._answer_or_fail, request)
        for interceptor in self._interceptors:
            answer = partial(interceptor, request, answer)
        reply = answer()
        self.requests.append(Request(method, path, 0 if reply.broken else reply.status, received_at))
        return reply

    def _answer_or_fail(self, request: IncomingRequest) -> Reply:
        self._run_schedules()
        fault = self._next_fault(request)
        match fault:
            case None:
                return self._answer(request)
            case Fault(kind="reset_before"):
                return Reply(broken="reset")
            case Fault(kind="hang_before"):
                return Reply(broken="hang")
            case Fault(kind="status", worked=False):
                return self._refusal(fault)
        return self._spoil(self._answer(request), fault)

    def _next_fault(self, request: IncomingRequest) -> Fault | None:
        now = self.clock()
        self.faults[:] = [fault for fault in self.faults if not fault.is_over(now)]
        for index, fault in enumerate(self.faults):
            if not fault.matches(request, now):
                continue
            if fault.skip:
                self.faults[index] = replace(fault, skip=fault.skip - 1)
                continue
            if fault.times is not None:
                if fault.times <= 1:
                    del self.faults[index]
                else:
                    self.faults[index] = replace(fault, times=fault.times - 1)
            return fault
        return None

    def _answer(self, request: IncomingRequest) -> Reply:
        try:
            self._check_rate()
            self._check_key(request.headers)
            status, body = self._route(request.method, request.path, request.query)
        except _BadRequestError as error:
            return self.error(error.status, str(error))
        return self._json(status, body)

    def _refusal(self, fault: Fault) -> Reply:
        reply = self.error(fault.status, "a fault was asked for", fault.headers)
        return reply if fault.body is None else replace(reply, body=fault.body.encode())

    def _spoil(self, reply: Reply, fault: Fault) -> Reply:
        headers = {**reply.headers, **fault.headers}
        bodies = {
            "html": b"<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>",
            "garbage": bytes(range(256)),
            "truncated": reply.body[: len(reply.body) // 2],
            "empty": b"",
            "wrong_shape": b'{"data": "none"}',
        }
        match fault.kind:
            case "reset_after":
                return Reply(broken="reset")
            case "hang_after":
                return Reply(broken="hang")
            case "status":
                return self._refusal(fault)
            case "html":
                headers["Content-Type"] = "text/html"
            case "huge":
                # Made only where it is asked for: each is 33 MB.
                return Reply(reply.status, headers, b'{"data": [' + b" " * (33 * 1024 * 1024) + b"]}")
        return Reply(reply.status, headers, bodies[fault.kind])

    def _headers(self, kind: str) -> dict[str, str]:
        headers = {"Content-Type": kind}
        if self.world.date_header:
            moment = self.now() + timedelta(seconds=self.world.gateway_skew)
            headers["Date"] = format_datetime(moment.astimezone(UTC).replace(microsecond=0), usegmt=True)
        return headers

    def _json(self, status: int, body: object) -> Reply:
        return Reply(status, self._headers("application/json"), json.dumps(body).encode())

    def error(self, status: int, message: str, more: Mapping[str, str] | None = None) -> Reply:
        """An answer as the platform gives it to a request that it refuses, for interceptors.

        Args:
            status: of HTTP.
            message: what the body says, if the world's errors have one.
            more: headers beside the platform's own.
        """
        headers = self._headers("application/json" if self.world.error_body == "json" else "text/plain")
        if status in {429, 503} and self.world.retry_after != "absent":
            seconds = math.ceil(self.world.rate_limit[1]) if self.world.rate_limit else 1
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
        while self._recent and now - self._recent[0] >= timedelta(seconds=seconds):
            self._recent.popleft()
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
                return 200, self._list_events(
                    self._all if wanted is None else self._by_agent.get(wanted, _Timeline()), query
                )
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
        self._event_ids[run.request_id] = run.event_id
        return {
            "data": {
                "message": "Execution started. Poll events for status.",
                "requestId": run.request_id,
                "agentId": agent.id,
            }
        }

    def _list_agents(self, query: Mapping[str, str]) -> dict[str, Any]:
        def page(limit: int, place: _Place | None) -> list[tuple[_Place, dict[str, Any]]]:
            rows = (
                ((0, 0, agent.number), agent)
                for agent in reversed(self._agents.values())
                if agent.status != "DELETED" and (place is None or agent.number < place[2])
            )
            return [(key, self._agent_json(agent)) for key, agent in itertools.islice(rows, limit)]

        return self._paged(query, 100, page)

    def _list_events(self, timeline: _Timeline, query: Mapping[str, str]) -> dict[str, Any]:
        status = query.get("status")
        if status == "":
            raise _BadRequestError(400, "status is empty")
        after, before = _moment(query, "startedAfter"), _moment(query, "startedBefore")

        def page(limit: int, place: _Place | None) -> list[tuple[_Place, Any]]:
            now = self.now() - timedelta(seconds=_draw(self.world.replica_lag, self._rng))
            listing = _Listing(self, timeline, now, status, after, before, place)
            return [(key, self._row(run, now)) for key, run in listing.first(limit)]

        return self._paged(query, 50, page)

    def _paged(
        self,
        query: Mapping[str, str],
        default: int,
        page: Callable[[int, _Place | None], list[tuple[_Place, Any]]],
    ) -> dict[str, Any]:
        world = self.world
        limit = _limit(query, default)
        limit = min(limit, world.page_rows) if world.page_rows is not None else limit
        token = query.get("nextToken", "")
        if world.endless_tokens:
            return {"data": [], "nextToken": f"{token or 'x'}x"}
        empties, place = _read_token(token)
        if empties < world.empty_pages:
            return {"data": [], "nextToken": _token(empties + 1, place)}
        # One more than asked for tells whether there is a next page.
        rows = page(limit + 1, place)
        # A place in the order, not a number of rows: it stays good when newer events arrive.
        next_token = _token(empties, rows[limit - 1][0]) if len(rows) > limit else None
        if world.repeated_token:
            next_token = "again"  # noqa: S105 - a page's token is no secret
        return {"data": [row for _, row in rows[:limit]], "nextToken": next_token}


@dataclass(frozen=True)
class _Listing:
    """One listing of events: what is in it, and in which order, at one moment."""

    simulator: Simulator
    timeline: _Timeline
    now: datetime
    status: str | None
    after: datetime | None
    before: datetime | None
    place: _Place | None

    def first(self, count: int) -> list[tuple[_Place, Run]]:
        """The newest `count` rows below the place, newest first."""
        newest: list[tuple[_Place, Run]] = []
        span, oldest = self.timeline.span, self._oldest_end()
        for run in self.timeline.newest_first(self._newest_acceptance()):
            # This run and all that follow it ended before what is asked for.
            if oldest is not None and run.accepted_at + span < oldest:
                break
            # They stand below the rows that there are.
            if len(newest) == count and self._highest_key(run.accepted_at) < newest[0][0]:
                break
            if not self._holds(run):
                continue
            key = self._key(run)
            if self.place is not None and key >= self.place:
                continue
            # Two keys are never equal, so that runs are not compared.
            if len(newest) < count:
                heapq.heappush(newest, (key, run))
            else:
                heapq.heappushpop(newest, (key, run))
        return sorted(newest, key=lambda row: row[0], reverse=True)

    def _holds(self, run: Run) -> bool:
        simulator, now = self.simulator, self.now
        world = simulator.world
        if run.visible_at > now or not simulator._is_listed(run):  # noqa: SLF001 - a part of the simulator
            return False
        if world.retention_seconds is not None and run.ended_at + timedelta(seconds=world.retention_seconds) <= now:
            return False
        if self.status is not None and run.status_at(now, world) != self.status:
            return False
        if self.after is None and self.before is None:
            return True
        started = self._time_of(run, "startedAt")
        if started is None:
            return world.started_filter_keeps_pending
        # As it is shown, so that the startedAt of an event, given as a bound, leaves that event out.
        started = started.replace(microsecond=started.microsecond // 1000 * 1000)
        return (self.after is None or started > self.after) and (self.before is None or started < self.before)

    def _time_of(self, run: Run, name: str) -> datetime | None:
        return self.simulator._time_of(run, self.now, name)  # noqa: SLF001 - a part of the simulator

    def _key(self, run: Run) -> _Place:
        moment = self._time_of(run, self.simulator.world.sort_by)
        if moment is None:
            return (1 if self.simulator.world.nulls == "first" else -1, 0, run.number)
        return (0, _microseconds(moment), run.number)

    def _highest_key(self, accepted_at: datetime) -> _Place:
        """Above the key of any run that was accepted then or before."""
        world = self.simulator.world
        if world.sort_by == "createdAt" and world.created_at == "accepted":
            return (0, _microseconds(accepted_at) + 1, 0)
        latest = accepted_at + self.timeline.span
        if world.sort_by == "startedAt" and world.nulls == "first" and latest > self.now:
            return (2, 0, 0)
        return (0, _microseconds(latest) + 1, 0)

    def _newest_acceptance(self) -> datetime | None:
        """No run that was accepted later is in the listing; None if there is no such bound."""
        world, bounds = self.simulator.world, []
        if self.before is not None and not world.started_filter_keeps_pending:
            # Times are compared in whole milliseconds, as they are shown.
            bounds.append(min(self.before, self.now) + timedelta(milliseconds=1))
        # Where nulls come last, a run that was just accepted may follow any other.
        if (
            self.place is not None
            and self.place[0] == 0
            and not (world.sort_by == "startedAt" and world.nulls == "last")
        ):
            bounds.append(_EPOCH + self.place[1] * _MICROSECOND)
        return min(bounds, default=None)

    def _oldest_end(self) -> datetime | None:
        """No run all of whose times are before this is in the listing; None if there is no such bound."""
        world, bounds = self.simulator.world, []
        if self.after is not None:
            bounds.append(min(self.after, self.now))
        if self.status is not None and self.status not in self.timeline.end_statuses:
            bounds.append(self.now)
        if world.retention_seconds is not None:
            bounds.append(self.now - timedelta(seconds=world.retention_seconds))
        return max(bounds, default=None)


def _limit(query: Mapping[str, str], default: int) -> int:
    text = query.get("limit")
    if text is None:
        return default
    # No more digits than int() takes.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _MOST_ROWS):  # noqa: PLR2004
        raise _BadRequestError(400, f"limit must be from 1 to {_MOST_ROWS}")
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


def _token(empties: int, place: _Place | None) -> str:
    return base64.urlsafe_b64encode(json.dumps([empties, *(place or ())]).encode()).decode()


def _read_token(token: str) -> tuple[int, _Place | None]:
    if token in {"", "again"}:
        return 0, None
    try:
        numbers = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, RecursionError):
        numbers = None
    match numbers:
        case [int(empties)]:
            return empties, None
        case [int(empties), int(rank), int(microseconds), int(number)] if abs(microseconds) < _FARTHEST:
            return empties, (rank, microseconds, number)
    raise _BadRequestError(400, "nextToken is not valid")
