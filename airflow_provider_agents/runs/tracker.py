"""The whole life of a run that a task waits for, as a pure object: a listing in, a verdict out.

The poll of the triggerer and the wait on a worker both drive a `RunTracker`, so they decide alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, get_args

from airflow_provider_agents.runs import matching
from airflow_provider_agents.runs.appearance import Appearance
from airflow_provider_agents.runs.joint import Binds, Claim, claim_of
from airflow_provider_agents.runs.listing import Listing, read_listing
from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.status import is_success, is_terminal, newer_of
from airflow_provider_agents.runs.submission import search_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from airflow_provider_agents.api.flow import Flow
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.runs.siblings import AgentSiblings
    from airflow_provider_agents.runs.submission import Submission


#: What a task does if several runs could be its own: see `WaitPolicy`.
OnAmbiguous = Literal["share", "all", "fail"]
ON_AMBIGUOUS: tuple[OnAmbiguous, ...] = get_args(OnAmbiguous)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitPolicy:
    """How a task wants to wait.

    Attributes:
        settle: seconds after acceptance within which the event appears.
        appear_within: seconds after acceptance after which a run without an event counts as lost.
        on_ambiguous: what to do if several events could be the run's. `share`: if tasks of ours started all
            these runs, each task gets one. Otherwise the task succeeds only if its own run certainly COMPLETED, and
            fails if all these runs failed. `all`: all these runs must end alike. `fail`: if a run may be another
            party's, the outcome is AMBIGUOUS. That also holds for one run that appeared late or whose POST had no
            response.
        exclusive: the author's word that nothing else starts the agent while the task waits: the first new event is
            the run, at once. It does not hold for a POST in doubt.
    """

    settle: float = 30.0
    appear_within: float = 300.0
    exclusive: bool = False
    on_ambiguous: OnAmbiguous = "share"


class RunTracker:
    """One run that is waited for.

    Args:
        submission: what ties the task to its run.
        policy: how the task wants to wait.
        began_at: when this process began to wait, on its own clock; by default, when the first poll was begun. What
            the clock of another machine showed at the acceptance is never compared with it.

    Attributes:
        agent_id: whose run it is.
        is_late: no event had appeared within `settle`, so what appeared later may be another run's.
        broke_exclusive: the task is exclusive, but something else has started the agent too. From then on, the task
            waits as any other.
        siblings: the other submissions of ours to the same agent; None if they are not known to this process.
        knows_starts: the starts of other processes were read since it is known which events can be the run's, and no
            further ones are to be read.
    """

    __slots__ = (
        "_appearance",
        "_began_at",
        "_chosen",
        "_claim",
        "_criteria",
        "_has_read_starts",
        "_is_exclusive",
        "_possible",
        "_seen",
        "_settled_at",
        "_was_empty",
        "_window",
        "agent_id",
        "broke_exclusive",
        "has_changed",
        "is_late",
        "knows_starts",
        "policy",
        "siblings",
        "submission",
    )

    def __init__(self, submission: Submission, policy: WaitPolicy, began_at: datetime | None = None) -> None:
        if submission.in_doubt:
            # Its event was searched for that long, so every event of that time can be the run.
            within = search_seconds(policy.settle)
            policy = replace(policy, settle=within, appear_within=max(policy.appear_within, within))
        self.submission, self.policy = submission, policy
        self.agent_id = submission.agent_id
        self._began_at = began_at
        self._window = submission.window
        self._is_exclusive = policy.exclusive and not submission.in_doubt and submission.event_id is None
        self.broke_exclusive = False
        self._criteria: matching.SearchCriteria | None = self._new_criteria()
        self.has_changed = False
        self._seen: dict[str, ExecutionEvent] = {}
        self._chosen: tuple[str, ...] = ()
        # Those of the chosen events that its siblings leave to it; None for all.
        self._possible: tuple[str, ...] | None = None
        self._settled_at: datetime | None = None
        self._claim: Claim | None = None
        is_accepted = submission.event_id is None and not submission.in_doubt
        self._appearance = Appearance(policy.settle) if is_accepted else None
        self._was_empty = self.is_late = False
        self.siblings: AgentSiblings | None = None
        self.knows_starts = self._has_read_starts = False

    @property
    def criteria(self) -> matching.SearchCriteria | None:
        """What is sought, until the run, or the set that it is one of, is known."""
        return self._criteria

    @property
    def active(self) -> tuple[ExecutionEvent, ...]:
        """Those of the chosen events that are not over: what to follow once nothing is sought any more."""
        return tuple(event for event_id in self._chosen if not is_terminal(event := self._seen[event_id]))

    @property
    def events(self) -> tuple[ExecutionEvent, ...]:
        """The events that are the run, or could be, in their latest state."""
        if self._chosen:
            return tuple(self._seen[event_id] for event_id in self._possible or self._chosen)
        return matching.possible(
            self._window,
            self._seen.values(),
            settle=self.policy.settle,
            appear_within=self.policy.appear_within,
            was_empty=self._was_empty,
        ).events

    @property
    def name(self) -> str:
        """The run in words, with its event as far as that is known."""
        if self.submission.event_id is not None or not self.events:
            return self.submission.name
        ids = ", ".join(event.id for event in self.events[:5])
        return f"{self.submission.name}, {'event' if self.is_known else 'probably event'} {ids}"

    @property
    def is_known(self) -> bool:
        """Whether exactly one event can be the run's, appeared in time, and the POST was seen to be answered."""
        return len(self._possible or self._chosen) == 1 and not self.is_late and not self.submission.in_doubt

    @property
    def is_named(self) -> bool:
        """Whether the run's event names its submission, so that nothing has to be inferred."""
        return len(self._chosen) == 1 and matching.is_ours(self._window, self._seen[self._chosen[0]])

    @property
    def is_settled(self) -> bool:
        """Whether it is known which events can be the run's: no other event can any more."""
        return bool(self._chosen)

    @property
    def is_open(self) -> bool:
        """Whether it is settled, and the run can be one of several, or another party's."""
        return self.is_settled and not self.is_named and not self.is_known

    @property
    def has_stayed_empty(self) -> bool:
        """Whether no event had appeared within `settle`."""
        return self._was_empty

    @property
    def claim(self) -> Claim:
        """What this submission shows to its siblings."""
        if self._claim is None:
            is_late = self.is_late or self._was_empty
            binds = Binds.NEVER if is_late else Binds.NOW if self._chosen else Binds.LATER
            within = self.policy.appear_within if is_late else self.policy.settle
            chosen = frozenset(self._chosen) if self._chosen else None
            self._claim = claim_of(self.submission, binds, within=within, candidate_ids=chosen)
        return self._claim

    @property
    def appearance(self) -> Appearance | None:
        """How soon its event appeared; None if that is not known, or if several events could be its own."""
        if self._appearance is None or self._appearance.seconds is None:
            return None
        return self._appearance if self._criteria is None and len(self._chosen) <= 1 else None

    def has_waited_for_siblings(self, now: datetime) -> bool:
        """Whether its siblings had time to settle: twice `settle` and tolerance since its own candidates were known.

        A window reaches a tolerance further on each side, so that of a sibling can begin as much later as that.
        """
        enough = 2 * (timedelta(seconds=self.policy.settle) + matching.TOLERANCE)
        return self._settled_at is not None and now - self._settled_at >= enough

    def take_in_starts(self, now: datetime, *, are_new: bool) -> None:
        """The starts of other processes were read. If there are new ones, they have as long to settle as siblings.

        Meanwhile, further tasks may start beside them. So the starts are read again then, until none is new.
        """
        if are_new and not self._has_read_starts:
            self._settled_at = now
        self._has_read_starts = True
        self.knows_starts = not are_new or self.has_waited_for_siblings(now)

    def narrow(self, event_ids: tuple[str, ...], events: Mapping[str, ExecutionEvent]) -> None:
        """Its siblings leave these events to it.

        Args:
            event_ids: in the order of time.
            events: the events by id. Another sensor of the same submission may have seen more of them.
        """
        if event_ids == self._possible:
            return
        self._possible = event_ids
        for event_id in event_ids:
            if event_id not in self._seen:
                self._seen[event_id] = events[event_id]
                self._chosen += (event_id,)
                self._claim, self.has_changed = None, True

    def search_again(self) -> None:
        """All chosen events are its siblings' runs, so its own is late: search for an event that is not theirs.

        A task in doubt can have been given this task's own run. What is found then counts as late, and so is never
        reported as certainly this task's own. The verdict needs no further mark.
        """
        self._chosen = ()
        self._possible = self._settled_at = self._claim = None
        self._was_empty = True
        self.knows_starts = self._has_read_starts = False
        self._appearance = None
        self._seek(self._new_criteria())

    def _seek(self, criteria: matching.SearchCriteria | None) -> None:
        self._criteria, self.has_changed = criteria, True

    def _new_criteria(self) -> matching.SearchCriteria:
        criteria = self._window.criteria(self.policy.settle, self._began_at)
        if not self._is_exclusive:
            return criteria
        # Each listing may show that the run has ended.
        return replace(criteria, decidable_at=None, decidable_at_server=None)

    def read_listing(self) -> Flow[Listing]:
        """What to ask now."""
        return read_listing(self.submission.agent_id, self._window, self._chosen)

    def apply_listing(self, listing: Listing, began_at: datetime) -> Verdict | None:
        """Take in a listing; a verdict ends the wait.

        Args:
            listing: the answer to `read_listing()`.
            began_at: our clock when the listing was begun.
        """
        if not self._chosen:
            # A row that could not be read for a moment must not hold the wait for longer than that.
            self._seen = {event_id: event for event_id, event in self._seen.items() if event.unreadable is None}
        for event in listing.events:
            if not self._chosen or event.id in self._seen:
                self._seen[event.id] = newer_of(self._seen.get(event.id), event)
        if self._began_at is None:
            self._began_at = began_at
        if not self._chosen:
            passed = self._window.passed(began_at - self._began_at, listing.server_time)
            found = matching.match(
                self._window,
                self._seen.values(),
                passed,
                settle=self.policy.settle,
                appear_within=self.policy.appear_within,
                was_empty=self._was_empty,
            )
            if self._appearance is not None:
                is_shown = not isinstance(found, matching.Missing) and bool(found.events)
                self._appearance.look(passed.total_seconds(), is_shown=is_shown)
            if isinstance(found, matching.Missing):
                return Verdict(Outcome.NOT_FOUND)
            if isinstance(found, matching.NotYet):
                if found.settled:
                    self._was_empty, self._claim = True, None
                return self._decide_exclusive()
            self._check_exclusive()
            self._chosen, self.is_late = tuple(event.id for event in found.events), found.late
            # The rest is of no more use, and a wait may last for a day.
            self._seek(None)
            self._seen = {event_id: self._seen[event_id] for event_id in self._chosen}
            self._settled_at, self._claim = began_at, None
        return self._decide(self.events)

    def apply_event(self, event: ExecutionEvent) -> Verdict | None:
        """Take in the latest state of one event; a verdict ends the wait.

        An event that cannot be the run's changes nothing.
        """
        known = self._seen.get(event.id) if self._chosen else None
        if known is None or is_terminal(known):
            return None
        self._seen[event.id] = latest = newer_of(known, event)
        return self._decide((latest,))

    def _decide(self, changed: Iterable[ExecutionEvent]) -> Verdict | None:
        if self.siblings is not None and not self.is_named and self.siblings.decides(self, changed):
            return None
        return self.decide_alone()

    def decide_alone(self) -> Verdict | None:
        """What the events mean if no other submission of ours is known."""
        events = self.events
        may_be_anothers = len(events) > 1 or self.submission.in_doubt or self.is_late
        if self.policy.on_ambiguous == "fail" and may_be_anothers:
            return self._verdict(Outcome.AMBIGUOUS)
        has_ended = [is_success(event) for event in events if is_terminal(event)]
        if len(set(has_ended)) > 1:
            return self._verdict(Outcome.AMBIGUOUS)
        if len(has_ended) < len(events):
            return None
        return self._verdict(Outcome.COMPLETED if has_ended[0] else Outcome.FAILED)

    def _check_exclusive(self) -> tuple[ExecutionEvent, ...]:
        """The events that can be an exclusive run before it has settled: one at most, or the task is not exclusive."""
        if not self._is_exclusive:
            return ()
        found = matching.candidates(self._window, self._seen.values(), within=self.policy.settle)
        is_anothers = False
        if self.siblings is not None:
            found, is_anothers = self.siblings.left_to(self, found)
        if any(event.unreadable is not None for event in found):
            return ()  # it may turn out to be older
        if len(found) > 1 or is_anothers:
            self._is_exclusive, self.broke_exclusive = False, True
            self._seek(self._new_criteria())
            return ()
        return found

    def _decide_exclusive(self) -> Verdict | None:
        """The verdict of an exclusive run that ends before it has settled. Until it ends, another may still appear."""
        found = self._check_exclusive()
        if not found or not is_terminal(found[0]):
            return None
        self._seek(None)
        return Verdict(Outcome.COMPLETED if is_success(found[0]) else Outcome.FAILED, found)

    def expire(self) -> Verdict:
        """The verdict when the deadline has passed and the last poll brought none."""
        return self._verdict(Outcome.TIMED_OUT)

    def _verdict(self, outcome: Outcome) -> Verdict:
        return Verdict(outcome, self.events, self.is_late)
