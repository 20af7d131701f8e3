"""What the page shows of runs and agents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow_provider_agents.api.models import read_agent, read_event
from airflow_provider_agents.budget import Budget
from airflow_provider_agents.ui.rows import agent_rows, budget_use, first_day, run_rows, usage_by_agent

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def event(name, status, minutes_ago, *, seconds=None, **fields):
    began = NOON - timedelta(minutes=minutes_ago)
    ended = {"completedAt": (began + timedelta(seconds=seconds)).isoformat()} if seconds is not None else {}
    times = {"createdAt": began.isoformat(), "startedAt": began.isoformat()}
    return read_event({"id": name, "agentId": "agent-1", "status": status, **times, **ended, **fields})


def test_active_runs_come_first_and_then_the_newest():
    events = [
        event("old", "COMPLETED", 30, seconds=5),
        event("new", "FAILED", 5, seconds=5),
        event("long", "RUNNING", 60),
        event("queued", "PENDING", 1),
    ]
    assert [row["id"] for row in run_rows(events, NOON)] == ["queued", "long", "new", "old"]


def test_an_active_run_counts_up_to_the_question_and_an_ended_one_to_its_end():
    rows = run_rows([event("long", "RUNNING", 2), event("done", "COMPLETED", 9, seconds=45)], NOON)
    assert [row["seconds"] for row in rows] == [120.0, 45.0]


def test_a_clock_that_is_ahead_counts_no_seconds_below_zero():
    assert run_rows([event("ahead", "RUNNING", -3)], NOON)[0]["seconds"] == 0.0


def test_a_run_that_two_listings_show_is_there_once_as_it_ended():
    for order in ((0, 1), (1, 0)):
        states = [event("one", "RUNNING", 2), event("one", "COMPLETED", 2, seconds=5)]
        assert [row["status"] for row in run_rows([states[i] for i in order], NOON)] == ["COMPLETED"]


def test_a_failed_run_shows_its_error_and_an_unreadable_one_its_reason():
    failed = event("failed", "FAILED", 2, seconds=1, error={"message": "no\nlogin"})
    unreadable = event("odd", "RUNNING", 3, createdAt=17)
    rows = {row["id"]: row for row in run_rows([failed, unreadable], NOON)}
    assert (rows["failed"]["state"], rows["failed"]["error"]) == ("failed", "no login")
    assert rows["odd"]["status"] == "unreadable"
    assert "createdAt" in rows["odd"]["error"]


def test_texts_of_the_platform_are_short():
    row = run_rows([event("one", "FAILED", 2, seconds=1, error="x" * 10**6, finalModel="m" * 10**6)], NOON)[0]
    assert len(row["error"]) <= 500
    assert len(row["model"]) <= 100


def test_agents_are_in_the_order_of_their_names_with_their_schedule_in_words():
    agents = [
        read_agent({"id": "2", "name": "prices", "schedule": '{"tasksPerDay": 2, "times": ["08:00", "20:00"]}'}),
        read_agent({"id": "1", "name": "News", "status": "ACTIVE"}),
    ]
    rows = agent_rows(agents)
    assert [row["name"] for row in rows] == ["News", "prices"]
    assert [row["schedule"] for row in rows] == ["", "2 times a day at 08:00, 20:00"]


def test_use_is_added_up_by_agent_and_day_and_days_without_runs_are_there():
    events = [
        event("a", "COMPLETED", 10, seconds=60, browserSessionSeconds=40),
        event("b", "FAILED", 20, seconds=60, browserSessionSeconds=2),
        event("c", "COMPLETED", 24 * 60, seconds=60, browserSessionSeconds=5),
    ]
    rows = usage_by_agent(events, NOON)
    days = rows["agent-1"]["days"]
    assert [day["day"] for day in (days[0], days[-1])] == ["2025-12-26", "2026-01-01"]
    assert [day["runs"] for day in days] == [0, 0, 0, 0, 0, 1, 2]
    assert (days[-1]["failed"], days[-1]["browser_seconds"]) == (1, 42.0)
    assert rows["agent-1"]["week"]["browser_seconds"] == 47.0


def test_the_first_day_begins_at_midnight_utc():
    assert first_day(NOON) == datetime(2025, 12, 26, tzinfo=UTC)


def test_a_budget_counts_the_runs_of_its_period_for_each_agent_or_for_all():
    events = [
        event("a", "COMPLETED", 10, seconds=60, browserSessionSeconds=40),
        event("b", "RUNNING", 20, browserSessionSeconds=2, agentId="agent-2"),
        event("c", "COMPLETED", 24 * 60, seconds=60, browserSessionSeconds=5),
    ]
    own = budget_use(Budget(runs=20), events, NOON)
    assert own["used"] == {
        "agent-1": {"runs": 1, "browser_seconds": 40.0, "failures": 0},
        "agent-2": {"runs": 1, "browser_seconds": 2.0, "failures": 0},
    }
    assert own["limits"] == {"runs": 20, "browser_seconds": None, "failures": None}
    together = budget_use(Budget(browser_seconds=100, of="account"), events, NOON)
    assert together["used"] == {"": {"runs": 2, "browser_seconds": 42.0, "failures": 0}}


def test_the_failed_runs_in_a_row_of_a_budget_are_counted_from_the_newest():
    ends = ("FAILED", "FAILED", "COMPLETED", "FAILED")
    events = [event(str(number), end, 10 * number + 10, seconds=1) for number, end in enumerate(ends)]
    shown = budget_use(Budget(failures=3, per=timedelta(hours=6)), events, NOON)
    assert (shown["used"]["agent-1"]["failures"], shown["limits"]["failures"], shown["per"]) == (2, 3, 21600.0)


def test_without_a_budget_or_with_one_of_more_than_seven_days_nothing_is_shown():
    assert budget_use(None, [], NOON) is None
    assert budget_use(Budget(runs=1, per=timedelta(days=30)), [], NOON) is None
