"""The provider's time in a test that moves time by hand."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_provider_agents import clock

if TYPE_CHECKING:
    from collections.abc import Callable


class OwnTime(clock.SystemClock):
    """The test's time of day and pauses, and the running event loop's timers."""

    def __init__(self, now: Callable[[], datetime], sleep: Callable[[float], None] | None) -> None:
        self._now, self._sleep = now, sleep

    def now(self) -> datetime:
        return self._now()

    def sleep(self, seconds: float) -> None:
        assert self._sleep is not None, "this test's time cannot pass"
        self._sleep(seconds)


_kept = contextlib.ExitStack()


def keep_time(
    now: Callable[[], datetime] = lambda: datetime.now(UTC), sleep: Callable[[float], None] | None = None
) -> None:
    """Let the provider's time be this, up to the next call or the end of the test.

    Args:
        now: the time of day, aware; a `ManualClock`, for example.
        sleep: lets seconds pass; by default `now.advance`.
    """
    end_time()
    sleep = getattr(now, "advance", None) if sleep is None else sleep
    _kept.enter_context(clock.replaced_by(OwnTime(now, sleep)))


def end_time() -> None:
    """Give the provider the system's time again."""
    _kept.close()
