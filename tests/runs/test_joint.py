"""Which events are whose, of several runs of ours together."""

from __future__ import annotations

import itertools

from claims import NAMES, SETTLE, T0, at, claim, event, events, joint, possible
from driving import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_agents.api.models import read_event
from airflow_provider_agents.runs import matching
from airflow_provider_agents.runs.joint import Binds, Claim, JointMatch, claim_of, key_of
from airflow_provider_agents.runs.matching import MatchWindow
from airflow_provider_agents.runs.submission import Submission

# --- which events a submission can have ------------------------------------------------------------------------------


def test_an_event_that_another_submission_must_have_is_ruled_out():
    match = joint({"A": "ab", "B": "a"})
    assert possible(match, "AB") == {"A": "b", "B": "a"}
    assert [group.is_closed for group in match.groups] == [True, True]


def test_events_are_ruled_out_along_a_chain_of_submissions():
    match = joint({"A": "abc", "B": "bcd", "C": "cd", "D": "d"})
    assert possible(match, "ABCD") == {"A": "a", "B": "b", "C": "c", "D": "d"}


def test_two_submissions_with_the_same_two_events_are_a_closed_group():
    (group,) = joint({"A": "ab", "B": "ab"}).groups
    assert (group.keys, group.event_ids, group.is_closed, group.awaited_keys) == (("A", "B"), ("a", "b"), True, ())


def test_a_group_with_one_event_more_than_submissions_is_open():
    (group,) = joint({"A": "abc", "B": "abc"}).groups
    assert (group.event_ids, group.is_closed) == (("a", "b", "c"), False)


def test_a_third_event_leaves_a_closed_group_beside_it_alone():
    match = joint({"A": "ab", "B": "ab", "C": "abcd"})
    assert possible(match, "ABC") == {"A": "ab", "B": "ab", "C": "cd"}
    assert [group.is_closed for group in match.groups] == [True, False]


def test_an_unsettled_submission_rules_nothing_out_and_is_awaited():
    match = JointMatch([claim("A", "ab"), claim("B", "b", binds=Binds.LATER)], events("ab"))
    assert possible(match, "AB") == {"A": "ab", "B": "b"}
    assert match.group("A").awaited_keys == ("B",)
    assert match.group("B") is None


def test_an_unsettled_submission_is_not_awaited_by_a_group_that_it_cannot_change():
    match = JointMatch([claim("A", "a"), claim("B", "ab", binds=Binds.LATER)], events("ab"))
    assert possible(match, "AB") == {"A": "a", "B": "b"}
    assert match.group("A").awaited_keys == ()


def test_a_submission_in_doubt_rules_nothing_out_and_keeps_only_what_others_leave():
    match = JointMatch([claim("A", "ab"), claim("B", "ab"), claim("C", "abc", binds=Binds.NEVER)], events("abc"))
    assert possible(match, "ABC") == {"A": "ab", "B": "ab", "C": "c"}
    assert match.group("A").is_closed
    match = JointMatch([claim("A", "ab"), claim("B", "ab", binds=Binds.NEVER)], events("ab"))
    assert possible(match, "AB") == {"A": "ab", "B": "ab"}
    assert match.group("A").awaited_keys == ()


def test_the_same_submission_counts_once_and_with_the_better_knowledge():
    twins = [claim("A", "ab", binds=Binds.LATER), claim("A", "ab")]
    for claims in itertools.permutations([*twins, claim("B", "abc")]):
        match = JointMatch(claims, events("abc"))
        assert [group.keys for group in match.groups] == [("A", "B")]


def test_those_that_compete_for_too_few_events_are_each_alone_and_bind_nobody():
    match = joint({"A": "a", "B": "a", "C": "ab"})
    assert possible(match, "ABC") == {"A": "a", "B": "a", "C": "ab"}
    assert (match.group("A"), match.group("B")) == (None, None)
    assert not match.group("C").is_closed


def test_too_few_events_for_some_change_nothing_for_others():
    match = joint({"A": "a", "B": "a", "C": "cd", "D": "c"})
    assert possible(match, "ABCD") == {"A": "a", "B": "a", "C": "d", "D": "c"}


def test_an_event_with_a_request_id_binds_its_submission_before_it_is_settled():
    rows = [event("a", requestId="req-A"), event("b", 2)]
    match = JointMatch([claim("A", "", binds=Binds.LATER), claim("B", "ab")], rows)
    assert possible(match, "AB") == {"A": "a", "B": "b"}


def test_an_event_whose_id_is_a_request_id_is_no_other_submissions():
    match = JointMatch([claim("A", "", binds=Binds.LATER), claim("B", ["b", "req-A"])], [event("req-A"), event("b", 2)])
    assert (match.event_ids("A"), match.event_ids("B")) == (("req-A",), ("b",))


def test_an_attached_task_takes_no_event_away_and_loses_none():
    submission = Submission(agent_id="agent", event_id="a", taken_at=at(0))
    attached = claim_of(submission, Binds.NOW, within=SETTLE)
    assert attached.binds is Binds.NEVER
    match = JointMatch([attached, claim("A", "a"), claim("B", "ab")], events("ab"))
    assert match.event_ids(attached.key) == ("a",)
    assert possible(match, "AB") == {"A": "a", "B": "b"}
    assert match.share({}) == {"A": "a", "B": "b"}


