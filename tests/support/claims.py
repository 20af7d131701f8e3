"""Claims of submissions on events whose candidates are given: each submission is a letter, and each event one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.runs.joint import Binds, Claim, JointMatch
from airflow_provider_agents.runs.matching import MatchWindow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
SETTLE = 30.0
NAMES = "abcdefgh"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def event(name: str, created: float | None = 1.0, status: str = "COMPLETED", **fields: Any) -> ExecutionEvent:
    return ExecutionEvent(id=name, status=status, createdAt=None if created is None else at(created), **fields)


def claim(key: str, candidate_ids: Iterable[str], *, accepted: float | None = None, binds: Binds = Binds.NOW) -> Claim:
    """A claim whose candidates are given; claims are accepted in the order of their keys."""
    accepted_at = at(ord(key[0]) / 1000 if accepted is None else accepted)
    window = MatchWindow(
        request_id=f"req-{key}",
        event_id=None,
        known_event_ids=frozenset(),
        server_before=None,
        server_after=None,
    )
    return Claim(key, window, SETTLE, accepted_at, binds, frozenset(candidate_ids))


def events(names: Iterable[str]) -> list[ExecutionEvent]:
    return [event(name, created=number) for number, name in enumerate(names)]


def joint(candidates: Mapping[str, Iterable[str]], names: Iterable[str] | None = None, **more: Any) -> JointMatch:
    """The joint match of claims that bind: key -> candidates, each a letter."""
    claims = [claim(key, ids) for key, ids in candidates.items()]
    return JointMatch(claims, events(names or sorted(set().union(*candidates.values()))), **more)


def possible(match: JointMatch, keys: Iterable[str]) -> dict[str, str]:
    return {key: "".join(match.event_ids(key)) for key in keys}
