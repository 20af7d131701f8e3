"""How long after its acceptance a run's event was first seen. Pure.

All that is inferred rests on one assumption: the event appears within `settle`. This measures how close that comes.
"""

from __future__ import annotations

#: An event that appears after this share of `settle` is a reason to raise `settle`: a load twice as high as today's
#: could make the next event late.
SLOW_SHARE = 0.8
#: A look that shows the event says when it appeared only if an earlier look, after at least this share of the same
#: time, did not show it. A trigger that starts again after an hour has seen nothing in between.
_KNOWN_SHARE = 0.5


class Appearance:
    """When the first event that can be a run's was seen.

    Args:
        settle: seconds within which it should be.

    Attributes:
        seconds: from acceptance to the first look that showed it, to about a second; None if that is not known.
    """

    __slots__ = ("_is_over", "_missing_until", "_slow_after", "seconds")

    def __init__(self, settle: float) -> None:
        self._slow_after = SLOW_SHARE * settle
        self._missing_until = 0.0
        self._is_over = False
        self.seconds: float | None = None

    def look(self, passed: float, *, is_shown: bool) -> None:
        """Take in a look.

        Args:
            passed: seconds from acceptance to its begin.
            is_shown: whether it showed an event that can be the run's.
        """
        if self._is_over:
            return
        if not is_shown:
            self._missing_until = passed
            return
        self._is_over = True
        if passed <= self._slow_after or self._missing_until >= _KNOWN_SHARE * passed:
            self.seconds = max(0.0, passed)

    @property
    def is_slow(self) -> bool:
        """Whether the event came later than `SLOW_SHARE` of `settle`."""
        return self.seconds is not None and self.seconds > self._slow_after
