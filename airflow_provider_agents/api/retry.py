"""Whether a call may be repeated after a failure, and when. Pure.

An execute is repeated only where the platform cannot have acted. `started_nothing` is that rule, for every caller.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_agents import clock
from airflow_provider_agents.api.errors import (
    AgentsError,
    InvalidArgumentError,
    InvalidConnectionError,
    NotSentError,
    PermanentError,
    RateLimitedError,
    TemporaryError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_provider_agents.api.flow import ApiCall

E = TypeVar("E", bound=AgentsError)

#: Tries of one call on a worker, the first included.
ATTEMPTS = 5
#: The longest single pause on a worker, in seconds. If the server asks for a longer pause, the call fails: a sleeping
#: task would keep its worker slot.
MAX_PAUSE_SECONDS = 60.0
#: The longest pause on a worker without `Retry-After`, in seconds: a window of `START_PATIENCE_SECONDS` has some tries
#: left after it.
MAX_BACKOFF_SECONDS = 20.0
#: Seconds for which a worker retries while no run is started: longer than a rolling deploy of a web service with its
#: health checks. Nothing is paid for yet, so a longer wait would only keep the worker slot.
START_PATIENCE_SECONDS = 120.0
#: Seconds between two warnings about the same failures.
_WARN_EVERY = timedelta(seconds=60)
#: Request Timeout and Too Early: a gateway may send them although the server behind it has acted.
_REFUSED_IN_DOUBT = frozenset({408, 425})


def equal_jitter() -> float:
    """A factor for a pause, from 0.5 to 1: callers that failed together do not come back together.

    Half of the pause is fixed and half is random, as the "equal jitter" of AWS's article "Exponential Backoff And
    Jitter" (2015). With "full jitter" a pause could be none.
    """
    return random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def back_off(
    failures: int,
    *,
    first: float = 1.0,
    longest: float = MAX_BACKOFF_SECONDS,
    jitter: Callable[[], float] = equal_jitter,
) -> float:
    """Seconds to pause after some failures in a row, where the server asks for no pause.

    Args:
        failures: how many, from 1. Each one doubles the pause.
        first: seconds after the first failure, without jitter.
        longest: seconds at most, but not less than `first`.
        jitter: the factor.
    """
    # 2 ** 16 seconds are longer than any pause, and larger powers would overflow in the end.
    return min(first * 2.0 ** min(failures - 1, 16), max(first, longest)) * jitter()


def may_repeat(call: ApiCall[Any], error: BaseException) -> bool:
    """Whether `call` may be sent again after `error`: no harm is possible, and success is."""
    return isinstance(error, TemporaryError) and (call.idempotent or started_nothing(error))


def started_nothing(error: AgentsError) -> bool:
    """Whether an execute that failed with `error` has certainly started no run.

    True if nothing was sent, or if the server refused the request: a 3xx, or a 4xx other than 408 and 425.
    """
    if isinstance(error, NotSentError | RateLimitedError | InvalidArgumentError | InvalidConnectionError):
        return True
    status_code = error.status_code if isinstance(error, PermanentError | TemporaryError) else None
    return status_code is not None and 300 <= status_code < 500 and status_code not in _REFUSED_IN_DOUBT  # noqa: PLR2004 - HTTP's own classes


def retry_after_of(error: BaseException | None) -> float | None:
    """The seconds of the `Retry-After` that came with `error`; None without one."""
    return error.retry_after_seconds if isinstance(error, TemporaryError) else None


def append_sentence(error: E, sentence: str) -> E:
    """The same error with one more sentence in its text."""
    error.args = (f"{_sentence(error)} {sentence}",)
    return error


def _sentence(error: AgentsError) -> str:
    # Some texts end with server-written words, which may lack a full stop.
    text = str(error)
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


class RetryCount:
    """How often one call is tried.

    Args:
        attempts: tries, the first included; from 1.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts, self._failures = attempts, 0

    def succeeded(self) -> None:
        """End the row of failures."""
        self._failures = 0

    def pause_after(self, error: AgentsError) -> float:
        """Seconds to wait before the next try.

        Raises:
            AgentsError: `error`, if it was the last try, or the server asks for more than `MAX_PAUSE_SECONDS`.
        """
        self._failures += 1
        asked_for = retry_after_of(error) or 0.0
        if self._failures >= self._attempts or asked_for > MAX_PAUSE_SECONDS:
            raise error
        return max(asked_for, back_off(self._failures))


class RetryWindow:
    """How long failures are retried while no run is started.

    Failures in a row may last `seconds`; a success ends the row.

    Args:
        seconds: above 0.
        warn: called with a warning at the first failure in a row, and then once a minute.
    """

    def __init__(self, seconds: float, *, warn: Callable[[str], object]) -> None:
        self._seconds, self._warn = seconds, warn
        self._failures = 0
        self._failing_since: datetime | None = None
        self._warned_at: datetime | None = None

    def succeeded(self) -> None:
        """End the row of failures."""
        self._failures, self._failing_since, self._warned_at = 0, None, None

    def pause_after(self, error: AgentsError, state: str = "") -> float:
        """Seconds to wait before the next try. The last try is at the end of the window.

        Args:
            error: why the last try failed.
            state: one more sentence for the warning, such as what has not happened yet.

        Raises:
            AgentsError: `error`, if the window has ended, or will end within the pause that the server asks for.
        """
        now = clock.now()
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = now
        ends_at = self._failing_since + timedelta(seconds=self._seconds)
        left = (ends_at - now).total_seconds()
        retry_after = retry_after_of(error) or 0.0
        if left <= 0:
            raise append_sentence(error, f"Every try of the last {self._seconds:g} seconds has failed.")
        if retry_after > left:
            raise append_sentence(
                error,
                f"The server asks for a pause of {retry_after:g} seconds, and this task tries for {left:.0f} more.",
            )
        if self._warned_at is None or now - self._warned_at >= _WARN_EVERY:
            self._warned_at = now
            self._warn(" ".join(filter(None, (_sentence(error), state, f"Trying again until {ends_at:%H:%M:%S} UTC."))))
        return min(max(retry_after, back_off(self._failures)), left)
