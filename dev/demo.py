"""`make demo`: one agent run in a real Airflow, from the DAG's start to the event that the next task receives."""

from __future__ import annotations

import json
import sys
import time

from command import ROOT, new_home, run_command
from real_airflow import QUICK_WORKERS, RealAirflow, connection_json, simulator_server

DAG, TASK, NEXT = "agent_deferred", "run_agent", "report"
KEY = "demo-key"
_started = time.monotonic()


def say(text: str) -> None:
    """A line with the seconds since the start."""
    print(f"[{time.monotonic() - _started:5.1f}s] {text}", flush=True)


def follow(airflow: RealAirflow, run_id: str, runs: dict[str, str], states: dict[str, str]) -> str:
    """Print what has changed and return the DAG run's state."""
    for instance in airflow.task_instances(DAG, run_id):
        name, state = instance["task_id"], instance["state"] or "waiting"
        if states.get(name) != state:
            states[name] = state
            say(f"Airflow   task {name}: {state}")
    for event_id, status in runs.items():
        if states.get(event_id) != status:
            states[event_id] = status
            say(f"platform  run {event_id}: {status}")
            if status == "COMPLETED":
                say("          (no id ties an event to its request, so the task waits until no other can appear)")
    dag_state: str = airflow.api("GET", f"/api/v2/dags/{DAG}/dagRuns/{run_id}")["state"]
    return dag_state


def main() -> int:
    """Run the demo; the exit status."""
    with new_home("demo") as home:
        say("Starting the simulated agents platform and a real Airflow (about half a minute) ...")
        with (
            simulator_server(home, "--key", KEY) as simulator,
            RealAirflow(
                home,
                dags=[ROOT / "example_dags" / "agent_deferred.py"],
                env={**QUICK_WORKERS, "AIRFLOW_CONN_AGENTS_DEFAULT": connection_json(simulator.url, KEY)},
            ) as airflow,
        ):
            say(f"Airflow is up. Starting the DAG {DAG}: an agent's run, then a task that uses its final event.")
            run_id = airflow.trigger(DAG)
            states: dict[str, str] = {}
            state, ends_at = "", time.monotonic() + 180
            while state not in {"success", "failed"} and time.monotonic() < ends_at:
                runs = {run["eventId"]: run["status"] for run in simulator.runs().values() if run["by"] == "execute"}
                state = follow(airflow, run_id, runs, states)
                time.sleep(0.5)
            if state != "success":
                print(airflow.log_text(DAG, run_id, TASK), file=sys.stderr)
                say(f"The DAG run is {state or 'not over'}; the log of {TASK} is above.")
                return 1
            event = airflow.xcom(DAG, run_id, TASK)
            event = json.loads(event) if isinstance(event, str) else event
            say(f"The task {NEXT} received this final event from XCom, and returned: ")
            print(f"\n    {airflow.xcom(DAG, run_id, NEXT)}\n")
            print(json.dumps(event, indent=2))
            print(
                "\nThe agent's run was started once. Its task waited in the triggerer and returned its event.\n"
                "Next:  make up     Airflow's UI with the simulator and all example DAGs\n"
                "       make test   every check and test\n"
                "       README.md, docs/operator.md and docs/what-happens-when.md"
            )
        return 0


if __name__ == "__main__":
    run_command(main)
