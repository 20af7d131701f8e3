"""May this call be repeated after that failure, and when. Pure.

Back-off comes from tenacity; what is ours is the one rule that it cannot know: an execute is repeated only where the
platform cannot have acted.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, wait_random_exponential
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from airflow_provider_agents.api.errors import NotSentError, RateLimitedError, TemporaryError

if TYPE_CHECKING:
    from airflow_provider_agents.api.calls import Call

#: Tries of one call on a worker, the first included.
ATTEMPTS = 5
#: The longest single pause on a worker, in seconds. A server that asks for more fails the call, and the error says how
#: long it asked for: a worker slot is too dear to sleep in.
MAX_PAUSE_SECONDS = 60.0
#: Pauses without `Retry-After` are drawn from 0 to 1, 2, 4, … seconds, at most this.
MAX_BACKOFF_SECONDS = 20.0

_backoff = wait_random_exponential(multiplier=1, max=MAX_BACKOFF_SECONDS)


def may_repeat(call: Call[Any], error: BaseException) -> bool:
    """Whether sending `call` again after `error` can neither do harm nor fail for certain."""
    if call.repeatable:
        return isinstance(error, TemporaryError)
    return isinstance(error, NotSentError | RateLimitedError)


def asked_pause(error: BaseException | None) -> float | None:
    """The pause in seconds that the server asked for with `error`, or None."""
    return error.retry_after_seconds if isinstance(error, TemporaryError) else None


def _failure(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


class PauseAsAsked(wait_base):
    """What the server asks for, and never less than a random exponential back-off."""

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds to wait before the next try."""
        return max(asked_pause(_failure(retry_state)) or 0.0, _backoff(retry_state))


class StopWhenAskedTooMuch(stop_base):
    """Give up when the server asks for a longer pause than a worker should sleep."""

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Whether this was the last try."""
        return (asked_pause(_failure(retry_state)) or 0.0) > MAX_PAUSE_SECONDS


def pause_after(error: BaseException, attempt: int) -> float:
    """Seconds to wait after try number `attempt` (from 1) failed with `error`, for those who keep their own count."""
    backoff = min(MAX_BACKOFF_SECONDS, 2.0 ** (attempt - 1))
    # Half fixed, half random: many tasks that failed together do not come back together.
    return max(asked_pause(error) or 0.0, backoff / 2 + random.uniform(0, backoff / 2))  # noqa: S311 - no secret
