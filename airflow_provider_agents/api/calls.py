"""Each endpoint once, as a value: what to ask, and how to read the answer. Pure; nothing here does I/O.

Logic that needs several answers is a generator that yields what it wants to have asked (`Call`) or waited for
(`Pause`) and is sent each `Answer`, or thrown each error. `Client` and `AsyncClient` drive it, so that no decision is
written twice.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, Literal, NoReturn, TypeAlias, TypeVar
from urllib.parse import quote as percent_encode

from pydantic import ValidationError

from airflow_provider_agents.api.bodies import MAX_ERROR_BYTES, BodyError, read_json, weight_of
from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    InvalidArgumentError,
    NotFoundError,
    PaginationError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    UnreadableAnswerError,
    first_fault,
    quote,
)
from airflow_provider_agents.api.models import (
    Accepted,
    Agent,
    ExecutionEvent,
    Page,
    UnreadableEvent,
    is_plausible,
    read_agent,
    read_event,
)
from airflow_provider_agents.clock import now

T = TypeVar("T")
R = TypeVar("R")

#: The API's page: `limit` is at most 200 for every listing.
MAX_LIMIT = 200
#: A walk over a listing gives up beyond this many pages (200,000 rows): a server that never ends its listing.
MAX_PAGES = 1000
#: A walk also gives up beyond this many bytes, as Python objects: some 170,000 events as the API's page shows them.
MAX_WALK_BYTES = 256 * 1024 * 1024
#: The longest `Retry-After` that is believed, in seconds. Beyond an hour it is a mistake or an attack.
MAX_RETRY_AFTER_SECONDS = 3600.0


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


# --- what to ask ----------------------------------------------------------------------------------------------------


def check_agent_id(agent_id: object) -> str:
    """Return `agent_id` if it can name an agent.

    Raises:
        InvalidArgumentError: it is not text, is empty, longer than 1,024 characters, holds control characters or
            surrounding white space, or would climb out of its place in the path (`..`).
    """
    if not isinstance(agent_id, str):
        raise InvalidArgumentError(f"agent_id must be text, got {type(agent_id).__name__}. Pass the agent's id.")
    if not agent_id:
        raise InvalidArgumentError("agent_id must not be empty. Pass the agent's id; `airflow agents list` shows it.")
    if agent_id != agent_id.strip() or not agent_id.isprintable() or len(agent_id) > 1024:  # noqa: PLR2004 - docstring
        raise InvalidArgumentError(
            "agent_id must be at most 1,024 characters, without blanks around them and control characters, got "
            f"{quote(repr(agent_id), 60)}. Pass the agent's id as `airflow agents list` shows it."
        )
    # Percent-encoding hides a slash from us, but gateways decode it again before they resolve dot segments.
    if any(part in {".", ".."} for part in agent_id.replace("\\", "/").split("/")):
        raise InvalidArgumentError(
            f"agent_id must be the id of an agent and not a path, got {quote(repr(agent_id), 60)}."
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


def _read_agents(value: Any) -> Page[Agent]:
    return Page[Agent].of(value, read_agent)


def _read_events(value: Any) -> Page[ExecutionEvent]:
    return Page[ExecutionEvent].of(value, read_event)


def list_agents(*, limit: int = MAX_LIMIT) -> Call[Page[Agent]]:
    """`GET /v1/agents`: the account's agents, newest first."""
    return Call("GET", "/v1/agents", _read_agents, "listing the agents", tuple(_limit(limit)))


def get_agent(agent_id: str) -> Call[Agent]:
    """`GET /v1/agents/{agentId}`: one agent, bare or inside `data` (the page does not say which)."""

    def read(value: Any) -> Agent:
        wrapped = isinstance(value, dict) and "id" not in value and "data" in value
        return Agent.model_validate(value["data"] if wrapped else value)

    return Call("GET", _agent_path(agent_id), read, f"reading agent {agent_id}")


