"""Checks of the values that a caller sets.

Options, faults and agents also come as JSON over the control routes. A wrong value is refused where it is set, so that
no later request meets it.
"""

from __future__ import annotations

#: About 30 years. Longer times are mistakes, and could leave the range of a datetime.
MAX_SECONDS = 1e9


def check(ok: bool, name: str, wanted: str) -> None:
    """Refuse a value that is not ok.

    Raises:
        ValueError: `ok` is false; the message says what the value must be.
    """
    if not ok:
        raise ValueError(f"{name} must be {wanted}")


def is_whole(value: object, least: int) -> bool:
    """Whether the value is an integer, `least` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_seconds(value: object, least: float = 0.0) -> bool:
    """Whether the value is a number of seconds, `least` or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= MAX_SECONDS


def check_seconds(value: object, name: str) -> None:
    """Refuse a value that is neither a number of seconds nor a function that draws one.

    Raises:
        ValueError: the value is refused.
    """
    check(callable(value) or is_seconds(value), name, "a number of seconds, 0 or more")


def check_status(value: object, name: str) -> None:
    """Refuse a value that is neither a status nor a function that draws one.

    Raises:
        ValueError: the value is refused.
    """
    check(callable(value) or (isinstance(value, str) and value != ""), name, "a status")
