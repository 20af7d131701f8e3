"""DAGs for the tests of the whole system: each way to wait for a run that something else has started."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG

from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor

START = datetime(2026, 1, 1)  # noqa: DTZ001 - Airflow adds UTC
QUICK = {"settle": 2.0, "appear_within": 20.0}

with DAG("system_sensor_ways", start_date=START, schedule=None):
    submit = ExecuteAgentOperator(
        task_id="submit", agent_id="agent-sensed", wait_for_completion=False, poll_interval=1.0, **QUICK
    )
    named = {"submission": submit.output, "poke_interval": 1.0, **QUICK}
    AgentRunSensor(task_id="deferrable", **named)
    AgentRunSensor(task_id="poke", mode="poke", **named)
    # Airflow's scheduler takes a task that is due again within a second or two for one that was killed.
    AgentRunSensor(task_id="reschedule", mode="reschedule", **{**named, "poke_interval": 10.0})

with DAG("system_sensor_soft", start_date=START, schedule=None):
    for name, arguments in {
        "failed": {"agent_id": "{{ dag_run.conf.agent }}", "event_id": "{{ dag_run.conf.event }}"},
        "late": {"agent_id": "agent-news", "started_after": "2099-01-01T00:00:00+00:00", "timeout": 6},
        "bad_key": {"agent_id": "agent-123", "event_id": "e", "agents_conn_id": "agents_wrong_key"},
        "wrong_id": {"agent_id": "agent-123", "event_id": "no-such-event", "settle": 6.0},
    }.items():
        more = {"soft_fail": True, "poke_interval": 1.0, "retries": 2, "retry_delay": timedelta(seconds=1)}
        AgentRunSensor(task_id=name, **{**QUICK, **more, **arguments})

with DAG("system_in_the_triggerer", start_date=START, schedule=None):
    operator = ExecuteAgentOperator(
        task_id="operator", agent_id="agent-prices", poll_interval=1.0, end_from_trigger=True, **QUICK
    )
    wait = {"agent_id": "agent-sensed", "start_from_trigger": True, "poke_interval": 1.0, **QUICK}
    AgentRunSensor(task_id="event", event_id="{{ dag_run.conf.event }}", **wait)
    AgentRunSensor(
        task_id="failing", **{**wait, "agent_id": "{{ dag_run.conf.agent }}"}, event_id="{{ dag_run.conf.failing }}"
    )
    AgentRunSensor(
        task_id="late", started_after="2099-01-01T00:00:00+00:00", timeout=6, retry_delay=timedelta(seconds=1), **wait
    )
    # Mapped, it takes a worker, and loses nothing.
    AgentRunSensor.partial(task_id="mapped", **wait).expand(event_id=["{{ dag_run.conf.event }}"])