def execute_agent(agent_id: str) -> Call[Accepted]:
    """`POST /v1/agents/{agentId}/execute`: start a run. It costs money and cannot be taken back."""
    return Call(
        "POST",
        f"{_agent_path(agent_id)}/execute",
        lambda value: Accepted.model_validate(value["data"]),
        f"executing agent {agent_id}",
        repeatable=False,
    )


def list_agent_events(
    agent_id: str,
    *,
    status: str | None = None,
    started_after: datetime | None = None,
    started_before: datetime | None = None,
    limit: int = MAX_LIMIT,
) -> Call[Page[ExecutionEvent]]:
    """`GET /v1/agents/{agentId}/events`: an agent's runs, newest first."""
    params = [
        *_text("status", status),
        *_timestamp("startedAfter", started_after),
        *_timestamp("startedBefore", started_before),
        *_limit(limit),
    ]
    return Call(
        "GET",
        f"{_agent_path(agent_id)}/events",
        _read_events,
        f"listing the events of agent {agent_id}",
        tuple(params),
    )


def list_events(
    *,
    agent_id: str | None = None,
    status: str | None = None,
    started_after: datetime | None = None,
    started_before: datetime | None = None,
    limit: int = MAX_LIMIT,
) -> Call[Page[ExecutionEvent]]:
    """`GET /v1/events`: the account's runs, newest first."""
    params = [
        *(_text("agentId", check_agent_id(agent_id)) if agent_id is not None else []),
        *_text("status", status),
        *_timestamp("startedAfter", started_after),
        *_timestamp("startedBefore", started_before),
        *_limit(limit),
    ]
    return Call("GET", "/v1/events", _read_events, "listing the account's events", tuple(params))


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


# --- how to read the answer -----------------------------------------------------------------------------------------


def read_http_date(value: str | None) -> datetime | None:
    """The moment an HTTP date names, in UTC, or None if it names none, or one in which nobody answers."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
        if not is_plausible(moment):
            return None
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def read_retry_after(value: str | None, server_time: datetime | None) -> float | None:
    """Seconds from now that a `Retry-After` asks for, from 0 to 3,600, or None if it asks for nothing readable.

    A date is measured against the `Date` of the same answer, so that our clock does not come into it.
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        moment = read_http_date(value)
        if moment is None:
            return None
        seconds = (moment - (server_time or now())).total_seconds()
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def read_answer(call: Call[T], status_code: int, headers: Mapping[str, str], body: bytes) -> Answer[T]:
    """What an HTTP answer says.

    Args:
        call: what was asked.
        status_code: the HTTP status.
        headers: case-insensitive, as httpx gives them.
        body: decoded of its transfer and content encodings.

    Raises:
        UnreadableAnswerError: a success whose body is not what the API describes.
        AgentsError: the one that fits any other status.
    """
    server_time = read_http_date(headers.get("date"))
    if not 200 <= status_code < 300:  # noqa: PLR2004 - HTTP's own classes
        _raise_for_status(call, status_code, headers, body, server_time)
    try:
        decoded = read_json(body)
    except BodyError as error:
        raise unreadable(call, status_code, headers, f"{error}.") from None
    except ValueError:
        reason = (
            f"is not JSON ({_shape_of(headers, body)}). "
            "Check that the connection's host is the API's base URL and that nothing between rewrites its answers."
        )
        raise unreadable(call, status_code, headers, reason) from None
    try:
        value = call.read(decoded)
        # Added up by a walk alone, of the pages that have a next one; to tell it takes a while.
        weight = weight_of(body) if isinstance(value, Page) and value.nextToken else 0
        return Answer(value, server_time, weight)
    except BodyError as error:
        raise unreadable(call, status_code, headers, f"{error}.") from None
    except ValidationError as error:
        reason = first_fault(error)
    except (KeyError, TypeError, IndexError):
        reason = f"no `data` in {type(decoded).__name__}"
    newer = "If the API has changed, a newer version of this provider may read it."
    raise unreadable(call, status_code, headers, f"is not what the API describes: {reason}. {newer}")


