"""Claims of submissions on events whose candidates are given: each submission is a letter, and each event one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.runs.joint import Binds, Claim, JointMatch
from airflow_provider_agents.runs.matching import MatchWindow

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
SETTLE = 30.0
NAMES = "abcdefgh"


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def event(name, created=1.0, status="COMPLETED", **fields):
    return ExecutionEvent(id=name, status=status, createdAt=None if created is None else at(created), **fields)


def claim(key, candidate_ids, *, accepted=None, binds=Binds.NOW):
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


def events(names):
    return [event(name, created=number) for number, name in enumerate(names)]


def joint(candidates, names=None, **more):
    """The joint match of claims that bind: key -> candidates, each a letter."""
    claims = [claim(key, ids) for key, ids in candidates.items()]
    return JointMatch(claims, events(names or sorted(set().union(*candidates.values()))), **more)


def possible(match, keys):
    return {key: "".join(match.event_ids(key)) for key in keys}
