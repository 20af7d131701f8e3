"""Failures between a client and the platform: faults that hit certain requests, and interceptors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, get_args

from airflow_provider_agents.simulator.checks import check, is_whole

_HTTP_STATUSES = range(100, 600)

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


@dataclass(frozen=True)
class IncomingRequest:
    """A request as the platform receives it.

    Attributes:
        method: such as GET.
        path: as received, percent-encoded, without the query.
        query: decoded.
        headers: their names in lower case.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """A response; with `broken`, the connection breaks or hangs instead."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    broken: Literal["reset", "hang"] | None = None


#: Stands in front of the platform. Gets a request and a function that returns the platform's own response; returns the
#: response. If it does not call the function, the platform does nothing.
Interceptor = Callable[[IncomingRequest, Callable[[], Reply]], Reply]


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def _is_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(part, str) for pair in value.items() for part in pair)


def _is_moment(value: object) -> bool:
    return value is None or (isinstance(value, datetime) and value.tzinfo is not None)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A failure of the requests that match.

    `reset` breaks the connection without a response, and `hang` never responds, each *before* or *after* the server has
    done the work: for an execute, whether a run was started. `status` responds with `status`, before the work unless
    `worked`. The other kinds respond after the work, with the right status and a corrupt body.

    Attributes:
        kind: how the request fails.
        status: the HTTP status of kind `status`.
        body: the body of kind `status`; the platform's own error if None.
        worked: whether the server does the work before it responds with `status`.
        method: only requests of this method.
        path: only requests in whose path this regular expression is found.
        query: only requests that have these parameters with these values.
        times: how many requests; None for all from now on.
        skip: how many matching requests succeed first.
        headers: added to the response.
        not_before: only requests from this time on, on the caller's clock. See `Simulator.add_fault`.
        not_after: only requests before this time.

    Raises:
        ValueError: a field has no such value; the message names it.
    """

    kind: FaultKind
    status: int = 503
    body: str | None = None
    worked: bool = False
    method: str | None = None
    path: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    times: int | None = 1
    skip: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    not_before: datetime | None = None
    not_after: datetime | None = None

    def __post_init__(self) -> None:
        kinds = get_args(FaultKind)
        check(self.kind in kinds, "kind", f"one of {', '.join(kinds)}")
        check(is_whole(self.status, 0) and self.status in _HTTP_STATUSES, "status", "from 100 to 599")
        worked: object = self.worked
        check(isinstance(worked, bool), "worked", "true or false")
        for name in ("method", "body"):
            text = getattr(self, name)
            check(text is None or isinstance(text, str), name, "a text")
        check(self.path is None or _is_pattern(self.path), "path", "a regular expression")
        check(self.times is None or is_whole(self.times, 1), "times", "1 or more, or none for all")
        check(is_whole(self.skip, 0), "skip", "0 or more")
        for name in ("headers", "query"):
            check(_is_texts(getattr(self, name)), name, "a mapping of texts")
        for name in ("not_before", "not_after"):
            check(_is_moment(getattr(self, name)), name, "an aware datetime")

    def matches(self, request: IncomingRequest, now: datetime) -> bool:
        """Whether the fault hits this request, apart from `skip`."""
        return (
            self.method in (None, request.method)
            and (self.path is None or re.search(self.path, request.path) is not None)
            and self.query.items() <= request.query.items()
            and (self.not_before is None or now >= self.not_before)
            and not self.is_over(now)
        )

    def is_over(self, now: datetime) -> bool:
        """Whether no later request matches."""
        return self.not_after is not None and now >= self.not_after


def next_fault(faults: list[Fault], request: IncomingRequest, now: datetime) -> Fault | None:
    """The first fault that hits a request, taken off the list when its `times` are used up."""
    faults[:] = [fault for fault in faults if not fault.is_over(now)]
    for index, fault in enumerate(faults):
        if not fault.matches(request, now):
            continue
        if fault.skip:
            faults[index] = replace(fault, skip=fault.skip - 1)
            continue
        if fault.times is not None:
            if fault.times <= 1:
                del faults[index]
            else:
                faults[index] = replace(fault, times=fault.times - 1)
        return fault
    return None


def corrupt_reply(reply: Reply, fault: Fault) -> Reply:
    """What is left of a response after a fault of any kind but `status`."""
    headers = {**reply.headers, **fault.headers}
    match fault.kind:
        case "reset_after":
            return Reply(broken="reset")
        case "hang_after":
            return Reply(broken="hang")
        case "html":
            headers["Content-Type"] = "text/html"
            body = b"<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>"
        case "garbage":
            body = bytes(range(256))
        case "truncated":
            body = reply.body[: len(reply.body) // 2]
        case "wrong_shape":
            body = b'{"data": "none"}'
        case "huge":
            body = b'{"data": [' + b" " * (33 * 1024 * 1024) + b"]}"
        case _:
            body = b""
    return Reply(reply.status, headers, body)
