"""Long listings that resume at the page where a failure interrupted them. Pure.

A rate limit, or a blip, may interrupt a listing after thirty pages of forty. A listing that began anew each time would
never reach its end. A resumed listing shows what it would have shown without the interruption: all that had been
created when its first page was asked for, to those who sought at that time. It says nothing about later events.
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

#: Seconds after its first page in which a listing is resumed. At three requests a minute, the most pages that a listing
#: may have take as long.
MOST_SECONDS = 6 * 3600.0
#: A page that has failed this many times in a row is not asked for again: its token may be
#: what the server fails at. A rate limit does not count.
MOST_FAILURES = 3


class Progress(Protocol):
    """How far a listing was read."""

    @property
    def at(self) -> ClockReading:
        """When its first page was asked for."""

    @property
    def pages(self) -> int:
        """How many pages were read."""


P = TypeVar("P", bound=Progress)


class InterruptedListings:
    """The listings that a failure has interrupted."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Any, int]] = {}

    def resume(
        self,
        key: Hashable,
        at: ClockReading,
        begin: Callable[[], P],
        read: Callable[[P], Flow[Any]],
        *,
        is_of_use: Callable[[P], bool] = lambda _: True,
    ) -> Flow[P]:
        """Read a listing to its end, from the page where an earlier call was interrupted.

        Args:
            key: the same key always stands for the same listing.
            at: now.
            begin: the progress before the first page.
            read: reads the pages that come next.
            is_of_use: whether a subscription still needs the rest of an interrupted listing.

        Raises:
            AgentsError: as `read` does. After a failure that may pass, the next call resumes.
        """
        progress, failures = self._kept.pop(key, (None, 0))
        if progress is not None and at.monotonic - progress.at.monotonic <= MOST_SECONDS and is_of_use(progress):
            before = progress.pages
            try:
                yield from read(progress)
            except PermanentError as error:
                if isinstance(error, AuthenticationError):
                    self._keep(key, progress, failures)
                if isinstance(error, AuthenticationError) or progress.pages > before:
                    raise
                log.info("A listing cannot be resumed and is read from its first page again: %s", error)
            except TemporaryError as error:
                self._keep(key, progress, 0 if progress.pages > before else failures, error)
                raise
            else:
                return progress  # type: ignore[no-any-return]  # what is kept under a key is what was begun for it
        progress = begin()
        try:
            yield from read(progress)
        except (TemporaryError, AuthenticationError) as error:
            self._keep(key, progress, 0, error)
            raise
        return progress

    def _keep(self, key: Hashable, progress: Progress, failures: int, error: AgentsError | None = None) -> None:
        failures += isinstance(error, TemporaryError) and not isinstance(error, RateLimitedError | NotSentError)
        if progress.pages and failures < MOST_FAILURES:
            self._kept[key] = progress, failures

    def is_under_way(self, key: Hashable) -> bool:
        """Whether a listing was interrupted."""
        return key in self._kept

    def expire(self, at: ClockReading) -> None:
        """Drop what is too old to be resumed."""
        for key in [
            key for key, (progress, _) in self._kept.items() if at.monotonic - progress.at.monotonic > MOST_SECONDS
        ]:
            del self._kept[key]
