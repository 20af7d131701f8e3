"""How to read an answer: its value, or the error that fits. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import ValidationError

from airflow_provider_agents.api.body import MAX_ERROR_BYTES, BodyError, read_json, size_bytes_of
from airflow_provider_agents.api.errors import (
    AuthenticationError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    UnreadableAnswerError,
    first_error,
    one_line,
)
from airflow_provider_agents.api.flow import ApiCall, Response
from airflow_provider_agents.api.models import Page, is_plausible
from airflow_provider_agents.clock import now

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

#: The longest `Retry-After` that is believed, in seconds. Beyond an hour it is a mistake or an attack.
MAX_RETRY_AFTER_SECONDS = 3600.0


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


def read_response(call: ApiCall[T], status_code: int, headers: Mapping[str, str], body: bytes) -> Response[T]:
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
        size_bytes = size_bytes_of(body) if isinstance(value, Page) and value.nextToken else 0
        return Response(value, server_time, size_bytes)
    except BodyError as error:
        raise unreadable(call, status_code, headers, f"{error}.") from None
    except ValidationError as error:
        reason = first_error(error)
    except (KeyError, TypeError, IndexError):
        reason = f"no `data` in {type(decoded).__name__}"
    newer = "If the API has changed, a newer version of this provider may read it."
    raise unreadable(call, status_code, headers, f"is not what the API describes: {reason}. {newer}")


def unreadable(call: ApiCall[Any], status_code: int, headers: Mapping[str, str], reason: str) -> UnreadableAnswerError:
    """The error for a success that cannot be read.

    Args:
        call: what was asked.
        status_code: the HTTP status.
        headers: of the answer. A page of a gateway in maintenance can come with a `Retry-After`.
        reason: goes on from "the answer", to the end of its last sentence.
    """
    return UnreadableAnswerError(
        f"The answer ({status_code}) {reason} {call.sentence}",
        status_code=status_code,
        retry_after_seconds=read_retry_after(headers.get("retry-after"), read_http_date(headers.get("date"))),
    )


def _shape_of(headers: Mapping[str, str], body: bytes) -> str:
    kind = one_line(headers.get("content-type") or "no content type", 60)
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
    return f" The server says: {one_line(value).rstrip('.')}." if isinstance(value, str) and value.strip() else ""


def _what_is_missing(call: ApiCall[Any]) -> str:
    if call.path in {"/v1/agents", "/v1/events"}:
        return "The API is not there. Check the connection's host: it must be the API's base URL."
    return (
        "The agent does not exist, or the key does not own it. Check the agent's id (`airflow agents list` shows the "
        "agents of the key), and the connection's host if every request is answered so."
    )


def _raise_for_status(
    call: ApiCall[Any], status_code: int, headers: Mapping[str, str], body: bytes, server_time: datetime | None
) -> NoReturn:
    words = _words(body)

    def said(text: str, words: str = words) -> str:
        # What happened comes first: Airflow's page cuts long lines.
        return f"{status_code}: {text}{words} {call.sentence}"

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
                    f"The server redirects to {one_line(headers.get('location') or 'nowhere', 100)!r}, and the key is "
                    "not sent after a redirect. Set the connection's host to the address the API really has.",
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
