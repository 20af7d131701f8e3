"""Walks over long listings that resume at the page where a failure interrupted them. Pure.

A rate limit, or a blip, may end a walk after thirty pages of forty. A walk that began anew each time would never reach
its end. What a resumed walk has read in the end is what it would have read at its begin: it shows whatever had been
created when its first page was asked for, to those who sought at that time. Nothing is said about later events.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    NotSentError,
    PermanentError,
    RateLimitedError,
    TemporaryError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from airflow_provider_agents.api.flow import Flow
    from airflow_provider_agents.polling.subscriptions import ClockReading

log = logging.getLogger(__name__)

#: Seconds from the first page on for which a walk is resumed. At three requests a minute, as many pages as a walk may
#: have take as long.
MOST_SECONDS = 6 * 3600.0
#: A page that the server has answered with a failure so many times in a row is not asked for again: its token may be
#: what the server fails at. A rate limit does not count.
MOST_FAILURES = 3


class Walk(Protocol):
    """A walk under way, and what is known of it."""

    @property
    def at(self) -> ClockReading:
        """When its first page was asked for."""

    @property
    def pages(self) -> int:
        """How many pages were read."""


W = TypeVar("W", bound=Walk)


class Walks:
    """The walks that a failure has interrupted."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Any, int]] = {}

    def go(
        self,
        key: Hashable,
        at: ClockReading,
        begin: Callable[[], W],
        steps: Callable[[W], Flow[Any]],
        *,
        is_of_use: Callable[[W], bool] = lambda _: True,
    ) -> Flow[W]:
        """Follow a walk to its end, from where an earlier try has got to.

        Args:
            key: what is walked over. The same key always stands for the same listing.
            at: now.
            begin: makes the walk that starts at the first page.
            steps: the pages that are still to be read.
            is_of_use: whether anything still waits for the end of a walk that was begun before.

        Raises:
            AgentsError: as the walk does. After a failure that may pass, the next call resumes.
        """
        walk, failures = self._kept.pop(key, (None, 0))
        if walk is not None and at.monotonic - walk.at.monotonic <= MOST_SECONDS and is_of_use(walk):
            before = walk.pages
            try:
                yield from steps(walk)
            except PermanentError as error:
                if isinstance(error, AuthenticationError):
                    self._keep(key, walk, failures)
                if isinstance(error, AuthenticationError) or walk.pages > before:
                    raise
                log.info("A listing cannot be resumed and is read from its first page again: %s", error)
            except TemporaryError as error:
                self._keep(key, walk, 0 if walk.pages > before else failures, error)
                raise
            else:
                return walk  # type: ignore[no-any-return]  # what is kept under a key is what was begun for it
        walk = begin()
        try:
            yield from steps(walk)
        except (TemporaryError, AuthenticationError) as error:
            self._keep(key, walk, 0, error)
            raise
        return walk

    def _keep(self, key: Hashable, walk: Walk, failures: int, error: AgentsError | None = None) -> None:
        failures += isinstance(error, TemporaryError) and not isinstance(error, RateLimitedError | NotSentError)
        if walk.pages and failures < MOST_FAILURES:
            self._kept[key] = walk, failures

    def is_under_way(self, key: Hashable) -> bool:
        """Whether a walk was interrupted."""
        return key in self._kept

    def expire(self, at: ClockReading) -> None:
        """Drop what is too old to be resumed."""
        for key in [key for key, (walk, _) in self._kept.items() if at.monotonic - walk.at.monotonic > MOST_SECONDS]:
            del self._kept[key]
