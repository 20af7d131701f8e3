"""Refusals: HTTP responses that say that the request will fail the same way again."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.api.errors import (
    AuthenticationError,
    NotFoundError,
    PermissionDeniedError,
    RequestRejectedError,
)
from airflow_provider_agents.simulator import Fault

if TYPE_CHECKING:
    from conftest import Platform

#: The error of each refusal, by its status.
ERROR_OF = {
    302: RequestRejectedError,
    400: RequestRejectedError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
}
#: One error of each.
REFUSALS = [kind(f"{status}: refused.", status_code=status) for status, kind in ERROR_OF.items()]


def refuse(platform: Platform, status: int, after: float, seconds: float) -> None:
    """Refuse every request for a time that begins after some seconds."""
    begin = platform.sim.clock() + timedelta(seconds=after)
    end = begin + timedelta(seconds=seconds)
    platform.sim.faults.append(Fault(kind="status", status=status, times=None, not_before=begin, not_after=end))
