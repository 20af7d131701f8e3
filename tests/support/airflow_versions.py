"""Airflow as another version has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.triggers.base import BaseTrigger

if TYPE_CHECKING:
    import pytest


def let_clears_discard_state(patch: pytest.MonkeyPatch, discard: bool = True) -> None:
    """Give triggers the attribute by which Airflow 3.4 is known, or take it away.

    Args:
        patch: undoes it at the end of the test.
        discard: whether a clear discards a task's state, as from 3.4 on.
    """
    if discard:
        patch.setattr(BaseTrigger, "trigger_queue_inherited_from_task", True, raising=False)
    else:
        patch.delattr(BaseTrigger, "trigger_queue_inherited_from_task", raising=False)
