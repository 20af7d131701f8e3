"""Hostile inputs that are no answer of the platform: JSON of other processes, and budgets. A way of `make fuzz`.

Each is honest JSON of one of our forms, changed at random: as a dict, a Variable's text, or a template's text.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hostile_answers import (
    NOW,
    TIMES,
    ZONES,
    any_value,
    check_error,
    check_kept,
    honest_event,
    spoil,
    spoil_bytes,
    written,
)

from airflow_provider_agents.api.errors import AgentsError
from airflow_provider_agents.api.models import read_event
from airflow_provider_agents.budget import Budget
from airflow_provider_agents.payloads import AgentIdle, RunEnded
from airflow_provider_agents.runs.completions import Checkpoint, CompletionTracker, OpenRun
from airflow_provider_agents.runs.copies import RecordCopy, TaskPlace
from airflow_provider_agents.runs.listing import Listing, RunsSince
from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.record import Attempt, Phase, RunRecord
from airflow_provider_agents.runs.selector import ARGUMENTS, select
from airflow_provider_agents.runs.spending import find_excess
from airflow_provider_agents.runs.starts import starts_beside
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Callable, Generator

    from airflow_provider_agents.versioned_json import VersionedJson

    Make = Callable[[random.Random], VersionedJson]
    Use = Callable[[Any, random.Random], object]

#: Moments at which a calendar is odd: changes of clocks, the day that Samoa left out, the ends of the range of dates.
MOMENTS = [
    NOW,
    datetime(2026, 3, 8, 7, tzinfo=UTC),
    datetime(2026, 11, 1, 5, 59, 59, 999999, tzinfo=UTC),
    datetime(2026, 4, 4, 15, tzinfo=UTC),
    datetime(2011, 12, 30, 10, tzinfo=UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2037, 12, 31, 23, 59, tzinfo=UTC),
]


# --- JSON of other processes ----------------------------------------------------------------------------------------


def _submission(rng: random.Random) -> Submission:
    return Submission(
        agent_id="agent-0",
        request_id=rng.choice([None, "req-1"]),
        event_id=rng.choice([None, None, "event-1"]),
        known_event_ids=("event-0",),
        taken_at=NOW,
        sent_at=rng.choice([None, NOW]),
        server_before=rng.choice([None, NOW]),
        server_after=rng.choice([None, NOW + timedelta(seconds=1)]),
        in_doubt=rng.random() < 0.2,
    )


def _record(rng: random.Random) -> RunRecord:
    return RunRecord(
        phase=rng.choice([Phase.SUBMITTING, Phase.ACCEPTED, Phase.DEFERRED, Phase.ENDED]),
        agents_conn_id="agents_default",
        submission=_submission(rng),
        attempt=Attempt(try_number=1, max_tries=4, clear_number=0),
        result=rng.choice([None, honest_event(rng, 1)]),
        deadline_at=rng.choice([None, NOW]),
    )


def _copy(rng: random.Random) -> RecordCopy:
    return RecordCopy(
        place=TaskPlace(dag_id="dag", run_id="run", task_id="task", map_index=rng.choice([-1, 3])),
        record=_record(rng),
        written_at=NOW,
        until=NOW + timedelta(days=1),
        settle=rng.choice([None, 30.0]),
        appear_within=rng.choice([None, 300.0]),
        given_event_id=rng.choice([None, "event-1"]),
    )


def _ended(rng: random.Random) -> RunEnded:
    return RunEnded(
        agents_conn_id="agents_default",
        submission=_submission(rng),
        outcome=rng.choice([Outcome.COMPLETED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.AMBIGUOUS, "error"]),
        events=tuple(honest_event(rng, number) for number in range(rng.randrange(3))),
        error=rng.choice([None, "out of luck"]),
        selector=rng.choice(
            [None, select("agent-0", {"event_id": "event-1"}), select("agent-0", {"started_after": NOW})]
        ),
    )


def _idle(rng: random.Random) -> AgentIdle:
    return AgentIdle(
        agents_conn_id="agents_default", agent_id="agent-0", deadline_at=NOW, released_at=NOW, hold_seconds=30.0
    )


def _checkpoint(rng: random.Random) -> Checkpoint:
    known = OpenRun(agent_id="agent-0", created_at=NOW, started_at=rng.choice([None, NOW]))
    return Checkpoint(watermark=NOW, open_runs={"event-1": known}, emitted=("event-2",), since=rng.choice([None, NOW]))


def _use_submission(submission: Submission, rng: random.Random) -> None:
    events = [read_event(honest_event(rng, number)) for number in range(3)]
    tracker = RunTracker(submission, WaitPolicy(settle=5.0, appear_within=60.0), NOW)
    tracker.apply_listing(Listing(tuple(events), NOW + timedelta(hours=1)), NOW)


def _use_record(record: RunRecord, rng: random.Random) -> None:
    record.belongs_to("agent-0", "agents_default")
    record.attempt.is_cleared_since(Attempt(try_number=1, max_tries=4, clear_number=0), retries=3)
    _use_submission(record.submission, rng)


def _use_copy(copy: RecordCopy, rng: random.Random) -> None:
    """As another task does that waits beside it."""
    _use_record(copy.record, rng)
    assert len(copy.key) <= 250
    start = copy.start
    if start is not None:
        beside = starts_beside([start], [RunTracker(_submission(rng), WaitPolicy(), NOW)], timedelta(minutes=10))
        for one in beside:
            events = [read_event(honest_event(rng, number)) for number in range(3)]
            one.tracker(NOW).apply_listing(Listing(tuple(events), NOW), NOW)
        NOW + timedelta(seconds=start.settle + start.appear_within)


def _use_checkpoint(checkpoint: Checkpoint, rng: random.Random) -> None:
    tracker = CompletionTracker("agent-0", 5.0, checkpoint)
    for ended in tracker.ended():
        check_kept(ended.to_json())
    json.dumps(tracker.checkpoint().to_json(), allow_nan=False)


#: Each form: an honest one, and what is done with one that can be read.
FORMS: dict[type[VersionedJson], tuple[Make, Use]] = {
    Submission: (_submission, _use_submission),
    RunRecord: (_record, _use_record),
    RecordCopy: (_copy, _use_copy),
    RunEnded: (_ended, lambda ended, rng: ended.verdict()),
    AgentIdle: (_idle, lambda idle, rng: idle.is_stale(NOW)),
    Checkpoint: (_checkpoint, _use_checkpoint),
}


def _spoilt(rng: random.Random, value: Any) -> Any:
    for _ in range(rng.choice([0, 1, 1, 1, 2, 5])):
        value = spoil(rng, value)
    return value


def _as_text(rng: random.Random, value: Any) -> str:
    if rng.random() < 0.1:
        return repr(value)
    body = written(rng, value)
    return (spoil_bytes(rng, body) if rng.random() < 0.15 else body).decode("utf-8", "replace")


def _read_form(rng: random.Random) -> str:
    form = rng.choice(list(FORMS))
    make, use = FORMS[form]
    value = _spoilt(rng, make(rng).to_json())
    if form is RecordCopy:
        text = _as_text(rng, value)
        honest = RecordCopy.from_text(text)
        found: VersionedJson = RecordCopy.kept_under(honest.key, text)
    else:
        found = form.from_json(value)
    use(found, rng)
    found = _without_events(found)
    assert form.from_text(json.dumps(found.to_json(), allow_nan=False)) == found
    return form.__name__


def _without_events(found: VersionedJson) -> VersionedJson:
    """Without what is kept as it was sent: that is made storable before it is written."""
    match found:
        case RunRecord():
            return found.changed(result=None)
        case RunEnded():
            return found.changed(events=())
        case RecordCopy():
            return found.changed(record=_without_events(found.record))
    return found


def _select(rng: random.Random) -> str:
    """What users give to a sensor, most of it as templates make it."""
    moments = [NOW + timedelta(minutes=1), (NOW + timedelta(hours=1)).isoformat(), rng.choice(TIMES)]
    given: dict[str, object] = {"event_id": "event-1"}
    if rng.random() < 0.5:
        given = {"started_after": rng.choice([NOW, NOW.isoformat()]), "started_before": rng.choice(moments)}
    if rng.random() < 0.7:
        value = _spoilt(rng, _submission(rng).to_json())
        given = {"submission": value if rng.random() < 0.3 else _as_text(rng, value)}
    elif rng.random() < 0.5:
        given[rng.choice(list(ARGUMENTS))] = any_value(rng)
    agent_id = any_value(rng) if rng.random() < 0.2 else rng.choice(["agent-0", None])
    found = select(agent_id, given)
    assert found.words
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found
    return type(found).__name__


# --- budgets ----------------------------------------------------------------------------------------------------------

LIMITS: list[object] = [1, 2, 20, 1.5, 0, -1, True, math.nan, math.inf, -math.inf, 1e308, 10**400, "20", None]
PERIODS: list[object] = ["day", "hour", "week", "", 0, 1, 86400, 86400.5, -1, 1e-9, 1e308, math.nan, 10**30, True, None]
LENGTHS = [
    timedelta(0),
    timedelta(microseconds=1),
    timedelta(days=366),
    timedelta(days=367),
    timedelta.min,
    timedelta.max,
]


def any_budget(rng: random.Random) -> Budget:
    """One that can be used."""
    return Budget(
        runs=rng.choice([1, 20]),
        browser_seconds=rng.choice([None, 60.0, 1e308]),
        failures=rng.choice([None, 3]),
        per=rng.choice(["day", "hour", timedelta(microseconds=1), timedelta(days=366)]),
        of=rng.choice(["agent", "account"]),
    )


def any_budget_json(rng: random.Random) -> Any:
    """The extra of a connection, or something like it."""
    value: Any = {"runs": 20, "per": "day"}
    choices: dict[str, list[object]] = {
        "runs": LIMITS,
        "browser_seconds": LIMITS,
        "failures": LIMITS,
        "per": PERIODS,
        "of": ["agent", "account", "all", 7],
        "over": ["fail", "skip", "", []],
        "limit": [1],
    }
    for name, values in choices.items():
        if rng.random() < 0.25:
            value[name] = any_value(rng) if rng.random() < 0.2 else rng.choice(values)
    value = value if rng.random() < 0.9 else any_value(rng)
    return _as_text(rng, value) if rng.random() < 0.5 else value


def _use_budget(rng: random.Random) -> str:
    if rng.random() < 0.5:
        budget = Budget.from_json(any_budget_json(rng))
    else:
        names = rng.sample(["runs", "browser_seconds", "failures", "per", "of", "over"], rng.randrange(1, 4))
        values = [*LIMITS, *PERIODS, *LENGTHS, b"day", object(), [1]]
        arguments: dict[str, Any] = {"runs": 20, **{name: rng.choice(values) for name in names}}
        budget = Budget(**arguments)
    zone, at = rng.choice(ZONES), rng.choice(MOMENTS) + timedelta(seconds=rng.randrange(-90000, 90000))
    since, end = budget.begin_at(at, zone), budget.end_at(at, zone)
    assert since <= at, (budget, zone, at)
    assert end is None or at < end, (budget, zone, at)
    events = [read_event(_spoilt(rng, honest_event(rng, number))) for number in range(rng.randrange(4))]
    excess = find_excess(budget, RunsSince(tuple(events), since, at, rng.random() < 0.8), zone)
    assert excess is None or all(reason.isprintable() for reason in excess.reasons)
    return "Budget"


def inputs(rng: random.Random, tally: Counter[str]) -> Generator[None, None, None]:
    """JSON that another process, another version or a person wrote, and budgets."""
    while True:
        use = rng.choice([_read_form, _read_form, _select, _use_budget])
        try:
            tally[use(rng)] += 1
        except AgentsError as error:
            tally[check_error(error, redacted=False)] += 1
        yield
