"""Checks of what a caller sets.

Knobs, faults and agents also come as JSON over the control routes: a wrong one is refused where it is set, not met by
a later request.
"""

from __future__ import annotations

#: Longer times (some 30 years) are mistakes, and would leave the range of a datetime.
MAX_SECONDS = 1e9


def check(ok: bool, name: str, wanted: str) -> None:
    """Refuse what is not ok.

    Raises:
        ValueError: it names the value and what it must be.
    """
    if not ok:
        raise ValueError(f"{name} must be {wanted}")


def is_whole(value: object, least: int) -> bool:
    """Whether it is an integer, `least` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_seconds(value: object, least: float = 0.0) -> bool:
    """Whether it is a number of seconds, `least` or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= MAX_SECONDS


def check_seconds(value: object, name: str) -> None:
    """Refuse what is neither a number of seconds nor draws one.

    Raises:
        ValueError: it names the value.
    """
    check(callable(value) or is_seconds(value), name, "a number of seconds, 0 or more")


def check_status(value: object, name: str) -> None:
    """Refuse what is neither a status nor draws one.

    Raises:
        ValueError: it names the value.
    """
    check(callable(value) or (isinstance(value, str) and value != ""), name, "a status")
