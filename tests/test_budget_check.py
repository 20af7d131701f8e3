"""A budget in a task and on the command line, over HTTP: what it refuses, and that nothing is sent then."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pendulum
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, TaskDeferred
from airflow.sdk import DAG
from conftest import Task, change, connection
from test_operators import through_the_trigger

from airflow_provider_agents.api.errors import (
    AgentRunFailedError,
    BudgetExceededError,
    InvalidArgumentError,
    InvalidConnectionError,
    ServerError,
)
from airflow_provider_agents.budget import Budget
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.operators import CheckAgentBudgetOperator, ExecuteAgentOperator
from airflow_provider_agents.simulator import Fault


def operator(**arguments):
    arguments = {"task_id": "run", "agent_id": "agent-1", "deferrable": False, **arguments}
    return ExecuteAgentOperator(**arguments)


def check(**arguments):
    return CheckAgentBudgetOperator(**{"task_id": "check", "agent_id": "agent-1", **arguments})


@pytest.fixture
def connected(platform, monkeypatch):
    def connect(**extra):
        monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, **extra))

    return connect


def posts(platform):
    return platform.sim.count("POST")


def test_a_task_whose_budget_is_used_up_fails_without_retries_and_sends_no_post(platform, task):
    with pytest.raises(AirflowFailException) as failed:
        operator(budget=Budget(runs=3, browser_seconds=180, per=timedelta(hours=10))).execute(task.context())
    assert str(failed.value) == (
        "The task's budget for agent agent-1 leaves no room for another run: 3 of 3 runs, 180 of 180 browser seconds "
        "since 2025-12-31 23:00:00 UTC. Nothing was started. There is room again after 2026-01-01 16:00:00 UTC, if no "
        "more runs are started."
    )
    assert isinstance(failed.value.__cause__, BudgetExceededError)
    assert failed.value.__cause__.room_at == datetime(2026, 1, 1, 16, tzinfo=UTC)
    assert posts(platform) == 0


def test_a_task_is_skipped_if_its_budget_says_so_and_the_log_says_why(platform, task, logged):
    with pytest.raises(AirflowSkipException, match="3 of 3 runs"):
        operator(budget=Budget(runs=3, over="skip")).execute(task.context())
    assert "The task is skipped. The task's budget for agent agent-1 leaves no room" in logged()
    assert posts(platform) == 0


def test_a_task_with_room_runs_and_pays_two_requests_for_the_question(platform, task):
    operator(wait_for_completion=False).execute(task.context())
    without = platform.sim.count()
    operator(wait_for_completion=False, budget=Budget(runs=5)).execute(Task().context())
    assert platform.sim.count() - without == without + 2
    assert posts(platform) == 2


def test_a_run_in_the_queue_counts_and_the_next_task_is_refused(platform, task):
    change(platform, queue_seconds=600.0, sort_by="startedAt", nulls="last")
    submit = {"wait_for_completion": False, "budget": Budget(runs=4)}
    operator(**submit).execute(task.context())
    with pytest.raises(AirflowFailException, match="4 of 4 runs"):
        operator(**submit).execute(Task().context())
    assert posts(platform) == 1


def test_an_account_counts_the_runs_of_all_its_agents(platform, task):
    platform.sim.add_agent("agent-2")
    platform.sim.add_history("agent-2", 2)
    assert check(budget=Budget(runs=4)).execute(task.context()) is True
    with pytest.raises(AirflowSkipException, match="budget for the account leaves no room for another run: 5 of 4 ru"):
        check(budget=Budget(runs=4, of="account")).execute(task.context())


def test_a_resumed_task_that_finds_its_run_again_asks_no_budget(platform, task):
    op = operator(deferrable=True, budget=Budget(runs=4))
    for _ in range(2):
        with pytest.raises(TaskDeferred):
            op.execute(task.context())
    assert posts(platform) == 1


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_task_that_waits_for_a_busy_agent_asks_once_the_agent_is_idle(platform, task, deferrable):
    platform.sim.start_scheduled_run("agent-1")
    op = operator(deferrable=deferrable, if_running="wait", budget=Budget(runs=4))
    with pytest.raises(AirflowFailException, match="4 of 4 runs"):
        through_the_trigger(op, task)
    assert sum(platform.slept) >= 6
    assert posts(platform) == 0


def test_a_retry_after_a_failed_run_asks_again(platform, task):
    platform.sim.add_agent("agent-1", end_status="FAILED")
    op = operator(budget=Budget(failures=1))
    with pytest.raises(AgentRunFailedError):
        op.execute(task.context())
    with pytest.raises(AirflowFailException, match="1 of 1 failed runs in a row"):
        op.execute(task.context())
    assert posts(platform) == 1


def test_a_day_begins_at_midnight_of_the_dags_time_zone(platform, task):
    tokyo = pendulum.timezone("Asia/Tokyo")  # 18:00 there, and the day began at 15:00 UTC
    platform.sim.add_history("agent-1", 1, every=16 * 3600)
    for zone, has_room in ((tokyo, False), (pendulum.timezone("UTC"), True)):
        with DAG("dag", start_date=pendulum.datetime(2026, 1, 1, tz=zone), schedule=None):
            op = check(budget=Budget(runs=4))
        if has_room:
            assert op.execute(task.context()) is True
        else:
            with pytest.raises(AirflowSkipException, match="since 2026-01-01 00:00:00 JST.*after 2026-01-02 00:00:00"):
                op.execute(task.context())


def test_where_the_runs_cannot_be_read_nothing_is_started(platform, task):
    platform.sim.add_fault(Fault(kind="status", status=503, method="GET", times=None))
    with pytest.raises(ServerError):
        operator(budget=Budget(runs=20)).execute(task.context())
    assert posts(platform) == 0


def test_a_history_that_is_too_long_is_refused_after_25_pages(platform, task):
    platform.sim.add_history("agent-1", 60, every=60)
    change(platform, page_rows=2)
    with pytest.raises(AirflowFailException, match="not known, because the period has more than 25 pages of runs"):
        operator(budget=Budget(runs=1000)).execute(task.context())
    assert platform.sim.count() == 25
    assert posts(platform) == 0


# --- the connection's ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{"runs": 3}, '{"runs": 3, "per": 86400}'])
def test_a_connections_budget_holds_for_tasks_that_name_none(platform, task, connected, extra):
    connected(budget=extra)
    with pytest.raises(AirflowFailException, match="The connection's budget for agent agent-1 leaves no room"):
        operator().execute(task.context())
    assert posts(platform) == 0


@pytest.mark.parametrize(
    ("own", "shared", "outcome", "owner"),
    [
        ({"runs": 9}, {"runs": 3}, AirflowFailException, "connection"),
        ({"runs": 3}, {"runs": 9}, AirflowFailException, "task"),
        ({"runs": 3, "over": "skip"}, {"runs": 3}, AirflowFailException, "connection"),
        ({"runs": 3, "over": "skip"}, {"runs": 9}, AirflowSkipException, "task"),
    ],
)
def test_the_stricter_of_the_two_budgets_holds(platform, task, connected, own, shared, outcome, owner):
    connected(budget=shared)
    with pytest.raises(outcome, match=f"The {owner}'s budget"):
        operator(budget=Budget(**own)).execute(task.context())
    assert posts(platform) == 0


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("20", "The connection's extra budget cannot be used: A budget must be a JSON object."),
        ({"run": 20}, "A budget has no field 'run'. Its fields are runs, browser_seconds, failures, per, of, over."),
        ({"runs": 0}, "runs of a Budget must be a whole number from 1, got 0."),
        ({"runs": 1, "per": "x:key@host"}, "got a value with an @, which may hold a password."),
    ],
)
def test_a_connections_budget_that_cannot_work_is_named_before_anything_is_sent(
    platform, task, connected, extra, words
):
    connected(budget=extra)
    with pytest.raises(AirflowFailException) as failed:
        operator().execute(task.context())
    assert isinstance(failed.value.__cause__, InvalidConnectionError)
    assert words in str(failed.value)
    assert platform.sim.count() == 0


@pytest.mark.parametrize("over", ["fail", "skip"])
def test_a_run_that_the_hook_starts_asks_the_connections_budget(platform, connected, over):
    connected(budget={"runs": 4, "over": over})
    assert AgentsHook().execute_agent("agent-1").requestId == platform.sim.executions[0].request_id
    words = "The connection's budget for agent agent-1 leaves no room for another run: 4 of 4 runs"
    with pytest.raises(BudgetExceededError, match=words):
        AgentsHook().execute_agent("agent-1")
    with pytest.raises(BudgetExceededError, match=words):
        asyncio.run(AgentsHook().aexecute_agent("agent-1"))
    assert posts(platform) == 1


# --- the check of its own --------------------------------------------------------------------------------------------


def test_the_check_skips_whatever_over_says(platform, task, connected):
    connected(budget={"runs": 3, "over": "fail"})
    with pytest.raises(AirflowSkipException):
        check().execute(task.context())
    assert posts(platform) == 0


def test_a_check_without_any_budget_is_refused(platform, task):
    with pytest.raises(AirflowFailException, match="There is no budget to check. Set budget of task 'check'") as failed:
        check().execute(task.context())
    assert isinstance(failed.value.__cause__, InvalidArgumentError)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["fail", "skip"])
def test_the_command_to_run_respects_the_connections_budget(platform, command, connected, over):
    connected(budget={"runs": 3, "over": over})
    ended = command("run", "agent-1", "--wait")
    assert (ended.code, ended.out) == (1, "")
    assert "The connection's budget for agent agent-1 leaves no room for another run: 3 of 3 runs since" in ended.err
    assert ended.err.count("Nothing was started.") == 1
    connected(budget={"runs": 4})
    assert command("run", "agent-1").code == 0
    assert posts(platform) == 1


def test_a_probe_asks_the_connections_budget_before_each_run(platform, command, connected):
    connected(budget={"runs": 4})
    ended = command("probe", "agent-1", "--runs", "3", "--yes")
    assert "The connection's budget for agent agent-1 leaves no room for another run: 4 of 4 runs since" in ended.err
    assert "Runs started: 1 of 3." in ended.out
    assert posts(platform) == 1
    again = command("probe", "agent-1", "--yes")
    assert (again.code, again.out, again.err.count("Nothing was started.")) == (1, "", 1)
    assert posts(platform) == 1
