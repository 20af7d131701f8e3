"""Which events are whose, of several runs of ours that started on one agent at about the same time.

Taken alone, each of two such submissions could have both events. Together they can often be told apart, because *each
accepted POST makes an event of its own*, which appears within `settle`. A submission *binds* once its event certainly
exists. Try every way to give each binding submission an event of its own: a submission can have an event if at least
one of these ways gives it that event. To leave a submission out only leaves more events possible, and never rules out
the right one.

Sets of events are integers: bit N stands for event N in the order of time. One operation then handles all candidates
of a submission at once, so that a thousand submissions with a thousand candidates each take milliseconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from enum import StrEnum
from itertools import compress
from typing import TYPE_CHECKING

from airflow_provider_agents.runs.assignment import Assignment, lowest
from airflow_provider_agents.runs.matching import oldest_first

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.runs.matching import MatchWindow
    from airflow_provider_agents.runs.submission import Submission


class Binds(StrEnum):
    """Whether a submission certainly has an event of its own among those that were listed.

    Attributes:
        NOW: its POST was accepted, and a listing that began after `settle` showed a candidate.
        LATER: its POST was accepted, and `settle` has not passed: its event may still appear.
        NEVER: it is in doubt whether its POST started a run; or its event did not appear within `settle`; or it is
            attached to a run that another task started.
    """

    NOW = "now"
    LATER = "later"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Claim:
    """What one submission shows about the events that can be its run.

    Attributes:
        key: what makes the submission the same: claims with the same key count once (`key_of`).
        window: its match window.
        within: seconds after acceptance within which its event was created: `settle`, or `appear_within` once the
            event is late.
        accepted_at: when the POST was accepted or sent. Only the order of the claims counts.
        binds: whether other submissions may rely on its having an event of its own.
        candidate_ids: its candidates in the first listing that began after `settle`: what appeared later is not its
            run. None: all events that fit the window.
    """

    key: str
    window: MatchWindow
    within: float
    accepted_at: datetime
    binds: Binds
    candidate_ids: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Binding submissions that compete for the same events, directly or through others.

    Attributes:
        keys: of its claims, in the order of acceptance.
        event_ids: all events that they can have, oldest first.
        is_closed: there are as many events as submissions, so all these runs are ours. An open group has more: another
            party's run may be among them.
        awaited_keys: of accepted submissions that could have one of these events too, and do not bind yet. Once one
            of them binds, the group may shrink or close. A closed group awaits none.
    """

    keys: tuple[str, ...]
    event_ids: tuple[str, ...]
    is_closed: bool
    awaited_keys: tuple[str, ...]


def key_of(submission: Submission) -> str:
    """What distinguishes two submissions of one agent. The same submission in two triggers or sensors has one key."""
    if submission.request_id is not None:
        return submission.request_id
    return f"{submission.taken_at.isoformat()} {submission.sent_at} {submission.event_id}"


def claim_of(
    submission: Submission, binds: Binds, *, within: float, candidate_ids: frozenset[str] | None = None
) -> Claim:
    """The claim of a submission. A submission in doubt or attached to an event binds no other."""
    if submission.in_doubt or submission.event_id is not None:
        binds = Binds.NEVER
    accepted_at = submission.server_after or submission.sent_at or submission.taken_at
    return Claim(key_of(submission), submission.window, within, accepted_at, binds, candidate_ids)


