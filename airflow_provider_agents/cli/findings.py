"""What the observations of `airflow agents probe` mean, question by question. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.errors import one_line
from airflow_provider_agents.api.models import Status
from airflow_provider_agents.cli.extras import delays_of, seconds_waited
from airflow_provider_agents.cli.observations import BOUND_OFFSETS, ORDERS, kind_of_created, lag_of
from airflow_provider_agents.runs.matching import TOLERANCE
from airflow_provider_agents.runs.status import is_terminal
from airflow_provider_agents.runs.tracker import WaitPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.cli.observations import Bound, Observations


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The answer to one question that the API's page leaves open.

    Attributes:
        name: for scripts.
        question: in words.
        value: the answer for scripts; None if the runs did not show it.
        text: the answer in words.
        meaning: what follows from it for tasks.
        holds: whether what this provider assumes is true; None if the runs did not show it.
    """

    name: str
    question: str
    value: Any
    text: str
    meaning: str
    holds: bool | None = True

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON."""
        return asdict(self)


def findings_of(seen: Observations) -> list[Finding]:
    """All findings, in the order of the questions."""
    questions: tuple[Callable[[Observations], Finding], ...] = (
        _appearance, _own_event, _exclusive, _clock, _created_at, _request_name, _started_at, _place_of_pending,
        _start_filter, _order, _stale, _bounds, _statuses, _fields, _rows, _pages, _rate_limit,
    )  # fmt: skip
    return [question(seen) for question in questions]


def _seconds(values: Iterable[float]) -> str:
    """A range of seconds in words."""
    low, high = f"{min(values := list(values)):.1f}", f"{max(values):.1f}"
    return f"{low} s" if low == high else f"{low} to {high} s"


def _names(names: Iterable[str]) -> str:
    return one_line(", ".join(sorted(names)))


def _appearance(seen: Observations) -> Finding:
    delays, default = delays_of(seen), WaitPolicy().settle
    missing = [run for run in seen.accepted if run.polls and not run.candidate_ids]
    value = {"shortest": round(min(delays), 3), "longest": round(max(delays), 3)} if delays else None
    text = f"{_seconds(delays)} after the 202 (runs: {len(delays)} of {len(seen.runs)})" if delays else "not seen"
    if missing:
        text += "; no event appeared within " + ", ".join(f"{seconds_waited(run):.0f} s" for run in missing)
        return Finding(
            name="appearance", question="How soon does the event appear?", value=value, text=text, holds=False,
            meaning="A run that was accepted and has no event cannot be followed. A task fails with "
            "AgentRunNotFoundError after `appear_within`, and a retry starts another run.",
        )  # fmt: skip
    meaning = f"`settle` must be longer; its default is {default:g} s."
    if delays and max(delays) > default:
        meaning = (
            f"Longer than the default of `settle`, {default:g} s: with it, a task would call its own event late, or "
            "take another run's. Set `settle` in the connection as below."
        )
    return Finding(
        name="appearance", question="How soon does the event appear?", value=value, text=text, meaning=meaning,
        holds=max(delays) <= default if delays else None,
    )  # fmt: skip


def _own_event(seen: Observations) -> Finding:
    several = [run for run in seen.accepted if len(run.candidate_ids) > 1]
    text = f"yes (runs: {len(seen.known)} of {len(seen.accepted)})" if seen.known else "not seen"
    meaning = "Runs of several tasks of yours can be told apart together."
    if several:
        ids = "; ".join(_names(run.candidate_ids[:5]) for run in several)
        text = f"several new events (runs: {len(several)} of {len(seen.accepted)}; events: {ids})"
        meaning = (
            "Something else starts this agent, or one execute makes several events. These runs are left out of the "
            "other answers. Probe an agent that nothing else starts, and give DAGs an agent of their own."
        )
    return Finding(
        name="own_event", question="Does each execute make one event of its own?", text=text, meaning=meaning,
        value=False if several else True if seen.known else None,
        holds=False if several else True if seen.known else None,
    )  # fmt: skip


def _exclusive(seen: Observations) -> Finding:
    question = "Does anything else start the agent?"
    count = len(seen.other_event_ids)
    if count:
        return Finding(
            name="exclusive", question=question, value=False, text=f"yes: {count} other runs during this probe",
            meaning="Leave `exclusive` out for this agent.",
        )  # fmt: skip
    moments = [poll.answered_at for run in seen.known for poll in run.polls[-1:]]
    if not moments or seen.runs[0].sent_at is None:
        return Finding(name="exclusive", question=question, value=None, text="not seen", meaning="", holds=None)
    seconds = (max(moments) - seen.runs[0].sent_at).total_seconds()
    return Finding(
        name="exclusive", question=question, value=True, text=f"not in the {seconds:.0f} s of this probe",
        meaning="If nothing else ever starts it (no schedule of the platform, no person, no two tasks at once), set "
        "`exclusive` in its tasks or in the connection. Then a short run does not wait for `settle`.",
    )  # fmt: skip


def _clock(seen: Observations) -> Finding:
    result, words = seen.clock or (None, "not seen")
    return Finding(
        name="clock", question="How does the server's clock (`Date`) compare with this machine's?",
        value=result, text=words if result != "ok" else f"it {words}",
        meaning="The server's clock tells runs apart. This machine's matters only for times that you give.",
        holds=None if result is None else result == "ok",
    )  # fmt: skip


def _created_at(seen: Observations) -> Finding:
    question = "What is `createdAt`, compared with the `Date` of the 202?"
    offsets, kinds, skews = list[float](), set[str](), [0.0]
    for run in seen.known:
        event = run.event
        if event is None or run.server_after is None:
            continue
        if event.createdAt is None:
            return Finding(
                name="created_at", question=question, value="missing", text="an event has none", holds=False,
                meaning="An old event and a new one cannot be told apart by time. Runs that start together are "
                "ambiguous more often.",
            )  # fmt: skip
        offsets.append((event.createdAt - run.server_after).total_seconds())
        moment, skew = kind_of_created(run, event.createdAt)
        kinds.add(moment)
        skews.append(skew)
    if not offsets:
        return Finding(
            name="created_at", question=question, value=None, text="not seen: there is no `Date` or no event",
            meaning="Without `Date`, a verdict can take `settle` longer.", holds=None,
        )  # fmt: skip
    # The event was at once there, so each reading gives the same time. The other runs decide.
    if len(kinds) > 1:
        kinds.discard("either")
    kind = kinds.pop() if len(kinds) == 1 else "varies"
    words = {
        "accepted": "the moment of acceptance",
        "appeared": "the moment when the event appears",
        "either": "the moment of acceptance; the event appears at the same moment",
        "between": "a moment after the acceptance and before the event appears",
        "behind": "earlier than the POST: the clock of the events is behind the one of `Date`",
        "ahead": "later than the event was seen: the clock of the events is ahead of the one of `Date`",
        "varies": "sometimes one moment and sometimes another",
    }[kind]
    skew = max(skews)
    holds = skew <= TOLERANCE.total_seconds()
    meaning = f"Within {TOLERANCE.total_seconds():g} s of what is expected. Tasks find their events."
    if not holds:
        meaning = (
            f"The two clocks differ by {skew:.0f} s or more, and {TOLERANCE.total_seconds():g} s are allowed. Tasks do "
            "not find their events, or find them late. If a gateway writes the `Date` header, let it hand on the "
            "platform's own."
        )
    return Finding(
        name="created_at", question=question, holds=holds, meaning=meaning,
        value={"kind": kind, "offset_min": min(offsets), "offset_max": max(offsets), "clocks_differ_by": skew},
        text=f"{words} ({_seconds(offsets)} from `Date`, which counts whole seconds)",
    )  # fmt: skip


def _request_name(seen: Observations) -> Finding:
    kinds = set[str]()
    for run in seen.accepted:
        if run.request_id is None:
            kinds.add("no requestId in the 202")
        for poll in run.polls:
            for event in filter(None, map(poll.event, poll.event_ids)):
                if event.id == run.request_id:
                    kinds.add("id")
                elif run.request_id is not None and event.requestId == run.request_id:
                    kinds.add("field")
    value = _names(kinds) or ("absent" if seen.known else None)
    text = {"absent": "no", None: "not seen"}.get(
        value, f"yes: {value}" if kinds <= {"id", "field"} else one_line(str(value))
    )
    meaning = (
        "This decides which run is whose, at once. Nothing is ever ambiguous."
        if kinds and kinds <= {"id", "field"}
        else "As documented. Time, and the events that existed before, tell a run from others."
    )
    return Finding(
        name="request_name", question="Does an event name its request (`id` or `requestId`)?", value=value, text=text,
        meaning=meaning, holds=None if value is None else "no requestId in the 202" not in kinds,
    )  # fmt: skip


def _waiting(seen: Observations) -> list[ExecutionEvent]:
    """The states of runs that had not begun."""
    return [
        event
        for run in seen.known
        for _, event in run.states()
        if event is not None and event.status != Status.RUNNING and not is_terminal(event)
    ]


def _started_at(seen: Observations) -> Finding:
    empty = {event.startedAt is None for event in _waiting(seen)}
    value = {frozenset({True}): "null", frozenset({False}): "set"}.get(frozenset(empty), "varies") if empty else None
    words = {
        "null": "null until the run begins",
        "set": "set",
        "varies": "sometimes null",
        None: "not seen: no poll found a run PENDING",
    }
    return Finding(
        name="started_at_while_pending", question="What is `startedAt` while PENDING?", value=value, text=words[value],
        meaning="Either works: PENDING runs are asked for by their status, and never by their start.",
        holds=None if value is None else True,
    )  # fmt: skip


def _place_of_pending(seen: Observations) -> Finding:
    places = set[str]()
    for run in seen.known:
        hidden, is_listed = 0, False
        for poll, event in run.states():
            if event is None or event.startedAt is not None or is_terminal(event):
                continue
            row = poll.listed.rows.get(event.id)
            if row is None:
                hidden += 1
                continue
            is_listed = True
            if poll.listed.size > len(poll.listed.rows):
                last = row.position == poll.listed.size - 1 and not poll.listed.has_more
                places.add("top" if row.position == 0 else "bottom" if last else "middle")
        # One poll may lie around the moment at which the event appears.
        if hidden > 1 and not is_listed:
            places.add("absent")
    value = _names(places) if places else None
    words = {
        "top": "at the top",
        "bottom": "at the bottom",
        "middle": "between the others",
        "absent": "nowhere on the first page, only with `status=PENDING`",
    }
    text = ", or ".join(words[place] for place in sorted(places)) or "not seen: no such event among others"
    return Finding(
        name="pending_place", question="Where does an event without `startedAt` stand in a listing of all runs?",
        value=value, text=text, holds=None if value is None else True,
        meaning="Any place works: PENDING runs are asked for by their status first.",
    )  # fmt: skip


def _start_filter(seen: Observations) -> Finding:
    kept = {run.kept_by_start_filter for run in seen.accepted} - {None}
    value = None if not kept else "varies" if len(kept) > 1 else "kept" if True in kept else "left out"
    return Finding(
        name="start_filter_and_pending", question="Does `startedAfter` keep an event without `startedAt`?",
        value=value, text=value or "not seen: no such event", holds=None if value is None else True,
        meaning="Either works: the filter is used only for runs whose start is known. In scripts of your own, ask for "
        "PENDING runs too.",
    )  # fmt: skip


def _order(seen: Observations) -> Finding:
    orders = [name for name in ORDERS if name in seen.traits.orders]
    holds: bool | None = bool(orders)
    text = " or ".join(orders)
    if not seen.requests or (len(orders) == len(ORDERS) and not seen.known):
        text, holds = "not seen", None
    elif len(orders) > 1:
        text += ": these runs have the same order by each"
    elif not orders:
        text = "by none of createdAt, startedAt and updatedAt"
    return Finding(
        name="order", question="What are listings sorted by?", value=orders, text=text, holds=holds,
        meaning="Any of the three works."
        if holds is not False
        else "The API's page says newest first. Tasks may stop reading a listing before their run's event.",
    )  # fmt: skip


def _stale(seen: Observations) -> Finding:
    lags = [lag_of(run) for run in seen.known]
    vanished, gone = sum(lag.vanished for lag in lags), any(lag.is_gone for lag in lags)
    older, behind = (max((getattr(lag, name) for lag in lags), default=0.0) for name in ("older", "behind"))
    words = []
    if vanished:
        returned = " and did not return" if gone else ""
        words.append(f"an event was missing from {vanished} polls after it had appeared{returned}")
    if older:
        words.append(f"an older state came up to {older:.1f} s after a newer one")
    if behind:
        words.append(f"a change was still not shown {behind:.1f} s after its `updatedAt`")
    value = {"vanished": vanished, "older_by": round(older, 3), "behind_by": round(behind, 3)}
    return Finding(
        name="stale", question="Do listings lag behind?", text="; ".join(words) or ("no" if seen.known else "not seen"),
        value=value if seen.known else None,
        meaning="An event that did not return cannot be followed to its end: it must stay listed."
        if gone
        else "A later state is never replaced by an earlier one. Verdicts come as much later as the listings lag.",
        holds=None if not seen.known else not gone,
    )  # fmt: skip


def _bounds(seen: Observations) -> Finding:
    question = "Are the bounds `startedAfter` and `startedBefore` inclusive?"
    below, same, above = BOUND_OFFSETS
    value, works = dict[str, bool | None](), True
    bounds: tuple[Bound, ...] = ("startedAfter", "startedBefore")
    for name in bounds:
        within, beyond = (below, above) if name == "startedAfter" else (above, below)
        value[name] = seen.bounds.get((name, same))
        works &= seen.bounds.get((name, within), True) and not seen.bounds.get((name, beyond), False)
    if not works:
        return Finding(
            name="bounds", question=question, value=value, holds=False,
            text="the filters do not work: a run is not listed a second inside a bound, or is listed a second outside",
            meaning="A run may be missed where many runs are followed at once. Report this.",
        )  # fmt: skip
    known = {name: inclusive for name, inclusive in value.items() if inclusive is not None}
    text = "; ".join(f"{name} {'inclusive' if inclusive else 'exclusive'}" for name, inclusive in known.items())
    return Finding(
        name="bounds", question=question, value=value if known else None,
        text=text or "not seen: no run with a `startedAt` in whole milliseconds was seen to its end",
        meaning="Either works: a second is added on both sides.", holds=True if known else None,
    )  # fmt: skip


def _statuses(seen: Observations) -> Finding:
    found = seen.traits.statuses
    stuck = {run.event.status for run in seen.known if run.event is not None} & found
    return Finding(
        name="undocumented_statuses", question="Are there statuses that are not documented?", value=sorted(found),
        text=_names(found) or ("no" if seen.requests else "not seen"), holds=not stuck if seen.requests else None,
        meaning=f"A run was last seen {_names(stuck)}. If a run ends so, it counts as a failure once it has a "
        "`completedAt`, and as still running before that. Report this."
        if stuck
        else "Such a run counts as still running until it has a `completedAt`, and then as failed.",
    )  # fmt: skip


def _fields(seen: Observations) -> Finding:
    extra, missing = seen.traits.fields, seen.traits.missing
    needed = missing & {"createdAt", "startedAt", "completedAt", "updatedAt"}
    words = [f"undocumented: {_names(extra)}"] if extra else []
    words += [f"documented and missing in a row: {_names(missing)}"] if missing else []
    return Finding(
        name="fields", question="Do events have other fields than documented?",
        value={"undocumented": sorted(extra), "missing": sorted(missing)},
        text="; ".join(words) or ("no" if seen.requests else "not seen"), holds=not needed if seen.requests else None,
        meaning=f"Without {_names(needed)}, runs are harder to tell apart."
        if needed
        else "Undocumented fields are kept in the event that a task returns.",
    )  # fmt: skip


def _rows(seen: Observations) -> Finding:
    odd = seen.traits.unreadable
    return Finding(
        name="unreadable_rows", question="Can every row be read?", value=odd, holds=not odd if seen.requests else None,
        text=one_line("; ".join(f"event {name} ({why})" for name, why in odd.items()))
        or ("yes" if seen.requests else "not seen"),
        meaning="A row that cannot be read counts as a run that is still running.",
    )  # fmt: skip


def _pages(seen: Observations) -> Finding:
    short = seen.traits.short_pages
    return Finding(
        name="short_pages", question="Can a page be short, or empty, and have a next one?", value=bool(short),
        text="yes" if short else "not seen", holds=True if short else None,
        meaning="Either works: a listing ends where there is no `nextToken`.",
    )  # fmt: skip


def _rate_limit(seen: Observations) -> Finding:
    limited = seen.refusals[429]
    headers = {one_line(name, 60): one_line(value, 60) for name, value in sorted(seen.headers.items())}
    words = [f"{count} of {seen.requests} responses were {status}" for status, count in sorted(seen.refusals.items())]
    if headers:
        words.append("headers: " + ", ".join(f"{name}: {value}" for name, value in headers.items()))
    return Finding(
        name="rate_limit", question="Does the API limit requests?", value={"limited": limited, "headers": headers},
        text=one_line("; ".join(words), 600) or f"not seen in {seen.requests} requests",
        meaning="The poll of a connection keeps `Retry-After`. If it is limited often, raise `poll_interval`."
        if limited
        else "This command asks up to four times a second. All tasks of a connection share one poll.",
        holds=True if limited or headers else None,
    )  # fmt: skip


def warnings_of(findings: Iterable[Finding]) -> list[str]:
    """Where an assumption of this provider does not hold."""
    return [f"{finding.question} {finding.text}. {finding.meaning}" for finding in findings if finding.holds is False]
