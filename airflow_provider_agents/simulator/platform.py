"""The simulated platform: its state, what listings show of it, what goes wrong, and its API as one function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.simulator.api import Api
from airflow_provider_agents.simulator.checks import check, is_seconds
from airflow_provider_agents.simulator.faults import (
    Fault,
    IncomingRequest,
    Interceptor,
    Reply,
    corrupt_reply,
    next_fault,
)
from airflow_provider_agents.simulator.state import State

if TYPE_CHECKING:
    from airflow_provider_agents.simulator.clock import Clock
    from airflow_provider_agents.simulator.config import SimulatorConfig
    from airflow_provider_agents.simulator.runs import Run


@dataclass(frozen=True)
class Request:
    """A request that was received, and the status of its response (0 without one)."""

    method: str
    path: str
    status: int
    at: datetime


@dataclass(frozen=True)
class _RowChange:
    """What a listing shows instead of the true row."""

    row: object
    without: tuple[str, ...]

    @classmethod
    def checked(cls, row: object, without: Iterable[str]) -> _RowChange:
        """A change.

        Raises:
            TypeError: JSON has no such value.
            ValueError: `without` is not a list of names.
        """
        names = () if isinstance(without, str) else tuple(without)
        ok = not isinstance(without, str) and all(isinstance(name, str) for name in names)
        check(ok, "without", "a list of fields' names")
        if not callable(row):
            json.dumps(row)
        return cls(row, names)

    def apply(self, shown: Any) -> Any:
        """The row after the change."""
        fields = shown if isinstance(shown, Mapping) else {}
        if callable(self.row):
            changed = self.row(dict(fields))
        elif isinstance(self.row, Mapping):
            changed = {**fields, **self.row}
        else:
            changed = self.row
        if isinstance(changed, Mapping):
            return {name: value for name, value in changed.items() if name not in self.without}
        return changed


class Simulator(State):
    """The platform.

    Args:
        clock: the caller's clock, aware UTC. The server's clock differs from it by `config.clock_skew`.
        config: the open points; may be replaced at any time.
        api_keys: the keys that are accepted; may be replaced at any time.
        seed: of all that is drawn.

    Attributes:
        executions: each execute that started a run, in order.
        requests: each request, in order.
        faults: the faults to come; append to it, or use `add_fault`.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        config: SimulatorConfig | None = None,
        api_keys: tuple[str, ...] = ("test-key",),
        seed: int = 0,
    ) -> None:
        super().__init__(clock, config=config, seed=seed)
        self.api_keys = api_keys
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._api = Api(self)
        self._interceptors: list[Interceptor] = []
        #: By event; None is for every event.
        self._row_changes: dict[str | None, _RowChange] = {}
        self._hidden: set[str] = set()

    def count(self, method: str | None = None, path_prefix: str | None = None) -> int:
        """How many requests were received, of this method and with paths that begin with this prefix."""
        return sum(
            method in (None, request.method) and request.path.startswith(path_prefix or "") for request in self.requests
        )

    def forget(self, ended_before: datetime) -> None:
        """Remove the runs that ended before a time, as if they had never been, and the record of all requests."""
        super().forget(ended_before)
        self.requests.clear()
        for event_id in {*self._hidden, *self._row_changes} - {None} - self._runs.keys():
            self.restore(event_id)

    # --- rows of listings ---

    def row(self, event_id: str) -> Any:
        """What a listing shows of an event now.

        Raises:
            KeyError: the event does not exist.
        """
        return self.row_of(self.truth(event_id), self.now())

    def row_of(self, run: Run, now: datetime) -> Any:
        """What a listing shows of a run at a time."""
        row: Any = run.to_json(now, self.config)
        for name in (None, run.event_id):
            change = self._row_changes.get(name)
            if change is not None:
                row = change.apply(row)
        return row

    def is_listed(self, run: Run) -> bool:
        """Whether listings show the run's event once it is visible."""
        return run.agent_id in self._agents and run.event_id not in self._hidden

    def corrupt(self, event_id: str | None, row: object, *, without: Iterable[str] = ()) -> None:
        """Change the row of an event in every listing. The run stays as it is, and so do order and filters.

        A second change of the same row replaces the first.

        Args:
            event_id: None for every row; the change of a single row comes after that.
            row: a mapping replaces these fields; a function gets the row as a dictionary and returns another one; any
                other JSON value replaces the row.
            without: fields that the row does not have.

        Raises:
            KeyError: the event does not exist.
            TypeError: JSON has no such value.
            ValueError: `without` is not a list of names.
        """
        if event_id is not None:
            self.truth(event_id)
        self._row_changes[event_id] = _RowChange.checked(row, without)

    def add_row(self, agent_id: str, row: object, *, without: Iterable[str] = (), age: float = 0.0) -> str:
        """Add a row without a run to the listings of an agent and of the account: a COMPLETED event, then changed.

        Args:
            agent_id: an agent that exists.
            row: as in `corrupt`; `{}` for no change.
            without: as in `corrupt`.
            age: seconds since the event was created and COMPLETED.

        Returns:
            The id of its event, for `corrupt`, `hide` and `restore`.

        Raises:
            KeyError: the agent does not exist.
            TypeError: JSON has no such value.
            ValueError: `age` is not a number of seconds, 0 or more, or `without` is not a list of names.
        """
        check(is_seconds(age), "age", "a number of seconds, 0 or more")
        change = _RowChange.checked(row, without)
        agent, accepted_at = self._agents[agent_id], self.now() - timedelta(seconds=age)
        added = self.start(agent, "row", accepted_at, queue=0.0, run=0.0, end_status="COMPLETED", lag=0.0)
        self._row_changes[added.event_id] = change
        return added.event_id

    def hide(self, event_id: str) -> None:
        """Remove an event from all listings. Its run stays true.

        Raises:
            KeyError: the event does not exist.
        """
        self._hidden.add(self.truth(event_id).event_id)

    def restore(self, event_id: str | None) -> None:
        """Undo `corrupt` and `hide` of an event; if None, undo `corrupt` of every event."""
        self._row_changes.pop(event_id, None)
        if event_id is not None:
            self._hidden.discard(event_id)

    # --- faults ---

    def add_fault(self, fault: Fault, *, after: float = 0.0, seconds: float | None = None) -> None:
        """Add a fault, for a window of time if wanted.

        Args:
            fault: with `times=None` it hits all requests in the window; by default only the first.
            after: seconds from now until the window opens.
            seconds: how long the window is open; None for no end.

        Raises:
            ValueError: an argument has no such value.
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
        """Put a function in front of the platform and its faults. The last one added gets a request first.

        Returns:
            A function that removes the interceptor; it may be called more than once.
        """
        self._interceptors.append(interceptor)

        def remove() -> None:
            if interceptor in self._interceptors:
                self._interceptors.remove(interceptor)

        return remove

    # --- the API ---

    def handle(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        """Respond to one request.

        Args:
            method: GET or POST; others are answered 405.
            path: as received, percent-encoded.
            query: decoded.
            headers: their names in upper or lower case.
        """
        request = IncomingRequest(method, path, query, {name.lower(): value for name, value in headers.items()})
        received_at = self.clock()
        respond: Callable[[], Reply] = partial(self._respond_or_fail, request)
        for interceptor in self._interceptors:
            respond = partial(interceptor, request, respond)
        reply = respond()
        self.requests.append(Request(method, path, 0 if reply.broken else reply.status, received_at))
        return reply

    def error(self, status: int, message: str, more: Mapping[str, str] | None = None) -> Reply:
        """The platform's response to a request that it refuses, for interceptors; see `Api.error`."""
        return self._api.error(status, message, more)

    def _respond_or_fail(self, request: IncomingRequest) -> Reply:
        self.run_schedules()
        fault = next_fault(self.faults, request, self.clock())
        match fault:
            case None:
                return self._api.respond(request)
            case Fault(kind="reset_before"):
                return Reply(broken="reset")
            case Fault(kind="hang_before"):
                return Reply(broken="hang")
            case Fault(kind="status", worked=False):
                pass
            case _:
                reply = self._api.respond(request)
                if fault.kind != "status":
                    return corrupt_reply(reply, fault)
        refusal = self.error(fault.status, "a fault was asked for", fault.headers)
        return refusal if fault.body is None else replace(refusal, body=fault.body.encode())