class JointMatch:
    """Which events each of several submissions of one agent can have.

    Args:
        claims: one per submission, in any order.
        events: each event of the agent once, in any order. All candidates of all binding claims must be among them.
    """

    def __init__(self, claims: Iterable[Claim], events: Iterable[ExecutionEvent]) -> None:
        self._events = _EventBits(events)
        # Equal claims with unequal knowledge are both right: the one that knows more counts.
        by_key = {claim.key: claim for claim in sorted(claims, key=_knowledge)}
        self._claims = sorted(by_key.values(), key=lambda claim: (claim.accepted_at, claim.key))
        self._possible = {claim.key: self._events.candidates(claim) for claim in self._claims}
        binding, unsettled, in_doubt = [], [], []
        for claim in self._claims:
            if claim.window.event_id is not None:
                continue  # attached: it shares the event of another, so no submission takes it away
            if claim.binds is Binds.NOW or self._events.is_named(claim):
                binding.append(claim.key)
            elif claim.binds is Binds.LATER:
                unsettled.append(claim.key)
            else:
                in_doubt.append(claim.key)
        self._binding, breached, freeable = self._rule_out(binding)
        # A run of theirs has an event of its own as well: none that the binding submissions need.
        for key in (*unsettled, *in_doubt):
            self._possible[key] &= freeable
        self._unbound = [*breached, *in_doubt]
        self.groups = tuple(
            Group(
                keys=tuple(keys),
                event_ids=self._events.ids(members),
                is_closed=members.bit_count() == len(keys),
                awaited_keys=tuple(key for key in unsettled if self._possible[key] & members),
            )
            for keys, members in _components(self._binding, self._possible)
        )
        self._group_of = {key: group for group in self.groups for key in group.keys}

    def event_ids(self, key: str) -> tuple[str, ...]:
        """The events that a submission can have, oldest first.

        Empty if none has appeared, or if all that fit are other submissions' of ours: the run has no event in time.
        """
        return self._events.ids(self._possible[key])

    def group(self, key: str) -> Group | None:
        """The group of a submission; None if the submission does not bind.

        A submission does not bind either if fewer events than submissions fit it and its rivals. One of these runs
        must have appeared later than `settle`, so each of them is decided alone.
        """
        return self._group_of.get(key)

    def share(self, given: Mapping[str, str]) -> dict[str, str]:
        """Give events to submissions in the order of time, each event to one, each submission an event it can have.

        The earliest submission gets the earliest event that leaves enough for the others, and so on. What a closed
        group gets depends on its own claims and events alone, so all processes that see it share it out alike. For a
        submission of an open group, or of none, it is the event to return if all its events end alike.

        Args:
            given: key of a submission -> id of the event that was given to it before, also for submissions that are
                not among the claims. It stands.

        Returns:
            key -> event id. A submission for which no event is left is missing.
        """
        gone = self._events.mask(given.values())
        assignment = Assignment({key: self._possible[key] & ~gone for key in self._binding if key not in given})
        assignment.assign()
        assignment.prefer_earliest()
        shared = dict(assignment.position_of)
        gone |= assignment.taken
        for key in (*self._binding, *self._unbound):
            if key in shared or key in given:
                continue
            left, group = self._possible[key], self._group_of.get(key)
            if group is not None and group.is_closed:
                # What was given before may leave no valid event. In a closed group any run is one of ours.
                left = self._events.mask(group.event_ids)
            left &= ~gone
            if left:
                shared[key] = lowest(left)
                gone |= left & -left
        stands = {key: event_id for key, event_id in given.items() if key in self._possible}
        return stands | {key: self._events.id_at(position) for key, position in shared.items()}

    def certain_successes(
        self, group: Group, completed_ids: Collection[str], given: Mapping[str, str]
    ) -> dict[str, str]:
        """Those of an open group who may succeed although it is not known which run is whose.

        Count how many of the K submissions can at most have a failed run. The others certainly have completed runs, and
        nothing distinguishes the runs. That number of submissions may succeed, the earliest first. With one submission,
        all its events must have COMPLETED.

        Args:
            group: one of `groups`.
            completed_ids: the events that COMPLETED. All others count as failed, so this may be asked at any time.
            given: as for `share`.

        Returns:
            key -> id of a completed event, each event once; without the submissions that were given one before.
        """
        completed, gone = self._events.mask(completed_ids), self._events.mask(given.values())
        already = [key for key in group.keys if key in given]
        undecided = [key for key in group.keys if key not in given]
        failing = Assignment({key: self._possible[key] for key in group.keys})
        failing.assign(blocked=completed)
        number = len(group.keys) - len(failing.position_of) - len(already)
        # The latest submissions get the failed events, as far as the others can all have completed ones.
        assignment = Assignment({key: self._possible[key] & ~gone for key in reversed(undecided)})
        assignment.assign(blocked=completed)
        assignment.assign()
        having = [key for key in undecided if key in assignment.position_of]
        successful = [key for key in having if completed >> assignment.position_of[key] & 1][: max(number, 0)]
        assignment = Assignment({key: self._possible[key] & completed & ~gone for key in successful})
        assignment.assign()
        assignment.prefer_earliest()
        return {key: self._events.id_at(position) for key, position in assignment.position_of.items()}

    def _rule_out(self, binding: list[str]) -> tuple[list[str], list[str], int]:
        """Narrow the possible events of the binding claims.

        Returns:
            The keys that bind; those that compete for too few events; and the events that some assignment does not
            need for those that bind.
        """
        # The narrower window first: then hardly any event has to change hands.
        by_last_event = sorted(binding, key=lambda key: self._possible[key].bit_length())
        assignment = Assignment({key: self._possible[key] for key in by_last_event})
        short = assignment.assign()
        binding, breached = ([key for key in binding if (key in short) is is_short] for is_short in (False, True))
        for key in breached:
            assignment.release(key)
        exchangeable, freeable = assignment.exchanges(self._events.all)
        for key in binding:
            self._possible[key] &= freeable | exchangeable[key]
        return binding, breached, freeable


