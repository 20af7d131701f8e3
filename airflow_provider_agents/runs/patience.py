"""Which failures end a wait, and when. Pure.

A paid run cannot be cancelled, so one refused poll must not end the wait for it: an ingress without a backend answers
404 for some seconds, a firewall 403, a maintenance page 302. A refusal is believed once the platform has answered
nothing else for `REFUSED_SECONDS`. Where the platform has not answered anything yet, a refusal is believed at once:
then it most likely is a wrong key or a wrong id.
"""

from __future__ import annotations

from copy import copy
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.api.errors import AgentsError, PermanentError
from airflow_provider_agents.api.retry import append_sentence

if TYPE_CHECKING:
    from datetime import datetime

#: Seconds of nothing but refusals after which a refusal is believed. A redeployed gateway or a rotated key takes
#: seconds to some minutes, and a person who waits for an error should not wait longer.
REFUSED_SECONDS = 300.0


def is_refusal(error: AgentsError) -> bool:
    """Whether an HTTP response shows that the request will fail the same way again (3xx, 4xx)."""
    return isinstance(error, PermanentError) and error.status_code is not None


class Patience:
    """What the polls of one wait show about its refusals.

    Args:
        answered: whether the platform has answered a request like those of this wait before.
    """

    __slots__ = ("_answered", "_refused_since")

    def __init__(self, *, answered: bool = True) -> None:
        self._answered = answered
        self._refused_since: datetime | None = None

    def succeeded(self) -> None:
        """A poll has succeeded."""
        self._answered, self._refused_since = True, None

    def failed(self, error: AgentsError, now: datetime) -> AgentsError | None:
        """A poll has failed.

        Returns:
            The error that ends the wait, or None if the next poll may succeed.
        """
        if not is_refusal(error):
            self._refused_since = None
            return None if error.is_retryable else error
        if not self._answered:
            return error
        since = self._refused_since = self._refused_since or now
        if now - since < timedelta(seconds=REFUSED_SECONDS):
            return None
        # Other waits share the error, and each adds its own sentence.
        return append_sentence(
            copy(error),
            f"Every request since {since:%Y-%m-%d %H:%M:%S} UTC was refused, for {(now - since).total_seconds():.0f} "
            "seconds.",
        )
