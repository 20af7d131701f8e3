"""All errors of the package, as one tree, split by what the caller should do.

    AgentsError
    ├── InvalidArgumentError        an argument is wrong; nothing was sent (also a ValueError)
    ├── InvalidConnectionError      the connection is wrong; nothing was sent (also a ValueError)
    │   └── MissingConnectionError  Airflow reports that it does not exist
    ├── TemporaryError              worth trying again, after `retry_after_seconds` if the server named a pause
    │   ├── NotSentError            no connection was made: the platform has not seen the request
    │   ├── NoAnswerError           sent, but the response was lost: the platform may have acted
    │   ├── RateLimitedError        429: refused for now, not acted on
    │   ├── ServerError             5xx: the platform may have acted
    │   └── UnreadableAnswerError   a success whose body is not what the API describes
    ├── PermanentError              fails the same way again
    │   ├── AuthenticationError     401
    │   ├── PermissionDeniedError   403
    │   ├── NotFoundError           404
    │   ├── RequestRejectedError    any other status that is neither a success, 429 nor 5xx
    │   └── PaginationError         a listing does not end
    ├── AgentBusyError              a run of the agent is active, and the task is to start none then
    ├── BudgetExceededError         a budget leaves no room for another run; nothing was started
    └── AgentRunError               about one run
        ├── AgentRunFailedError     the run ended with another status than COMPLETED
        ├── AgentRunTimeoutError    the run was not finished at the deadline; it may still be running
        ├── AgentRunNotFoundError   accepted, but its event did not appear; it may still be running
        └── AmbiguousAgentRunError  several runs could be it, and it is not known which one is

No message holds the API key. Server-written text is quoted as a short single line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pydantic import ValidationError

E = TypeVar("E", bound=BaseException)

#: The most characters of server-written text in a message: about one sentence.
ONE_LINE_LIMIT = 200


def one_line(text: str, limit: int = ONE_LINE_LIMIT) -> str:
    """Server-written text made safe for a log: one line, printable, at most `limit` characters."""
    # Cut before cleaning: `text` may be megabytes.
    clean = "".join(c if c.isprintable() else " " for c in text[: limit * 4])
    clean = " ".join(clean.split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def shown(value: object) -> str:
    """A value in a message: as it would be written in Python, so that blanks show, and short."""
    try:
        return one_line(repr(value), 60)
    except Exception:  # noqa: BLE001 - a user's class may raise anything here
        return f"an object of {type(value).__name__}"


def quote_setting(value: object, limit: int) -> str:
    """A setting's value for an error message; only a description if it may hold a password.

    In a URI that is written wrongly, a value can include the next field, such as a proxy with its password.
    """
    text = value if isinstance(value, str) else repr(value)
    if "@" in text:
        return "a value with an @, which may hold a password"
    shown = one_line(text, limit)
    return repr(shown) if isinstance(value, str) else shown


def first_error(error: ValidationError) -> str:
    """The first reason why a value does not fit its model: the field and the reason, without the value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole"
    return f"{one_line(field, 80)}: {one_line(first['msg'].removeprefix('Value error, '))}"


def without_frames(error: E) -> E:
    """The error without its traceback and its cause, because their variables can hold the key.

    Raise it outside the handler that caught it, from a frame whose variables hold no secret.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class AgentsError(Exception):
    """Base of all errors of this package.

    Attributes:
        is_retryable: whether a new try can succeed. If not, a task fails without retries.
    """

    is_retryable: ClassVar[bool] = True


class InvalidArgumentError(AgentsError, ValueError):
    """An argument cannot be used. Nothing was sent."""

    is_retryable = False


class InvalidConnectionError(AgentsError, ValueError):
    """The connection cannot be used. Nothing was sent."""

    is_retryable = False


class MissingConnectionError(InvalidConnectionError):
    """Airflow reports that the connection does not exist. It also reports so while its own API server restarts."""

    is_retryable = True


class TemporaryError(AgentsError):
    """Trying again may help.

    Attributes:
        retry_after_seconds: the pause that the server asked for; None if it asked for none.
        status_code: the HTTP status; None without a response.
    """

    def __init__(
        self, message: str, *, retry_after_seconds: float | None = None, status_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.status_code = status_code


class NotSentError(TemporaryError):
    """No connection was made, so the platform cannot have acted."""


class NoAnswerError(TemporaryError):
    """The request was sent and the response was lost, so the platform may have acted."""


class RateLimitedError(TemporaryError):
    """429: the platform refused the request for now and did not act."""


class ServerError(TemporaryError):
    """5xx: the server, or a gateway in front of it, failed, perhaps after the platform had acted."""


class UnreadableAnswerError(TemporaryError):
    """A success whose body is not what the API describes: HTML, cut JSON, a wrong type, too large."""


class PermanentError(AgentsError):
    """Trying again fails the same way.

    Attributes:
        status_code: the HTTP status; None where no single response is the cause.
    """

    is_retryable = False

    def __init__(self, message: str, *, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


class AuthenticationError(PermanentError):
    """401: the key is missing, wrong or revoked."""


class PermissionDeniedError(PermanentError):
    """403: the key is known and may not do this."""


class NotFoundError(PermanentError):
    """404: the agent does not exist, or the key does not own it."""


class RequestRejectedError(PermanentError):
    """A status that is neither a success nor temporary. Includes redirects, which are never followed."""


class PaginationError(PermanentError):
    """A listing repeats its `nextToken`, or has more pages than the limit."""


class AgentBusyError(AgentsError):
    """A run of the agent is active, or the task's turn to start one did not come in time. Nothing was started."""


class BudgetExceededError(AgentsError):
    """A budget leaves no room for another run. Nothing was started.

    Attributes:
        room_at: after which moment there is room again, if no more runs are started; None if that is not known.
    """

    is_retryable = False

    def __init__(self, message: str, *, room_at: datetime | None = None) -> None:
        super().__init__(message)
        self.room_at = room_at


class AgentRunError(AgentsError):
    """A run did not give the task its result.

    Attributes:
        agent_id: the agent.
        request_id: the `requestId` of the execute; None if it is not known.
        event_ids: the events of the run, or those that could be it.
    """

    def __init__(
        self, message: str, *, agent_id: str, request_id: str | None = None, event_ids: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.agent_id = agent_id
        self.request_id = request_id
        self.event_ids = tuple(event_ids)


class AgentRunFailedError(AgentRunError):
    """The run has ended and its status is not COMPLETED."""


class AgentRunTimeoutError(AgentRunError):
    """The deadline passed before the run ended. The run cannot be cancelled and may still be running."""


class AgentRunNotFoundError(AgentRunError):
    """No event of the run appeared in time. The run may still have started."""


class AmbiguousAgentRunError(AgentRunError):
    """Several events could be the run. They ended differently, or `on_ambiguous="fail"` forbids a choice."""

    is_retryable = False