def test_a_claim_is_that_of_its_submission():
    submission = Submission(
        agent_id="agent", request_id="req", taken_at=at(0), sent_at=at(1), server_before=at(5), server_after=at(6)
    )
    mine = claim_of(submission, Binds.LATER, within=SETTLE)
    assert mine == Claim("req", submission.window, SETTLE, at(6), Binds.LATER)
    unnamed = submission.changed(request_id=None, server_after=None)
    assert claim_of(unnamed, Binds.NOW, within=SETTLE).accepted_at == at(1)
    assert claim_of(unnamed.changed(sent_at=None), Binds.NOW, within=SETTLE).accepted_at == at(0)
    assert claim_of(unnamed.changed(in_doubt=True), Binds.NOW, within=SETTLE).binds is Binds.NEVER
    assert key_of(unnamed) != key_of(unnamed.changed(sent_at=at(2)))


# --- sharing out -----------------------------------------------------------------------------------------------------


def test_a_closed_group_is_shared_out_in_the_order_of_time():
    assert joint({"A": "abc", "B": "abc", "C": "abc"}).share({}) == {"A": "a", "B": "b", "C": "c"}


def test_the_order_of_time_gives_way_where_it_would_give_an_event_that_cannot_be():
    assert joint({"A": "ab", "B": "ac", "C": "abc"}).share({}) == {"A": "a", "B": "c", "C": "b"}
    assert joint({"A": "abc", "B": "abc", "C": "ab"}).share({}) == {"A": "a", "B": "c", "C": "b"}


def test_what_was_given_stands_and_goes_to_no_other():
    assert joint({"A": "ab", "B": "ab"}).share({"B": "a"}) == {"A": "b", "B": "a"}
    assert joint({"A": "ab", "B": "abc"}).share({"gone": "a"}) == {"A": "b", "B": "c"}


def test_in_a_closed_group_what_was_given_leaves_the_other_event_even_where_that_does_not_fit():
    # Alone, A could have either and was given what turns out to be B's.
    assert joint({"A": "ab", "B": "a"}).share({"A": "a"}) == {"A": "a"}
    assert joint({"A": "abc", "B": "abc", "C": "ab"}).share({"A": "a", "B": "b"}) == {"A": "a", "B": "b", "C": "c"}


def test_a_submission_for_which_no_event_is_left_gets_none():
    assert joint({"A": "a", "B": "a"}).share({}) == {"A": "a"}
    claims = [claim("A", "a", binds=Binds.NEVER), claim("B", "a", accepted=99)]
    assert JointMatch(claims, events("a")).share({}) == {"B": "a"}


def test_an_unsettled_submission_is_given_nothing():
    match = JointMatch([claim("A", "ab", binds=Binds.LATER), claim("B", "ab")], events("ab"))
    assert match.share({}) == {"B": "a"}


# --- an open group ----------------------------------------------------------------------------------------------------


def successes(candidates, completed, given=()):
    match = joint(candidates)
    return match.certain_successes(match.groups[0], set(completed), dict(given))


def test_with_one_failed_run_among_those_of_an_open_group_one_task_fewer_succeeds():
    three = {"A": "abcd", "B": "abcd", "C": "abcd"}
    assert successes(three, "abcd") == {"A": "a", "B": "b", "C": "c"}
    assert successes(three, "acd") == {"A": "a", "B": "c"}
    assert successes(three, "d") == {}


def test_a_lone_submission_succeeds_once_all_its_events_have_completed():
    assert successes({"A": "ab"}, "a") == {}
    assert successes({"A": "ab"}, "ab") == {"A": "a"}


def test_a_submission_that_can_only_have_completed_events_succeeds_whatever_the_rest():
    assert successes({"A": "bcd", "B": "ab"}, "ab") == {"B": "a"}


def test_a_submission_that_cannot_have_a_completed_event_does_not_count_as_successful():
    assert successes({"A": "ab", "B": "acd", "C": "abc"}, "cd") == {"B": "c"}


def test_successes_that_were_given_before_count():
    two = {"A": "abc", "B": "abc"}
    assert successes(two, "ab") == {"A": "a"}
    assert successes(two, "ab", {"B": "b"}) == {}
    assert successes(two, "abc", {"B": "a"}) == {"A": "b"}


# --- candidates ------------------------------------------------------------------------------------------------------

moments = st.none() | st.integers(-40, 80)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "createdAt": moments,
            "startedAt": moments,
            "completedAt": moments,
            "requestId": st.sampled_from([None, None, None, "req-A", "req-B"]),
            "id": st.sampled_from([True, True, True, False]),
        }
    ),
    max_size=6,
    unique_by=lambda row: row["requestId"] or object(),
)


def row_of(name, fields):
    times = {key: at(value).isoformat() for key, value in fields.items() if key.endswith("At") and value is not None}
    name = {"id": name} if fields["id"] else {}
    return read_event({**name, "status": "RUNNING", "requestId": fields["requestId"], **times})


@settings(max_examples=examples(300), deadline=None)
@given(
    fields=rows,
    known=st.sets(st.sampled_from(NAMES[:6]), max_size=2),
    before=st.none() | st.integers(-20, 20),
    after=st.none() | st.integers(0, 30),
    request_id=st.sampled_from([None, "req-A", "a"]),
    event_id=st.sampled_from([None, None, "a"]),
)
def test_alone_a_submission_has_the_same_candidates_as_in_the_matching_of_one(
    fields, known, before, after, request_id, event_id
):
    seen = list({row.id: row for row in map(row_of, NAMES, fields)}.values())
    window = MatchWindow(
        request_id=request_id,
        event_id=event_id,
        known_event_ids=frozenset(known),
        server_before=None if before is None else at(before),
        server_after=None if after is None else at(after),
    )
    match = JointMatch([Claim("A", window, SETTLE, T0, Binds.NOW)], seen)
    expected = matching.candidates(window, seen, within=SETTLE)
    assert match.event_ids("A") == tuple(one.id for one in expected)
