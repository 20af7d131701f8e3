"""Budget: how much runs may use in a period. Imports nothing beyond the standard library, as connections use it too."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, Self

from airflow_provider_agents.api.errors import InvalidArgumentError, quote_setting

if TYPE_CHECKING:
    from datetime import tzinfo

#: A longer period is a mistake: all runs of the period are read before each start.
_LONGEST = timedelta(days=366)
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much the runs of a period may use before no more are started. At least one limit is needed.

    Every run in the platform's listing counts, also one that another party started.

    Attributes:
        runs: the most runs, from 1.
        browser_seconds: the most browser seconds, above 0. Active runs count with what they show so far.
        failures: the most failed runs in a row, newest first, from 1. Active runs are left out.
        per: the period: a `timedelta` (at most 366 days) that ends now, or the current `"day"` or `"hour"` in the DAG's
            time zone.
        of: whose runs count: those of the task's `"agent"`, or of the whole `"account"`.
        over: what happens to a task when the budget is used up: `"fail"` (without retries), or `"skip"`.

    Raises:
        InvalidArgumentError: a value cannot be used, or there is no limit.
    """

    runs: int | None = None
    browser_seconds: float | None = None
    failures: int | None = None
    per: timedelta | Literal["day", "hour"] = "day"
    of: Literal["agent", "account"] = "agent"
    over: Literal["fail", "skip"] = "fail"

    def __post_init__(self) -> None:
        for name in ("runs", "failures"):
            _must(_is_count(getattr(self, name)), name, getattr(self, name), "a whole number from 1")
        _must(_is_amount(self.browser_seconds), "browser_seconds", self.browser_seconds, "a number of seconds above 0")
        per: object = self.per
        is_length = isinstance(per, timedelta) and timedelta(0) < per <= _LONGEST
        words = "'day', 'hour', or a timedelta above 0 of at most 366 days (in a connection: a number of seconds)"
        _must(is_length or _is_one_of(per, "day", "hour"), "per", per, words)
        _must(_is_one_of(self.of, "agent", "account"), "of", self.of, "'agent' or 'account'")
        _must(_is_one_of(self.over, "fail", "skip"), "over", self.over, "'fail' or 'skip'")
        if self.runs is None and self.browser_seconds is None and self.failures is None:
            raise InvalidArgumentError("A Budget needs a limit. Set runs, browser_seconds or failures.")

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a connection's budget: a JSON object with the same names, or its text. `per` may be seconds.

        Raises:
            InvalidArgumentError: it is something else.
        """
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        if not isinstance(value, dict):
            raise InvalidArgumentError('A budget must be a JSON object. Write it like {"runs": 20, "per": "day"}.')
        names = [field.name for field in fields(cls)]
        unknown = [name for name in value if name not in names]
        if unknown:
            raise InvalidArgumentError(
                f"A budget has no field {quote_setting(unknown[0], 40)}. Its fields are {', '.join(names)}."
            )
        given = {name: one for name, one in value.items() if one is not None}
        per = given.get("per")
        if isinstance(per, int | float) and not isinstance(per, bool) and 0 < per <= _LONGEST.total_seconds():
            given["per"] = timedelta(seconds=per)
        return cls(**given)

    def begin_at(self, at: datetime, zone: tzinfo) -> datetime:
        """When the period began that holds a moment, in UTC. A day of a time zone can have 23 or 25 hours."""
        if isinstance(self.per, timedelta):
            return at.astimezone(UTC) - self.per
        local = at.astimezone(zone)
        if self.per == "hour":
            offset = local.utcoffset() or timedelta(0)
            return at.astimezone(UTC) - (at.astimezone(UTC) + offset - datetime(1970, 1, 1, tzinfo=UTC)) % _HOUR
        return _midnight(local, zone)

    def end_at(self, at: datetime, zone: tzinfo) -> datetime | None:
        """When the period ends, in UTC; None for a `timedelta`, whose period moves on."""
        if isinstance(self.per, timedelta):
            return None
        if self.per == "hour":
            return self.begin_at(at, zone) + _HOUR
        return _midnight(at.astimezone(zone) + timedelta(days=1), zone)


def _midnight(local: datetime, zone: tzinfo) -> datetime:
    # The first moment of a day that skips midnight is the moment at which the clocks change.
    return datetime(local.year, local.month, local.day, tzinfo=zone).astimezone(UTC)


def _must(holds: bool, name: str, value: object, words: str) -> None:
    if not holds:
        raise InvalidArgumentError(f"{name} of a Budget must be {words}, got {quote_setting(value, 60)}.")


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _is_amount(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf)


def _is_one_of(value: object, *choices: str) -> bool:
    return isinstance(value, str) and value in choices
