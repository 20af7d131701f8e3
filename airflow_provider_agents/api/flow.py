"""Requests as values, and flows: generators that need several responses. Pure; nothing here does I/O.

A flow yields an `ApiCall` or `NoRetry` to send, or a `Sleep`. It receives each `Response`, or has each error thrown
into it. `FlowRun` is the one loop that does so. Workers, triggers and flows around flows share it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeAlias, TypeVar

from airflow_provider_agents.api.errors import AgentsError, InvalidArgumentError, PaginationError
from airflow_provider_agents.api.models import ExecutionEvent, Page, UnreadableEvent

if TYPE_CHECKING:
    from datetime import datetime

T = TypeVar("T")
R = TypeVar("R")

#: The API's page: `limit` is at most 200 for every listing.
MAX_LIMIT = 200
#: `paginate` gives up after this many pages (200,000 rows): the server's listing never ends.
MAX_PAGES = 1000
#: `paginate` also gives up after this many bytes of Python objects: about 170,000 events of the documented form.
MAX_LISTING_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Response(Generic[T]):
    """A response that was read.

    Attributes:
        value: what the response holds.
        server_time: the server's clock (its `Date` header); None without one.
        size_bytes: estimated size of the value in memory; 0 unless it is a page that has a next one.
    """

    value: T
    server_time: datetime | None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ApiCall(Generic[T]):
    """One request, and how to read its response.

    Attributes:
        method: GET, or POST for execute.
        path: begins with `/v1/`; every variable part is already percent-encoded.
        read: decoded JSON to the value; raises `ValidationError`, `TypeError` or `KeyError` if it does not fit.
        label: the request in words, for messages.
        params: the query, in order.
        idempotent: whether the server may carry it out twice without harm. False only for execute.
    """

    method: Literal["GET", "POST"]
    path: str
    read: Callable[[Any], T]
    label: str
    params: tuple[tuple[str, str], ...] = ()
    idempotent: bool = True

    @property
    def sentence(self) -> str:
        """The last sentence of an error message: which request failed."""
        return f"Request: {self.label}."


@dataclass(frozen=True, slots=True)
class NoRetry:
    """Send this call once. The flow decides itself whether to send it again."""

    call: ApiCall[Any]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait this many seconds (≥ 0)."""

    seconds: float


#: What to do next. Its result is a `Response` for a call and None for a `Sleep`.
Step: TypeAlias = ApiCall[Any] | NoRetry | Sleep
#: Yields steps, and receives the result of each.
Flow: TypeAlias = Generator[Step, Any, R]


# --- listings of several pages --------------------------------------------------------------------------------------


@dataclass(slots=True)
class PageCursor:
    """How much of a listing was read. A listing that failed halfway can be resumed here.

    Attributes:
        token: the `nextToken` of the page to read next; None for the first page.
        pages: pages read so far.
        server_time: the server's clock at the first page; None without a `Date` header.
        is_done: whether the listing was read to its end.
        latest: the latest time of the last row whose place in the listing follows from its times.
    """

    token: str | None = None
    pages: int = 0
    server_time: datetime | None = None
    is_done: bool = False
    latest: datetime | None = None
    _size_bytes: int = 0
    _seen: set[str] = field(default_factory=set)

    def move_past(self, page: Response[Page[T]], call: ApiCall[Page[T]]) -> None:
        """Move past a page that has a next one.

        Raises:
            PaginationError: its token was seen before, or the listing is too large.
        """
        token = page.value.nextToken
        if token is None or token in self._seen:
            raise PaginationError(
                f"The server sent the same nextToken twice, so the listing never ends. {call.sentence}"
            )
        self._size_bytes += page.size_bytes
        if self._size_bytes > MAX_LISTING_BYTES:
            raise PaginationError(
                f"The listing is larger than {MAX_LISTING_BYTES:,} bytes after {self.pages} pages. {call.sentence}"
            )
        self._seen.add(token)
        self.token = token


