"""How to read a response: its value, or the error that fits. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from airflow_provider_agents.api.body import MAX_ERROR_BYTES, BodyError, read_json, size_bytes_of
from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    NotFoundError,
    PermanentError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    TemporaryError,
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

#: A longer `Retry-After`, in seconds, counts as this: beyond an hour it is a mistake or an attack.
MAX_RETRY_AFTER_SECONDS = 3600.0


def read_http_date(value: str | None) -> datetime | None:
    """An HTTP date in UTC; None if it cannot be read, or is not plausible."""
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
    """The seconds of a `Retry-After`, from 0 to 3,600; None if it cannot be read.

    A date is compared with the `Date` of the same response, so that our clock does not matter.
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
    """Read an HTTP response.

    Args:
        call: the request.
        status_code: the HTTP status.
        headers: their names in lower case.
        body: decoded from its transfer and content encodings.

    Raises:
        UnreadableAnswerError: a success whose body is not what the API describes.
        AgentsError: the subclass that fits any other status.
    """
    server_time = read_http_date(headers.get("date"))
    if not 200 <= status_code < 300:  # noqa: PLR2004 - HTTP's own classes
        raise _error_for(call, status_code, headers, body, server_time)
    try:
        decoded = read_json(body)
    except BodyError as error:
        raise unreadable(call, status_code, headers, f"{error}.") from None
    except ValueError:
        reason = (
            f"is not JSON ({_describe_body(headers, body)}). "
            "Check that the connection's host is the API's base URL and that nothing in between rewrites its responses."
        )
        raise unreadable(call, status_code, headers, reason) from None
    try:
        value = call.read(decoded)
        # Only `paginate` uses the size, of pages that have a next one, and the estimate takes time.
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
        call: the request.
        status_code: the HTTP status.
        headers: of the response. A gateway in maintenance can send a page with a `Retry-After`.
        reason: continues the sentence "The response …", with its full stop.
    """
    return UnreadableAnswerError(
        f"The response ({status_code}) {reason} {call.sentence}",
        status_code=status_code,
        retry_after_seconds=read_retry_after(headers.get("retry-after"), read_http_date(headers.get("date"))),
    )


def _describe_body(headers: Mapping[str, str], body: bytes) -> str:
    kind = one_line(headers.get("content-type") or "no content type", 60)
    return f"{kind}, {len(body):,} bytes" + (", cut short or damaged" if body[:1] in {b"{", b"["} else "")


def _server_words(body: bytes) -> str:
    """The message of an error body in one of the usual forms. The API's page does not document any."""
    try:
        value = read_json(body[:MAX_ERROR_BYTES])
    except ValueError:
        return ""
    for _ in range(3):
        if isinstance(value, dict):
            value = next((value[key] for key in ("message", "error", "detail", "title") if value.get(key)), None)
    return f" The server says: {one_line(value).rstrip('.')}." if isinstance(value, str) and value.strip() else ""


def _not_found_text(call: ApiCall[Any]) -> str:
    if call.path in {"/v1/agents", "/v1/events"}:
        return "The API is not there. Check the connection's host: it must be the API's base URL."
    return (
        "The agent does not exist, or the key does not own it. Check the agent's id (`airflow agents list` shows the "
        "agents of the key), and the connection's host if every request fails like this."
    )


def _error_for(
    call: ApiCall[Any], status_code: int, headers: Mapping[str, str], body: bytes, server_time: datetime | None
) -> AgentsError:
    words = _server_words(body)
    retry_after = read_retry_after(headers.get("retry-after"), server_time)

    def permanent(kind: type[PermanentError], text: str) -> PermanentError:
        # The event comes first, because Airflow's page cuts long lines.
        return kind(f"{status_code}: {text} {call.sentence}", status_code=status_code)

    def temporary(kind: type[TemporaryError], text: str) -> TemporaryError:
        message = f"{status_code}: {text}{words} {call.sentence}"
        return kind(message, status_code=status_code, retry_after_seconds=retry_after)

    match status_code:
        case 401:
            text = "The API key of the connection is missing, wrong or revoked. Put a valid key in the connection's"
            return permanent(AuthenticationError, f"{text} password (API key).{words}")
        case 403:
            text = f"The API key is valid but may not do this. Use a key that owns the agent.{words}"
            return permanent(PermissionDeniedError, text)
        case 404:
            return permanent(NotFoundError, f"{_not_found_text(call)}{words}")
        case 429:
            return temporary(RateLimitedError, "Too many requests for now.")
        case 408 | 425:
            return temporary(ServerError, "The server did not take the request in time.")
        case _ if 300 <= status_code < 400:  # noqa: PLR2004 - HTTP's own classes
            # Without the server's words: they would be a page about the redirect.
            target = one_line(headers.get("location") or "nowhere", 100)
            text = f"The server redirects to {target!r}, and the key is not sent after a redirect. Set the connection's"
            return permanent(RequestRejectedError, f"{text} host to the address the API really has.")
        case _ if status_code >= 500 and status_code not in {501, 505}:  # noqa: PLR2004 - HTTP's own classes
            return temporary(ServerError, "The server, or a gateway before it, failed.")
        case _:
            return permanent(RequestRejectedError, f"The server refuses the request.{words}")
