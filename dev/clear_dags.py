"""The DAGs of `make clears`: one for each shape of a task, and each way to wait. Each DAG run names its agents."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import product
from typing import Any

from airflow.sdk import DAG, task_group

from airflow_provider_agents.operators import ExecuteAgentOperator

AGENT = "{{ dag_run.conf['agent'] }}"
#: A task that is to time out and be retried, in seconds; the retry sees the end of a run of `clears.WAIT_SECONDS`.
TIMEOUT = 25.0


def operator(agent_id: str, **arguments: Any) -> ExecuteAgentOperator:
    """The task."""
    return ExecuteAgentOperator(task_id="run", agent_id=agent_id, poll_interval=1.0, settle=5.0, **arguments)


SHAPES = ["plain", "mapped", *(["looped"] if hasattr(task_group(lambda: None), "loop") else [])]

for shape, waits, retried in product(SHAPES, ("triggerer", "worker"), (False, True)):
    arguments = {
        "deferrable": waits == "triggerer",
        # On a busy machine Airflow can take a task for killed whose run ends soon.
        "retries": 1,
        "retry_delay": timedelta(seconds=1),
        "timeout": TIMEOUT if retried else 600.0,
    }
    with DAG(
        f"clears_{shape}_{waits}" + "_retried" * retried,
        schedule=None,
        # A clear by the command line names a logical date, and must find only what ran then.
        start_date=datetime(2020, 1, 1),  # noqa: DTZ001 - Airflow takes it for UTC
        max_active_runs=100,
        max_active_tasks=100,
    ) as dag:
        if shape == "plain":
            operator(f"{AGENT}-0", **arguments)
        elif shape == "mapped":
            ExecuteAgentOperator.partial(task_id="run", poll_interval=1.0, settle=5.0, **arguments).expand(
                agent_id=[f"{AGENT}-{number}" for number in range(2)]
            )
        else:

            @task_group
            def again(arguments: dict[str, object] = arguments) -> None:
                """One iteration: a task of a loop has a record for each."""
                operator(AGENT + "-{{ loop.index }}", **arguments)

            again.loop(max_iterations=1)  # type: ignore[attr-defined]  # from Airflow 3.4 on
    globals()[dag.dag_id] = dag