def paginate(
    first: ApiCall[Page[T]],
    stop: Callable[[Response[Page[T]]], bool] | None = None,
    *,
    max_pages: int = MAX_PAGES,
    cursor: PageCursor | None = None,
) -> Flow[Response[list[T]]]:
    """All rows of a listing, page by page, in the server's order.

    A short or empty page that has a `nextToken` does not end the listing.

    Args:
        first: the call for the first page.
        stop: called after each page, the last included; True ends the listing there.
        max_pages: the most pages to read.
        cursor: where to begin. It is moved along, so that after a failure another call can resume there.

    Returns:
        The rows, with the server's clock at the *first* page: the rows are no older than that. A listing that was
        resumed returns only the rows that were read since.

    Raises:
        PaginationError: a token came twice, or the listing is longer than `max_pages` or `MAX_LISTING_BYTES`.
    """
    cursor, rows = cursor if cursor is not None else PageCursor(), list[T]()
    # A listing by status may hold only rows that have not begun, and these stand anywhere.
    is_ordered = all(name != "status" for name, _ in first.params)
    while cursor.pages < max_pages:
        params = first.params if cursor.token is None else (*first.params, ("nextToken", cursor.token))
        page: Response[Page[T]] = yield replace(first, params=params)
        if not cursor.pages:
            cursor.server_time = page.server_time
        cursor.pages += 1
        if is_ordered:
            page = _dated(page, cursor)
        rows.extend(page.value.data)
        if (stop is not None and stop(page)) or not page.value.nextToken:
            cursor.is_done = True
            return Response(rows, cursor.server_time)
        cursor.move_past(page, first)
    raise PaginationError(f"The listing is longer than {max_pages} pages. {first.sentence}")


def _dated(page: Response[Page[T]], cursor: PageCursor) -> Response[Page[T]]:
    """The next page of a listing, newest first. Rows without a time get one from the rows before them.

    The API does not say which time it sorts by. So a row is no younger than the latest time of a row before it.
    """
    rows = page.value.data
    before, cursor.latest = cursor.latest, next(filter(None, map(_latest_time, reversed(rows))), cursor.latest)
    if not any(isinstance(row, UnreadableEvent) for row in rows):
        return page
    dated: list[T] = []
    for row in rows:
        if isinstance(row, UnreadableEvent) and row.created_by is None:
            dated.append(row.dated(before))
        else:
            dated.append(row)
            before = _latest_time(row) or before
    return replace(page, value=page.value.model_copy(update={"data": tuple(dated)}))


def _latest_time(row: object) -> datetime | None:
    """The latest time of a row; None if its place in the listing does not follow from its times."""
    if not isinstance(row, ExecutionEvent) or row.startedAt is None or row.changed_at is None:
        return None
    return max(filter(None, (row.createdAt, row.startedAt, row.changed_at)))


def first_rows(first: ApiCall[Page[T]], count: int) -> Flow[list[T]]:
    """The first `count` (≥ 1) rows of a listing, from as many pages as needed.

    Raises:
        InvalidArgumentError: `count` is not a whole number from 1.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidArgumentError(f"limit must be a whole number from 1, got {count!r}.")
    call = replace(first, params=tuple((k, str(min(count, MAX_LIMIT)) if k == "limit" else v) for k, v in first.params))
    left = count

    def stop(page: Response[Page[T]]) -> bool:
        nonlocal left
        left -= len(page.value.data)
        return left <= 0

    listed = yield from paginate(call, stop)
    return listed.value[:count]


def value_of(call: ApiCall[T]) -> Flow[T]:
    """The value of a single call."""
    response: Response[T] = yield call
    return response.value


# --- to run a flow --------------------------------------------------------------------------------------------------


class FlowRun(Generic[T]):
    """A flow under way: an iterator over its steps.

    Each step is done in a block, from which an error goes into the flow::

        run = FlowRun(flow)
        for step in run:
            with run.error_to_flow():
                run.result = perform(step)
        return run.value

    Attributes:
        result: the result of the last step.
        value: what the flow returned, once the iteration has ended.
    """

    value: T

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self.result: Response[Any] | AgentsError | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        result, self.result = self.result, None
        try:
            return self._flow.throw(result) if isinstance(result, AgentsError) else self._flow.send(result)
        except StopIteration as end:
            self.value = end.value
            raise

    @contextmanager
    def error_to_flow(self) -> Iterator[None]:
        """A block for a step: an `AgentsError` that leaves it is thrown into the flow."""
        try:
            yield
        except AgentsError as error:
            self.result = error


async def run_flow(flow: Flow[T], perform: Callable[[Step], Awaitable[Response[Any] | None]]) -> T:
    """Run a flow to its end on an event loop, and return its value.

    Args:
        flow: what to run.
        perform: does a step, or raises the error to be thrown into the flow.
    """
    run = FlowRun(flow)
    for step in run:
        with run.error_to_flow():
            run.result = await perform(step)
    return run.value


def through(flow: Flow[T], perform: Callable[[Step], Flow[Any]]) -> Flow[T]:
    """The same flow, in which `perform` does each step. It may yield other steps, or raise."""
    run = FlowRun(flow)
    for step in run:
        with run.error_to_flow():
            run.result = yield from perform(step)
    return run.value
