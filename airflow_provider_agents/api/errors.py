"""Everything that can go wrong, as one tree, split by what the caller should do.

    AgentsError
    ├── InvalidArgumentError        an argument is wrong; nothing was sent (also a ValueError)
    ├── InvalidConnectionError      the connection is wrong; nothing was sent (also a ValueError)
    │   └── MissingConnectionError  Airflow says that it does not exist
    ├── TemporaryError              worth trying again, after `retry_after_seconds` if that is known
    │   ├── NotSentError            no connection was made: the platform has not seen the request
    │   ├── NoAnswerError           sent, but the answer was lost: the platform may have acted
    │   ├── RateLimitedError        429: refused for now, not acted on
    │   ├── ServerError             5xx: the platform may have acted
    │   └── UnreadableAnswerError   an answer came, but it is not what the API describes
    ├── PermanentError              will fail the same way again
    │   ├── AuthenticationError     401
    │   ├── PermissionDeniedError   403
    │   ├── NotFoundError           404
    │   ├── RequestRejectedError    any other status that is neither success, 429 nor 5xx
    │   └── PaginationError         a listing does not end
    └── AgentRunError               about one run
        ├── AgentRunFailedError     it ended, and not as COMPLETED
        ├── AgentRunTimeoutError    it was not over at the deadline; it may still go on
        ├── AgentRunNotFoundError   accepted, but no record of it has appeared; it may still run
        └── AmbiguousAgentRunError  several runs could be it, and they ended differently

No message holds the API key, and none quotes more than a short, single-line extract of what a server sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import ValidationError

E = TypeVar("E", bound=BaseException)

#: Characters of server-written text that a message may quote. Enough for a sentence, too little for a page.
ONE_LINE_LIMIT = 200


def one_line(text: str, limit: int = ONE_LINE_LIMIT) -> str:
    """Server-written text made safe for a log line: one line, printable, at most `limit` characters."""
    # Cut first: `text` may be megabytes.
    clean = "".join(c if c.isprintable() else " " for c in text[: limit * 4])
    clean = " ".join(clean.split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def quote_setting(value: object, limit: int) -> str:
    """A setting's value for an error message, or words in its place where it may hold a password.

    In a URI that is written wrongly, a value runs on into the next field, such as a proxy with its password.
    """
    text = value if isinstance(value, str) else repr(value)
    if "@" in text:
        return "a value with an @, which may hold a password"
    shown = one_line(text, limit)
    return repr(shown) if isinstance(value, str) else shown


def first_error(error: ValidationError) -> str:
    """Where and why a value does not fit its model, without the value: the place, then what is wrong there."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"]) or "the whole"
    return f"{one_line(place, 80)}: {one_line(fault['msg'].removeprefix('Value error, '))}"


def without_frames(error: E) -> E:
    """The error without the frames in which it arose, and without what it arose from: they can hold the key.

    Raise it outside the handler that caught it, from a frame whose variables hold no secret.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class AgentsError(Exception):
    """Base of all errors of this package.

    Attributes:
        is_retryable: whether a new try can end otherwise. If not, a task fails without retries.
    """

    is_retryable: ClassVar[bool] = True


class InvalidArgumentError(AgentsError, ValueError):
    """An argument cannot be used. Nothing was sent."""

    is_retryable = False


class InvalidConnectionError(AgentsError, ValueError):
    """The connection cannot be used. Nothing was sent."""

    is_retryable = False


class MissingConnectionError(InvalidConnectionError):
    """Airflow says that there is no such connection. It also says so while its own API server restarts."""

    is_retryable = True


class TemporaryError(AgentsError):
    """Trying again may help.

    Attributes:
        retry_after_seconds: how long the server asked to wait, or None if it did not say.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotSentError(TemporaryError):
    """No connection was made, so the platform cannot have acted."""


class NoAnswerError(TemporaryError):
    """The request went out and the answer was lost, so the platform may have acted."""


class RateLimitedError(TemporaryError):
    """429: the platform refused the request for now and did not act."""


class ServerError(TemporaryError):
    """5xx: something failed behind the API, perhaps after it had acted.

    Attributes:
        status_code: the HTTP status.
    """

    def __init__(self, message: str, *, status_code: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.status_code = status_code


class UnreadableAnswerError(TemporaryError):
    """An answer arrived that is not what the API describes: HTML, cut JSON, a wrong type, too large.

    Attributes:
        status_code: the HTTP status it came with.
    """

    def __init__(self, message: str, *, status_code: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.status_code = status_code


class PermanentError(AgentsError):
    """Trying again will fail the same way.

    Attributes:
        status_code: the HTTP status, or None where no single answer is to blame.
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
    """A status that is neither success nor temporary, a redirect included: redirects are never followed."""


class PaginationError(PermanentError):
    """A listing repeats its `nextToken` or goes on beyond the stated bound of pages."""


class AgentRunError(AgentsError):
    """A run did not give the task what it wanted.

    Attributes:
        agent_id: the agent.
        request_id: what the API answered to the execute, if it did.
        event_ids: the events that are, or could be, the run.
    """

    def __init__(
        self, message: str, *, agent_id: str, request_id: str | None = None, event_ids: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.agent_id = agent_id
        self.request_id = request_id
        self.event_ids = tuple(event_ids)


class AgentRunFailedError(AgentRunError):
    """The run is over and its status is not COMPLETED."""


class AgentRunTimeoutError(AgentRunError):
    """The deadline passed before the run was over. The run cannot be cancelled and may still go on."""


class AgentRunNotFoundError(AgentRunError):
    """No event of the run appeared in time. The run may have started all the same."""


class AmbiguousAgentRunError(AgentRunError):
    """Several events could be the run, and what they say differs."""

    is_retryable = False