def asked(call: Call[Any]) -> str:
    """The end of a message: what was asked."""
    return f"Request: {call.what}."


def unreadable(call: Call[Any], status_code: int, headers: Mapping[str, str], reason: str) -> UnreadableAnswerError:
    """The error for a success that cannot be read.

    Args:
        call: what was asked.
        status_code: the HTTP status.
        headers: of the answer. A page of a gateway in maintenance can come with a `Retry-After`.
        reason: goes on from "the answer", to the end of its last sentence.
    """
    return UnreadableAnswerError(
        f"The answer ({status_code}) {reason} {asked(call)}",
        status_code=status_code,
        retry_after_seconds=read_retry_after(headers.get("retry-after"), read_http_date(headers.get("date"))),
    )


def _shape_of(headers: Mapping[str, str], body: bytes) -> str:
    kind = quote(headers.get("content-type") or "no content type", 60)
    return f"{kind}, {len(body):,} bytes" + (", cut short or damaged" if body[:1] in {b"{", b"["} else "")


def _words(body: bytes) -> str:
    """What an error body says, if it says it in one of the usual ways; the API's page does not describe it."""
    try:
        value = read_json(body[:MAX_ERROR_BYTES])
    except ValueError:
        return ""
    for _ in range(3):
        if isinstance(value, dict):
            value = next((value[key] for key in ("message", "error", "detail", "title") if value.get(key)), None)
    return f" The server says: {quote(value).rstrip('.')}." if isinstance(value, str) and value.strip() else ""


def _what_is_missing(call: Call[Any]) -> str:
    if call.path in {"/v1/agents", "/v1/events"}:
        return "The API is not there. Check the connection's host: it must be the API's base URL."
    return (
        "The agent does not exist, or the key does not own it. Check the agent's id (`airflow agents list` shows the "
        "agents of the key), and the connection's host if every request is answered so."
    )


def _raise_for_status(
    call: Call[Any], status_code: int, headers: Mapping[str, str], body: bytes, server_time: datetime | None
) -> NoReturn:
    words = _words(body)

    def said(text: str, words: str = words) -> str:
        # What happened comes first: Airflow's page cuts long lines.
        return f"{status_code}: {text}{words} {asked(call)}"

    retry_after = read_retry_after(headers.get("retry-after"), server_time)
    match status_code:
        case 401:
            raise AuthenticationError(
                said(
                    "The API key of the connection is missing, wrong or revoked. "
                    "Put a valid key in the connection's password (API key)."
                ),
                status_code=status_code,
            )
        case 403:
            raise PermissionDeniedError(
                said("The API key is valid but may not do this. Use a key that owns the agent."),
                status_code=status_code,
            )
        case 404:
            raise NotFoundError(said(_what_is_missing(call)), status_code=status_code)
        case 429:
            raise RateLimitedError(said("Too many requests for now."), retry_after_seconds=retry_after)
        case 408 | 425:
            raise ServerError(
                said("The server did not take the request in time."),
                status_code=status_code,
                retry_after_seconds=retry_after,
            )
        case _ if 300 <= status_code < 400:  # noqa: PLR2004 - HTTP's own classes
            raise RequestRejectedError(
                said(
                    f"The server redirects to {quote(headers.get('location') or 'nowhere', 100)!r}, and the key is not "
                    "sent after a redirect. Set the connection's host to the address the API really has.",
                    words="",
                ),
                status_code=status_code,
            )
        case _ if status_code >= 500 and status_code not in {501, 505}:  # noqa: PLR2004 - HTTP's own classes
            raise ServerError(
                said("The server, or a gateway before it, failed."),
                status_code=status_code,
                retry_after_seconds=retry_after,
            )
        case _:
            raise RequestRejectedError(said("The server refuses the request."), status_code=status_code)
