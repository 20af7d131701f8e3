"""The provider's time in a test that moves time by hand."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from airflow_provider_agents import clock


class OwnTime(clock.SystemClock):
    """The test's time of day and pauses, and the running event loop's timers."""

    def __init__(self, now, sleep):
        self.now, self.sleep = now, sleep


_kept = contextlib.ExitStack()


def keep_time(now=lambda: datetime.now(UTC), sleep=None):
    """Let the provider's time be this, up to the next call or the end of the test.

    Args:
        now: the time of day, aware; a `ManualClock`, for example.
        sleep: lets seconds pass; by default `now.advance`.
    """
    end_time()
    sleep = getattr(now, "advance", None) if sleep is None else sleep
    _kept.enter_context(clock.replaced_by(OwnTime(now, sleep)))


def end_time():
    """Give the provider the system's time again."""
    _kept.close()
