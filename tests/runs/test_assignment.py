"""One event to each submission: against all assignments, tried one by one."""

from __future__ import annotations

import itertools

from claims import NAMES, claim, events, joint, possible
from driving import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_agents.runs.joint import Binds, JointMatch

graphs = st.dictionaries(st.sampled_from("ABCDEF"), st.sets(st.sampled_from(NAMES[:6])), min_size=1)


def assignments(candidates):
    """All ways to give each key an event of its own."""
    for chosen in itertools.product(*(sorted(ids) for ids in candidates.values())):
        if len(set(chosen)) == len(chosen):
            yield dict(zip(candidates, chosen, strict=True))


def short_of_events(candidates):
    """The keys in a smallest set that has fewer events than keys, and in those that lack the most."""
    subsets = [
        subset for size in range(len(candidates) + 1) for subset in itertools.combinations(sorted(candidates), size)
    ]

    def lack(subset):
        return len(subset) - len(set().union(*(candidates[key] for key in subset)))

    most = max(map(lack, subsets))
    return set(min((subset for subset in subsets if lack(subset) == most), key=len))


@settings(max_examples=examples(300), deadline=None)
@given(graph=graphs, order=st.permutations(NAMES[:6]), others=graphs)
def test_the_events_left_are_those_of_all_assignments(graph, order, others):
    others = {key.lower() + "-": ids for key, ids in others.items()}
    claims = [claim(key, ids) for key, ids in graph.items()]
    match = JointMatch([*claims, *(claim(key, ids, binds=Binds.NEVER) for key, ids in others.items())], events(order))
    short = short_of_events(graph)
    rest = {key: ids for key, ids in graph.items() if key not in short}
    ways = list(assignments(rest))
    assert ways
    for key, ids in graph.items():
        expected = {way[key] for way in ways} if key in rest else ids
        assert match.event_ids(key) == tuple(sorted(expected, key=order.index))
        assert (match.group(key) is None) == (key in short)
    for key, ids in others.items():
        left = {one for one in ids if any(one not in way.values() for way in ways)}
        assert match.event_ids(key) == tuple(sorted(left, key=order.index))


@settings(max_examples=examples(300), deadline=None)
@given(graph=graphs, order=st.permutations(NAMES[:6]))
def test_groups_share_no_event_and_the_first_assignment_in_time_is_shared_out(graph, order):
    match = joint(graph, order)
    seen = [one for group in match.groups for one in group.event_ids]
    assert len(seen) == len(set(seen))
    shared = match.share({})
    assert len(set(shared.values())) == len(shared)
    assert all(one in match.event_ids(key) for key, one in shared.items())
    for group in match.groups:
        ways = assignments({key: match.event_ids(key) for key in group.keys})
        first = min(ways, key=lambda way: [order.index(way[key]) for key in group.keys])
        assert {key: shared[key] for key in group.keys} == first
        assert group.is_closed == (len(group.keys) == len(group.event_ids))
        assert set(group.event_ids) == set().union(*(match.event_ids(key) for key in group.keys))


@settings(max_examples=examples(200), deadline=None)
@given(graph=graphs, order=st.permutations(NAMES[:6]), data=st.data())
def test_what_was_given_is_kept_and_no_event_goes_to_two(graph, order, data):
    names = data.draw(st.lists(st.sampled_from(NAMES[:6]), unique=True))
    keys = data.draw(st.lists(st.sampled_from([*graph, "X", "Y"]), unique=True))
    given_before = dict(zip(keys, names, strict=False))
    match = joint(graph, order)
    shared = match.share(given_before)
    assert shared.items() >= {key: one for key, one in given_before.items() if key in graph}.items()
    all_given = shared | given_before
    assert len(set(all_given.values())) == len(all_given)
    for group in match.groups:
        if group.is_closed and not set(given_before) - set(group.keys):
            assert len({shared[key] for key in group.keys}) == len(group.keys)


@settings(max_examples=examples(200), deadline=None)
@given(graph=graphs, order=st.permutations(NAMES[:6]), data=st.data())
def test_neither_the_order_nor_what_else_is_known_changes_how_a_closed_group_is_shared(graph, order, data):
    claims = [claim(key, ids) for key, ids in graph.items()]
    few = data.draw(st.lists(st.sampled_from(claims), unique_by=lambda one: one.key))
    all_claims, rows = data.draw(st.permutations(claims)), data.draw(st.permutations(events(order)))
    all_match, few_match = JointMatch(all_claims, rows), JointMatch(few, events(order))
    assert possible(all_match, graph) == possible(joint(graph, order), graph)
    assert all_match.share({}) == joint(graph, order).share({})
    if short_of_events(graph):
        return
    for group in few_match.groups:
        # To leave claims out only leaves more events possible.
        assert all(set(all_match.event_ids(key)) <= set(few_match.event_ids(key)) for key in group.keys)
        if group.is_closed:
            assert group in all_match.groups
            assert {key: all_match.share({})[key] for key in group.keys} == {
                key: few_match.share({})[key] for key in group.keys
            }


@settings(max_examples=examples(300), deadline=None)
@given(graph=graphs, order=st.permutations(NAMES[:6]), completed=st.sets(st.sampled_from(NAMES[:6])), data=st.data())
def test_no_more_submissions_succeed_than_runs_completed_in_any_assignment(graph, order, completed, data):
    match = joint(graph, order)
    for group in match.groups:
        ways = list(assignments({key: match.event_ids(key) for key in group.keys}))
        least = min(sum(one in completed for one in way.values()) for way in ways)
        successful = match.certain_successes(group, completed, {})
        assert len(successful) == least
        assert len(set(successful.values())) == len(successful)
        assert all(one in completed.intersection(match.event_ids(key)) for key, one in successful.items())
        before = dict(data.draw(st.lists(st.sampled_from(sorted(successful.items())), unique=True))) if least else {}
        more = match.certain_successes(group, completed, before)
        assert len(more) <= least - len(before)
        assert not set(more.values()) & set(before.values())
