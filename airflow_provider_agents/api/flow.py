"""One request as a value, and logic that needs several answers as a generator. Pure; nothing here does I/O.

Such a generator yields what it wants to have asked (`Call`) or waited for (`Pause`) and is sent each `Answer`, or
thrown each error. `Client` and `AsyncClient` drive it, so that no decision is written twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from airflow_provider_agents.api.errors import AgentsError, InvalidArgumentError, PaginationError
from airflow_provider_agents.api.models import ExecutionEvent, Page, UnreadableEvent

if TYPE_CHECKING:
    from datetime import datetime

T = TypeVar("T")
R = TypeVar("R")

#: The API's page: `limit` is at most 200 for every listing.
MAX_LIMIT = 200
#: A walk over a listing gives up beyond this many pages (200,000 rows): a server that never ends its listing.
MAX_PAGES = 1000
#: A walk also gives up beyond this many bytes, as Python objects: some 170,000 events as the API's page shows them.
MAX_WALK_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What came back: the value, and the server's clock (its `Date` header) if it told.

    Attributes:
        weight: about how many bytes the value takes, if it is a page that has a next one.
    """

    value: T
    server_time: datetime | None
    weight: int = 0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how to read its answer.

    Attributes:
        method: GET, or POST for execute.
        path: begins with `/v1/`; every variable part is percent-encoded already.
        params: the query, in order.
        read: decoded JSON to the value; raises `ValidationError`, `TypeError` or `KeyError` if it does not fit.
        what: the call in words, for messages.
        repeatable: whether the server may carry it out twice without harm. False only for execute.
    """

    method: Literal["GET", "POST"]
    path: str
    read: Callable[[Any], T]
    what: str
    params: tuple[tuple[str, str], ...] = ()
    repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Once:
    """Send this call a single time: whoever yields it decides itself about a repetition."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this many seconds (≥ 0) before going on."""

    seconds: float


#: A dialogue with the API: yields what it wants, is sent an `Answer` for each call and None for each pause.
Steps: TypeAlias = Generator[Call[Any] | Once | Pause, Any, R]


def asked(call: Call[Any]) -> str:
    """The end of a message: what was asked."""
    return f"Request: {call.what}."


# --- listings of more than one page ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Place:
    """How far a walk has got. A walk that failed in the middle can be resumed there.

    Attributes:
        token: the `nextToken` of the page to ask for next; None for the first page.
        pages: pages read so far.
        server_time: the server's clock when the first page was asked for, if it told.
        is_done: the walk has come to its end.
        latest: the latest time of the last row that stands where its times say.
    """

    token: str | None = None
    pages: int = 0
    server_time: datetime | None = None
    is_done: bool = False
    latest: datetime | None = None
    _weight: int = 0
    _seen: set[str] = field(default_factory=set)

    def take(self, page: Answer[Page[T]], what: str) -> None:
        """Note a page that has a next one.

        Raises:
            PaginationError: its token came before, or the walk is too large.
        """
        token = page.value.nextToken
        if token is None or token in self._seen:
            raise PaginationError(
                f"The server sent the same nextToken twice, so the listing never ends. Request: {what}."
            )
        self._weight += page.weight
        if self._weight > MAX_WALK_BYTES:
            raise PaginationError(
                f"The listing is larger than {MAX_WALK_BYTES:,} bytes after {self.pages} pages. Request: {what}."
            )
        self._seen.add(token)
        self.token = token


def walk(
    first: Call[Page[T]],
    enough: Callable[[Answer[Page[T]]], bool] | None = None,
    *,
    max_pages: int = MAX_PAGES,
    place: Place | None = None,
) -> Steps[Answer[list[T]]]:
    """All rows of a listing, in the server's order, page by page.

    A page that is short, or empty, and has a `nextToken` is followed like any other.

    Args:
        first: the call for the first page.
        enough: asked after each page, the last included; True ends the walk there.
        max_pages: the bound, in pages.
        place: where to begin. It is moved along, so that after a failure another walk can resume there.

    Returns:
        The rows, with the server's clock as the *first* page told it: what the rows say is no older than that. A walk
        that was resumed returns the rows of its own pages only.

    Raises:
        PaginationError: a token came twice, or the listing went on beyond `max_pages` or `MAX_WALK_BYTES`.
    """
    place, rows = place if place is not None else Place(), list[T]()
    # Where a status is asked for, all may be rows that have not begun, which stand anywhere.
    is_ordered = all(name != "status" for name, _ in first.params)
    while place.pages < max_pages:
        params = first.params if place.token is None else (*first.params, ("nextToken", place.token))
        answer: Answer[Page[T]] = yield replace(first, params=params)
        if not place.pages:
            place.server_time = answer.server_time
        place.pages += 1
        if is_ordered:
            answer = _dated(answer, place)
        rows.extend(answer.value.data)
        if (enough is not None and enough(answer)) or not answer.value.nextToken:
            place.is_done = True
            return Answer(rows, place.server_time)
        place.take(answer, first.what)
    raise PaginationError(f"The listing goes on beyond {max_pages} pages. {asked(first)}")


def _dated(page: Answer[Page[T]], place: Place) -> Answer[Page[T]]:
    """The next page of a listing, newest first, in which rows that name no time are dated by the rows before them.

    The API does not say which time it sorts by, so a row is no younger than the latest time of a row before it.
    """
    rows = page.value.data
    before, place.latest = place.latest, next(filter(None, map(_latest_time, reversed(rows))), place.latest)
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
    """The latest time of a row that stands where its times say; None if it may stand anywhere."""
    if not isinstance(row, ExecutionEvent) or row.startedAt is None or row.changed_at is None:
        return None
    return max(filter(None, (row.createdAt, row.startedAt, row.changed_at)))


def newest(first: Call[Page[T]], count: int) -> Steps[list[T]]:
    """The first `count` (≥ 1) rows of a listing, over as many pages as that takes."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidArgumentError(f"limit must be a whole number from 1, got {count!r}.")
    call = replace(first, params=tuple((k, str(min(count, MAX_LIMIT)) if k == "limit" else v) for k, v in first.params))
    left = count

    def enough(page: Answer[Page[T]]) -> bool:
        nonlocal left
        left -= len(page.value.data)
        return left <= 0

    answer = yield from walk(call, enough)
    return answer.value[:count]


def one(call: Call[T]) -> Steps[T]:
    """The value of a single call."""
    answer: Answer[T] = yield call
    return answer.value


async def follow(steps: Steps[T], take: Callable[[Call[Any] | Once | Pause], Awaitable[Answer[Any] | None]]) -> T:
    """Drive a dialogue to its end and return its result.

    Args:
        steps: the dialogue.
        take: does what it asks for next, or raises what the dialogue is to be thrown.
    """
    try:
        step = next(steps)
        while True:
            try:
                result = await take(step)
            except AgentsError as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # a generator's return value is untyped
