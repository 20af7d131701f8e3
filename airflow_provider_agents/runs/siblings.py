"""The submissions of ours that one process waits for on one connection, decided together. Pure.

Tasks that start the same agent within a minute see each other's events. `Siblings` knows all of them, so it can tell
their runs apart (`joint`), and it gives each event to one task only.

An agent with one submission is not decided here: its `RunTracker` decides alone.

A run that stays open, because another party's run may be among its events, may be told apart with the `starts` of other
processes. `Siblings` says of which agents it wants them (`wanted_starts`), and decides when it has them (`add_starts`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.runs.joint import Binds, Claim, Group, JointMatch, key_of
from airflow_provider_agents.runs.matching import candidates
from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.starts import StartTracker, starts_beside
from airflow_provider_agents.runs.status import is_success, is_terminal, newer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.runs.starts import Start
    from airflow_provider_agents.runs.tracker import RunTracker


#: To match this many submissions of one agent together takes several milliseconds, some tens at a thousand.
_MANY = 200


@dataclass(frozen=True, slots=True)
class _Ended:
    """A submission that no task waits for any more: others must still know which event was its own."""

    claim: Claim
    event_ids: frozenset[str]
    forget_at: datetime


@dataclass(slots=True)
class AgentSiblings:
    """The submissions of one agent.

    Attributes:
        trackers: of those that are waited for.
        ended: those that were, by key.
        events: that one of them could have, in their latest state.
        given: key of a submission -> id of the event that it was given.
        is_due: whether something has changed since they were last decided.
        reads_starts: whether the starts of other processes can be read.
        wanting: the trackers for which they are to be read.
        reading: the trackers for which they are being read.
    """

    trackers: dict[RunTracker, None] = field(default_factory=dict)
    ended: dict[str, _Ended] = field(default_factory=dict)
    events: dict[str, ExecutionEvent] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    is_due: bool = False
    reads_starts: bool = False
    wanting: dict[RunTracker, None] = field(default_factory=dict)
    reading: dict[RunTracker, None] = field(default_factory=dict)

    @property
    def are_alone(self) -> bool:
        """Whether there is one submission."""
        # Asked for each change of each event, so it must not collect the keys of a thousand.
        if len(self.trackers) != 1:
            return False
        (tracker,) = self.trackers
        return self.ended.keys() <= {key_of(tracker.submission)}

    def decides(self, tracker: RunTracker, changed: Iterable[ExecutionEvent]) -> bool:
        """Whether a tracker has siblings, so that it must not decide alone.

        Args:
            tracker: one of them.
            changed: the latest states of events that it could have.
        """
        for event in changed:
            known = self.events.get(event.id)
            if known is not event:
                self.events[event.id] = newer_of(known, event)
        if self.are_alone:
            return tracker.is_open and self.lacks_starts(tracker)
        self.is_due = True
        return True

    def lacks_starts(self, tracker: RunTracker) -> bool:
        """Whether a tracker must not be decided before the starts of other processes are read, which is arranged."""
        if not self.reads_starts or tracker.knows_starts:
            return False
        if tracker not in self.reading:
            self.wanting[tracker] = None
        return True

    def awaits_starts(self, tracker: RunTracker, now: datetime) -> bool:
        """Whether the runs of starts that were read may still appear, and the tracker waits for that."""
        return not tracker.has_waited_for_siblings(now) and any(isinstance(one, StartTracker) for one in self.trackers)

    def left_to(self, tracker: RunTracker, events: Sequence[ExecutionEvent]) -> tuple[tuple[ExecutionEvent, ...], bool]:
        """What an exclusive submission finds.

        Args:
            tracker: one of them, not settled.
            events: its candidates.

        Returns:
            Those that no sibling was given; and whether one of them could be the run of a sibling.
        """
        key = key_of(tracker.submission)
        others = {claim.key: claim for claim in self.claims if claim.key != key}
        taken = {event_id for other, event_id in self.given.items() if other != key}
        left = tuple(event for event in events if event.id not in taken)
        undecided = [claim for other, claim in others.items() if other not in self.given]
        return left, any(_could_have(claim, event) for claim in undecided for event in left)

    @property
    def claims(self) -> list[Claim]:
        """Of all of them, also of those that are not waited for any more."""
        return [*(tracker.claim for tracker in self.trackers), *(ended.claim for ended in self.ended.values())]


def _could_have(claim: Claim, event: ExecutionEvent) -> bool:
    if claim.candidate_ids is not None:
        return event.id in claim.candidate_ids
    return bool(candidates(claim.window, (event,), within=claim.within))


class Siblings:
    """All agents of one connection.

    Attributes:
        reads_starts: whether the caller reads the starts of other processes that `wanted_starts` names.
    """

    def __init__(self, *, reads_starts: bool = False) -> None:
        self.reads_starts = reads_starts
        self._agents: defaultdict[str, AgentSiblings] = defaultdict(AgentSiblings)
        self._forget_at: datetime | None = None

    @property
    def entries(self) -> int:
        """How many submissions are known."""
        return sum(len(agent.trackers) + len(agent.ended) for agent in self._agents.values())

    def awaits_event(self, agent_id: str) -> bool:
        """Whether fewer events of an agent were seen than submissions that are waited for: a run is about to appear."""
        agent = self._agents.get(agent_id)
        if agent is None:
            return False
        keys = {key_of(tracker.submission) for tracker in agent.trackers} | agent.given.keys()
        seen = {event.id for tracker in agent.trackers for event in tracker.events} | set(agent.given.values())
        return len(seen) < len(keys)

    def join(self, tracker: RunTracker, now: datetime) -> None:
        """Add a tracker, from now on. A tracker of a run that another task started has no siblings."""
        self._forget(now)
        if tracker.submission.event_id is not None:
            return
        agent = self._agents[tracker.agent_id]
        agent.trackers[tracker] = None
        agent.reads_starts = self.reads_starts
        # Its submission does not bind yet. If it had an event before, it gets the same event again.
        agent.is_due |= key_of(tracker.submission) in agent.given
        tracker.siblings = agent

    def leave(self, tracker: RunTracker, verdict: Verdict | None, now: datetime) -> None:
        """Remove a tracker. Its submission, and its event, are remembered as long as a sibling could claim the event.

        Args:
            tracker: one that has joined.
            verdict: how its wait ended; None if the task no longer waits.
            now: our clock.
        """
        agent = tracker.siblings
        if agent is None:
            return
        tracker.siblings = None
        for trackers in (agent.trackers, agent.wanting, agent.reading):
            trackers.pop(tracker, None)
        if tracker.is_named:
            # Its event names its owner, so no sibling can claim the event.
            return
        claim = tracker.claim
        event = verdict.event if verdict is not None and verdict.is_end else None
        if event is not None:
            agent.given.setdefault(claim.key, event.id)
        kept_for = timedelta(seconds=tracker.policy.settle + tracker.policy.appear_within)
        agent.ended[claim.key] = _Ended(claim, frozenset(event.id for event in tracker.events), now + kept_for)
        agent.is_due = bool(agent.trackers)

    def wanted_starts(self) -> list[str]:
        """The agents of which the starts of other processes are to be read now. Each must be answered."""
        wanted = []
        for agent_id, agent in self._agents.items():
            if agent.wanting and not agent.reading:
                agent.reading, agent.wanting = agent.wanting, {}
                wanted.append(agent_id)
        return wanted

    def add_starts(self, agent_id: str, starts: Iterable[Start], now: datetime) -> list[StartTracker]:
        """Take in the starts of an agent, and decide again.

        Args:
            agent_id: one of `wanted_starts`.
            starts: what was read, this process's own among it; empty if nothing could be read.
            now: our clock.

        Returns:
            A tracker of each start that was not known. It has joined, and needs listings until it ends.
        """
        agent = self._agents.get(agent_id)
        if agent is None:
            return []
        margin = timedelta(seconds=max((tracker.policy.settle for tracker in agent.reading), default=0.0))
        known = {claim.key for claim in agent.claims}
        new = []
        for start in starts_beside(starts, agent.reading, margin):
            key = key_of(start.submission)
            if start.given_event_id is not None:
                agent.given.setdefault(key, start.given_event_id)
            if key not in known:
                known.add(key)
                tracker = start.tracker(now)
                self.join(tracker, now)
                new.append(tracker)
        for waiting in agent.reading:
            waiting.take_in_starts(now, are_new=bool(new))
        agent.reading = {}
        agent.is_due = True
        return new

    def decide(self, now: datetime) -> Iterator[tuple[RunTracker, Verdict | None] | None]:
        """The trackers whose siblings have changed, each with its verdict.

        Without a verdict, the tracker waits on, perhaps with fewer events. None is a pause for the caller: the next
        item takes long.
        """
        for agent in list(self._agents.values()):
            if agent.is_due:
                agent.is_due = False
                yield from _decide(agent, now)

    def _forget(self, now: datetime) -> None:
        if self._forget_at is not None and now < self._forget_at:
            return
        self._forget_at = now + timedelta(seconds=60)
        for agent_id, agent in list(self._agents.items()):
            wanted = {event.id for tracker in agent.trackers for event in tracker.events}
            for key, ended in list(agent.ended.items()):
                if now >= ended.forget_at and wanted.isdisjoint(ended.event_ids):
                    del agent.ended[key]
            wanted.update(event_id for ended in agent.ended.values() for event_id in ended.event_ids)
            agent.events = {event_id: event for event_id, event in agent.events.items() if event_id in wanted}
            known = {*agent.ended, *(key_of(tracker.submission) for tracker in agent.trackers)}
            agent.given = {key: event_id for key, event_id in agent.given.items() if key in known}
            if not known:
                del self._agents[agent_id]


def _decide(agent: AgentSiblings, now: datetime) -> Iterator[tuple[RunTracker, Verdict | None] | None]:
    if agent.are_alone and not agent.given:
        (tracker,) = agent.trackers
        if tracker.is_settled and not (tracker.is_open and agent.lacks_starts(tracker)):
            yield tracker, tracker.decide_alone()
        return
    deciding = sorted(agent.trackers, key=lambda tracker: (tracker.claim.accepted_at, tracker.claim.key))
    are_many = len(deciding) + len(agent.ended) >= _MANY
    if are_many:
        yield None
    decision = _Decision(agent, now)
    if are_many:
        yield None
    for tracker in deciding:
        if not tracker.is_settled or tracker not in agent.trackers:
            continue
        verdict = decision.verdict(tracker)
        if verdict is not None and verdict.is_end and verdict.event is not None:
            decision.give(tracker.claim.key, verdict.event.id)
        agent.is_due |= decision.is_awaited
        yield tracker, verdict


class _Decision:
    """What the events mean for each of several submissions of one agent, at one moment."""

    def __init__(self, agent: AgentSiblings, now: datetime) -> None:
        self._agent, self._now = agent, now
        self._match = JointMatch(agent.claims, agent.events.values())
        self._events, self._given = agent.events, agent.given
        self._taken = set(agent.given.values())
        self._shared: dict[str, str] | None = None
        self._certain: dict[tuple[str, ...], dict[str, str]] = {}
        self.is_awaited = False

    def give(self, key: str, event_id: str) -> None:
        """Record which event a submission was given."""
        self._given[key] = event_id
        self._taken.add(event_id)

    def verdict(self, tracker: RunTracker) -> Verdict | None:
        """The verdict of a submission, or None if it waits on."""
        self.is_awaited = False
        claim, policy = tracker.claim, tracker.policy
        given = self._events.get(self._given.get(claim.key, ""))
        if given is not None:
            return self._end(tracker, given, is_shared=len(tracker.events) > 1)
        possible = left = self._match.event_ids(claim.key)
        if not self._taken.isdisjoint(possible):
            left = tuple(event_id for event_id in possible if event_id not in self._taken)
        group = self._match.group(claim.key)
        if len(possible) > 1 and policy.on_ambiguous == "share" and group is not None and group.is_closed:
            tracker.narrow(possible, self._events)
            event_id = self._share_of(claim.key)
            if event_id is not None:
                return self._end(tracker, self._events[event_id], is_shared=True)
            # An exclusive task was given one of these events before its own could have appeared.
        if not left:
            # All that it could have belongs to its siblings.
            tracker.search_again()
            return None
        # A sibling was perhaps given this task's own run, so what was given still counts for the verdict. Of a run that
        # is late or in doubt nothing is certain anyway.
        tracker.narrow(left if claim.binds is Binds.NEVER else possible, self._events)
        if group is not None and len(possible) == 1:
            return self._end(tracker, self._events[possible[0]])
        if self._waits(tracker, group):
            return None
        return self._alone(tracker, left) if group is None else self._open(tracker, group, possible, left)

    def _waits(self, tracker: RunTracker, group: Group | None) -> bool:
        """Whether the starts of other processes may still close its group."""
        agent = self._agent
        if agent.reads_starts and group is not None and self._awaits(tracker, group):
            # Its siblings of this process may close the group, which costs nothing.
            return True
        if agent.lacks_starts(tracker):
            return True
        if agent.awaits_starts(tracker, self._now):
            self.is_awaited = True
            return True
        return False

    def _awaits(self, tracker: RunTracker, group: Group) -> bool:
        """Whether the group may shrink or close, and the tracker waits for that."""
        if group.awaited_keys and not tracker.has_waited_for_siblings(self._now):
            self.is_awaited = True
            return True
        return False

    def _end(self, tracker: RunTracker, event: ExecutionEvent, *, is_shared: bool = False) -> Verdict | None:
        if not is_terminal(event):
            return None
        outcome = Outcome.COMPLETED if is_success(event) else Outcome.FAILED
        return Verdict(outcome, (event,), tracker.is_late, is_shared=is_shared)

    def _alone(self, tracker: RunTracker, left: tuple[str, ...]) -> Verdict | None:
        """Of a run that appeared late or is in doubt, or of which too few events appeared, nothing can be ruled out."""
        verdict = tracker.decide_alone()
        if verdict is None or not verdict.is_end:
            return verdict
        return self._first(verdict, self._share_of(tracker.claim.key) or left[0])

    def _open(
        self, tracker: RunTracker, group: Group, possible: tuple[str, ...], left: tuple[str, ...]
    ) -> Verdict | None:
        """Another party's run may be among the events of the group."""
        policy, events = tracker.policy, [self._events[event_id] for event_id in possible]
        all_ended = all(map(is_terminal, events))
        if policy.on_ambiguous != "fail":
            certain = self._certain_success_of(tracker.claim.key, group)
            if certain is not None and (policy.on_ambiguous == "share" or all(map(is_success, events))):
                return self._first(Verdict(Outcome.COMPLETED, tuple(events), tracker.is_late), certain)
            if all_ended and not any(map(is_success, events)):
                failed = self._share_of(tracker.claim.key) or left[0]
                return self._first(Verdict(Outcome.FAILED, tuple(events), tracker.is_late), failed)
            if not all_ended:
                return None
        if self._awaits(tracker, group):
            return None
        return Verdict(Outcome.AMBIGUOUS, tuple(events), tracker.is_late)

    def _certain_success_of(self, key: str, group: Group) -> str | None:
        """The event with which a submission of an open group may succeed; none that was given to another."""
        certain = self._certain.get(group.keys)
        if certain is None or certain.get(key) in self._taken:
            completed = [event_id for event_id in group.event_ids if is_success(self._events[event_id])]
            self._certain[group.keys] = certain = self._match.certain_successes(group, completed, self._given)
        return certain.get(key)

    def _share_of(self, key: str) -> str | None:
        """The event that a submission gets; none that was given to another."""
        if self._shared is None or self._shared.get(key) in self._taken:
            self._shared = self._match.share(self._given)
        return self._shared.get(key)

    def _first(self, verdict: Verdict, event_id: str) -> Verdict:
        """The same verdict, with this event as the one that the task hands on."""
        first = self._events[event_id]
        others = tuple(event for event in verdict.events if event.id != event_id)
        return Verdict(verdict.outcome, (first, *others), verdict.late)