def _knowledge(claim: Claim) -> tuple[bool, bool, bool, int]:
    candidate_ids = claim.candidate_ids
    return (
        claim.binds is Binds.NOW,
        claim.binds is Binds.LATER,
        candidate_ids is not None,
        -len(candidate_ids or ()),
    )


class _EventBits:
    """Events in the order of time, each a bit."""

    def __init__(self, events: Iterable[ExecutionEvent]) -> None:
        ordered = oldest_first({event.id: event for event in events}.values())
        self._ids = [event.id for event in ordered]
        self._bit = {event_id: 1 << position for position, event_id in enumerate(self._ids)}
        self.all = (1 << len(ordered)) - 1
        # Events of which no time is known come last.
        self._moments = [event.created_by for event in ordered if event.created_by is not None]
        self._undated = self.mask(event.id for event in ordered if event.createdAt is None)
        self._by_name: dict[str, int] = {}
        self._by_request_id: dict[str, int] = {}
        for event in ordered:
            bit = self._bit[event.id]
            if event.requestId is not None:
                self._by_request_id[event.requestId] = self._by_request_id.get(event.requestId, 0) | bit
            if not event.lacks_id:
                for name in (event.id, event.requestId):
                    if name is not None:
                        self._by_name.setdefault(name, bit)
        self._named = self.mask(event.id for event in ordered if event.requestId is not None)

    def mask(self, event_ids: Iterable[str]) -> int:
        mask = 0
        for event_id in event_ids:
            mask |= self._bit.get(event_id, 0)
        return mask

    def ids(self, mask: int) -> tuple[str, ...]:
        first = max(lowest(mask), 0)
        return tuple(compress(self._ids[first:], map("1".__eq__, f"{mask >> first:b}"[::-1])))

    def id_at(self, position: int) -> str:
        return self._ids[position]

    def is_named(self, claim: Claim) -> bool:
        """Whether an event bears the request id of a claim, as in `matching.is_ours`."""
        return claim.window.request_id in self._by_name

    def candidates(self, claim: Claim) -> int:
        """The same events as `matching.candidates`, in a time that does not grow with their number."""
        window = claim.window
        if window.event_id is not None:
            return self._bit.get(window.event_id, 0)
        mask = self.all
        if window.request_id is not None:
            if window.request_id in self._by_name:
                return self._by_name[window.request_id]
            mask &= ~self._named | self._by_request_id.get(window.request_id, 0)
        not_before, not_after = window.not_before, window.not_after(claim.within)
        if not_before is not None:
            first = bisect_left(self._moments, not_before)
            mask = mask >> first << first
        if not_after is not None:
            mask &= ((1 << bisect_right(self._moments, not_after)) - 1) | self._undated
        mask &= ~self.mask(window.known_event_ids)
        if claim.candidate_ids is not None and mask.bit_count() != len(claim.candidate_ids):
            mask &= self.mask(claim.candidate_ids)
        return mask


def _components(keys: Sequence[str], possible: Mapping[str, int]) -> list[tuple[list[str], int]]:
    """The keys that are connected by common events, and the events of each such group; the earliest event first."""
    order = {key: number for number, key in enumerate(keys)}
    done: list[tuple[list[str], int]] = []
    growing: list[tuple[list[str], int]] = []
    for key in sorted(keys, key=lambda key: possible[key] & -possible[key]):
        events, members, apart = possible[key], [key], []
        for group in growing:
            if group[1] & possible[key]:
                members, events = group[0] + members, events | group[1]
            elif group[1] < possible[key] & -possible[key]:
                done.append(group)
            else:
                apart.append(group)
        growing = [*apart, (members, events)]
    return [(sorted(members, key=order.__getitem__), events) for members, events in (*done, *growing)]
