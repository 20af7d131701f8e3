"""What a cycle would cost, and narrow listings that show what is looked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api.flow import MAX_LIMIT
from airflow_provider_agents.polling import planner

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

some = st.lists(
    st.tuples(st.floats(0, 30000), st.integers(0, 5)).map(lambda one: (EPOCH + timedelta(seconds=one[0]), one[1])),
    min_size=1,
    max_size=60,
)


def begun(pairs):
    return [
        planner.StartedRun(started_at, f"event-{index}", f"agent-{agent}")
        for index, (started_at, agent) in enumerate(pairs)
    ]


@given(pairs=some, rate=st.none() | st.floats(0, 20), own_rate=st.none() | st.floats(0, 5), whole_account=st.booleans())
def test_each_event_is_in_one_window_that_would_show_it(pairs, rate, own_rate, whole_account):
    wanted = {one.event_id: one for one in begun(pairs)}
    windows = planner.windows(wanted.values(), rate, lambda agent_id: own_rate, whole_account=whole_account)
    assert sorted(event_id for window in windows for event_id in window.event_ids) == sorted(wanted)
    for window in windows:
        assert window.requests >= 1
        for event_id in window.event_ids:
            one = wanted[event_id]
            assert window.agent_id in {None, one.agent_id}
            assert window.after < one.started_at < window.before
    if not whole_account:
        assert all(window.agent_id is not None for window in windows)


@given(pairs=some, rate=st.none() | st.floats(0, 20))
def test_the_accounts_listing_is_asked_only_where_it_is_cheaper(pairs, rate):
    both = planner.windows(begun(pairs), rate, lambda agent_id: rate, whole_account=True)
    by_agent = planner.windows(begun(pairs), rate, lambda agent_id: rate, whole_account=False)
    assert planner.requests_of(both) <= planner.requests_of(by_agent)


def test_neighbours_share_a_window_unless_too_much_else_lies_between():
    pairs = [(EPOCH + timedelta(seconds=10 * number), 0) for number in range(50)]
    (together,) = planner.windows(begun(pairs), 1.0, lambda agent_id: 1.0, whole_account=False)
    assert together.requests == 3
    # Nothing is known of the agent: it has no fewer rows than what is looked for.
    (together,) = planner.windows(begun(pairs), 1.0, lambda agent_id: None, whole_account=False)
    assert together.requests == 1
    apart = planner.windows(begun(pairs), 1.0, lambda agent_id: 50.0, whole_account=False)
    assert len(apart) == 50


def test_an_estimate_is_believed_for_a_while():
    estimate = planner.ExpiringEstimate(1)
    assert estimate.at(0.0) == 1
    estimate.measured(7, clock=0.0)
    assert estimate.at(planner.BELIEVED_SECONDS - 1) == 7
    assert estimate.at(planner.BELIEVED_SECONDS) == 1


def test_rows_are_counted_in_pages():
    assert [planner.pages(rows) for rows in (0, 1, MAX_LIMIT, MAX_LIMIT + 1)] == [1, 1, 1, 2]
