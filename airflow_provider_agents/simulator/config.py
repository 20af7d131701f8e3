"""How the simulated platform behaves where the API's page leaves it open."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from airflow_provider_agents.simulator.checks import (
    MAX_SECONDS,
    check,
    check_seconds,
    check_status,
    is_seconds,
    is_whole,
)

#: A number of seconds, or a function that draws one for each run or request.
Seconds = float | Callable[[random.Random], float]


def draw(value: Seconds, rng: random.Random) -> float:
    """The number of seconds, drawn if it is a function."""
    return value(rng) if callable(value) else value


@dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """What the API's page leaves open. The default of each option is the friendliest reading. Times are seconds.

    Attributes:
        record_lag: from acceptance until the run's event is visible.
        created_at: whether `createdAt` is the time of acceptance, or the time when the event becomes visible.
        started_at_while_pending: whether a PENDING event has a `startedAt` (the time of acceptance).
        started_filter_keeps_pending: whether `startedAfter` and `startedBefore` keep events without `startedAt`.
        sort_by: the timestamp that "newest first" sorts by.
        nulls: where events without that timestamp stand.
        request_id: whether the event's id is the `requestId`, a field of the event holds it, or the event lacks it.
        replica_lag: how far a listing lags behind; drawn for each request.
        clock_skew: the server's clock minus the caller's.
        gateway_skew: the clock of the `Date` header minus the clock of the events.
        date_header: whether responses have a `Date` header.
        agent_envelope: whether a single agent comes inside `data`.
        paused_executes: whether a paused agent can be executed; if not, the response is 409.
        page_rows: the most rows of a page, of events or agents, even if `limit` is higher.
        empty_pages: how many empty pages, each with a token, come before the first row of a listing.
        repeated_token: whether every page has the same `nextToken`, so that no listing ends.
        endless_tokens: whether every page has a new `nextToken`, so that no listing ends.
        error_body: the form of an error's body.
        extra_event_fields: undocumented fields of every event.
        queue_seconds: how long a run is PENDING.
        run_seconds: how long a run is RUNNING.
        end_status: the last status of a run.
        extra_status: an undocumented status between PENDING and RUNNING, for half of the time in the queue.
        retention_seconds: how long after its end an event is listed; None for always.
        rate_limit: requests, and the seconds they are counted in; further requests get 429. None for no limit.
        retry_after: the form of `Retry-After` in a 429 and a 503.

    Raises:
        ValueError: an option has no such value; the message names the option.
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
            check(is_seconds(getattr(self, name), -MAX_SECONDS), name, "a number of seconds")
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


_HINTS = get_type_hints(SimulatorConfig)
_CHOICES = {name: get_args(hint) for name, hint in _HINTS.items() if get_origin(hint) is Literal}
_SWITCHES = [name for name, hint in _HINTS.items() if hint is bool]
