"""The example DAGs in a real Airflow, and what must come of each. `make matrix` runs this on every Airflow.

An example that needs a newer Airflow than this one is left out here; a test says what its author is told.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from command import ROOT, new_home, run_command
from real_airflow import (
    QUICK_WORKERS,
    RealAirflow,
    RealAirflowError,
    SimulatorServer,
    connection_to,
    simulator_server,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = "example-key"
#: The pools that the examples' tasks run in.
POOLS = {"agent-shop": {"slots": 1, "description": "one run at a time", "include_deferred": True}}
#: The Airflow that an example needs, where that is more than the package needs.
NEEDS = {
    "agent_approval": (3, 1),
    "agent_deadline": (3, 1),
    "agent_failed_is_final": (3, 3),
    "agent_without_workers": (3, 3),
}
#: How the DAG run of an example ends, where that is not well.
ENDS = {"agent_failed_is_final": "failed"}
#: Airflow starts a run of these by itself.
START_BY_THEMSELVES = {
    "agent_asset_consumer",
    "agent_backfill",
    "agent_finished_starts_dag",
    "agent_on_its_own_schedule",
}
#: What the callback of the page on deadlines logs, and where that page has it.
DEADLINE_WORDS = "The briefing is late."
DEADLINE_PAGE = ROOT / "docs" / "how-to" / "deadline.md"
_END_SECONDS = 240.0
_READING_SECONDS = 5.0
_BACKFILLED_DAYS = 3


def this_airflow() -> tuple[int, ...]:
    """The minor release that is installed."""
    return tuple(int(part) for part in version("apache-airflow-core").split(".")[:2])


def examples() -> dict[str, Path]:
    """The examples that this Airflow can run, by the id of their DAG."""
    files = {file.stem: file for file in sorted((ROOT / "example_dags").glob("*.py"))}
    return {dag_id: file for dag_id, file in files.items() if this_airflow() >= NEEDS.get(dag_id, (3, 0))}


def files_of(home: Path) -> list[Path]:
    """The examples as they run here: a deadline passes after seconds, and its callback is in the plugins folder."""
    files = examples()
    (home / "plugins").mkdir(parents=True)
    callback = re.search(
        r'^```python title="plugins/agent_alerts.py"\n(.*?)^```', DEADLINE_PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    if callback is None:
        raise RealAirflowError(f"{DEADLINE_PAGE.name} has no callback")
    (home / "plugins" / "agent_alerts.py").write_text(callback[1])
    if "agent_deadline" in files:
        text = files["agent_deadline"].read_text()
        _must("interval=timedelta(hours=1)" in text, "the deadline of agent_deadline is not an hour")
        files["agent_deadline"] = home / "agent_deadline.py"
        files["agent_deadline"].write_text(text.replace("interval=timedelta(hours=1)", "interval=timedelta(seconds=5)"))
    return list(files.values())


class Show:
    """A running Airflow with the examples, and a platform.

    Args:
        airflow: with every DAG on.
        simulator: the platform.
    """

    def __init__(self, airflow: RealAirflow, simulator: SimulatorServer) -> None:
        self.airflow, self.simulator = airflow, simulator
        self.run_ids: dict[str, str] = {}

    def xcom(self, dag_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """A decoded XCom of an example's run."""
        value = self.airflow.xcom(dag_id, self.run_ids[dag_id], task_id, key, map_index)
        with contextlib.suppress(TypeError, ValueError):
            return json.loads(value)
        return value

    def first_run(self, dag_id: str) -> str:
        """The run that Airflow has started by itself."""

        def started() -> str | None:
            runs = self.airflow.api("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=1")["dag_runs"]
            return runs[0]["dag_run_id"] if runs else None

        run_id: str = until(started, _END_SECONDS, f"a run of {dag_id}", pause=1.0)
        return run_id

    def approve(self) -> None:
        """Answer as the person whom `agent_approval` asks."""
        dag_id = "agent_approval"
        path = f"/api/v2/dags/{dag_id}/dagRuns/{self.run_ids[dag_id]}/taskInstances/approve/-1/hitlDetails"

        def asked() -> bool:
            with contextlib.suppress(RealAirflowError):
                self.airflow.api("GET", path)
                return True
            return False

        until(asked, _END_SECONDS, "the question to a person", pause=1.0)
        # Nobody answers at once, and a scheduler that is slower than the answer takes the task for one that was killed.
        time.sleep(_READING_SECONDS)
        self.airflow.api("PATCH", path, {"chosen_options": ["Approve"], "params_input": {}})

    def must_be_of(self, event: dict[str, Any], dag_id: str, task_id: str, map_index: int = -1) -> None:
        """The event must be that of the run which the task has started, by the platform's own word."""
        request_id = self.xcom(dag_id, task_id, "request_id", map_index)
        (mine,) = [done["eventId"] for done in self.simulator.executions() if done["requestId"] == request_id]
        _must(event["id"] == mine and event["status"] == "COMPLETED", f"{task_id} returned {event}, its run is {mine}")


def _must(holds: bool, words: str) -> None:
    if not holds:
        raise RealAirflowError(words)


def _deferred(show: Show) -> None:
    show.must_be_of(show.xcom("agent_deferred", "run_agent"), "agent_deferred", "run_agent")


def _deadline(show: Show) -> None:
    log = show.airflow.log_file("triggerer")

    def called() -> bool:
        return DEADLINE_WORDS in log.read_text(errors="replace")

    until(called, _END_SECONDS, "the callback of a deadline", pause=1.0)


def _budget(show: Show) -> None:
    show.must_be_of(show.xcom("agent_budget", "run_agent"), "agent_budget", "run_agent")


def _mapped(show: Show) -> None:
    for index in range(3):
        event = show.xcom("agent_mapped", "run_agents", map_index=index)
        show.must_be_of(event, "agent_mapped", "run_agents", index)
    compared = show.xcom("agent_mapped", "compare")
    _must(set(compared) == {"agent-prices", "agent-news", "agent-weather"}, f"compared {compared}")


def _start_then_wait(show: Show) -> None:
    show.must_be_of(show.xcom("agent_start_then_wait", "wait_for_agent"), "agent_start_then_wait", "start_agent")


def _approval(show: Show) -> None:
    published = show.xcom("agent_approval", "publish")
    _must(str(published).startswith("published event-"), f"published {published}")


def _on_its_own_schedule(show: Show) -> None:
    event = show.xcom("agent_on_its_own_schedule", "nightly_run")
    _must(event["agentId"] == "agent-nightly" and event["status"] == "COMPLETED", f"nightly_run returned {event}")


def _finished_starts_dag(show: Show) -> None:
    told = show.xcom("agent_finished_starts_dag", "note")
    known = {*show.simulator.runs()}
    _must(bool(told) and all(line.split()[1] in known for line in told), f"the watcher told {told}")


def _without_workers(show: Show) -> None:
    show.must_be_of(show.xcom("agent_without_workers", "run_agent"), "agent_without_workers", "run_agent")


def _asset_consumer(show: Show) -> None:
    (run,) = show.xcom("agent_asset_consumer", "note")
    event = show.xcom("agent_asset_producer", "run_agent")
    show.must_be_of(event, "agent_asset_producer", "run_agent")
    wanted = ("agent-market", event["id"], event["finalModel"])
    _must((run["agent_id"], run["event_id"], run["finalModel"]) == wanted, f"the asset event named {run}")


def _all_active(show: Show) -> None:
    reported = show.xcom("agent_all_active", "report")
    _must(sorted(reported) == ["agent-fleet-east COMPLETED", "agent-fleet-west COMPLETED"], f"reported {reported}")
    rows = show.airflow.task_instances("agent_all_active", show.run_ids["agent_all_active"])
    names = {row["rendered_map_index"] for row in rows if row["task_id"] == "run_agents"}
    _must(names == {"agent-fleet-east", "agent-fleet-west"}, f"the mapped tasks are called {names}")


def _failed_is_final(show: Show) -> None:
    started = len(show.simulator.executions("agent-fragile"))
    _must(started == 1, f"{started} runs were paid for")
    rows = show.airflow.task_instances("agent_failed_is_final", show.run_ids["agent_failed_is_final"])
    _must([row["try_number"] for row in rows] == [1], f"the tries are {rows}")


def _backfill(show: Show) -> None:
    dag_id = "agent_backfill"
    days = {"from_date": "2026-01-01T00:00:00Z", "to_date": "2026-01-03T00:00:00Z"}
    show.airflow.api("POST", "/api/v2/backfills", {"dag_id": dag_id, "max_active_runs": 1, "dag_run_conf": {}, **days})

    def ended() -> list[str] | None:
        runs = show.airflow.api("GET", f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"]
        states = [run["state"] for run in runs if run["run_type"] == "backfill"]
        return states if len(states) == _BACKFILLED_DAYS and not {"queued", "running"} & {*states} else None

    states = until(ended, _END_SECONDS, "the end of the backfill", pause=1.0)
    _must(set(states) == {"success"}, f"the DAG runs of the backfill are {states}")
    started = len(show.simulator.executions("agent-archive"))
    _must(started == 1, f"the schedule and a backfill of three days paid for {started} runs")


LOOKS: dict[str, Callable[[Show], None]] = {
    "agent_all_active": _all_active,
    "agent_approval": _approval,
    "agent_budget": _budget,
    "agent_asset_consumer": _asset_consumer,
    "agent_backfill": _backfill,
    "agent_deadline": _deadline,
    "agent_deferred": _deferred,
    "agent_failed_is_final": _failed_is_final,
    "agent_finished_starts_dag": _finished_starts_dag,
    "agent_mapped": _mapped,
    "agent_on_its_own_schedule": _on_its_own_schedule,
    "agent_start_then_wait": _start_then_wait,
    "agent_without_workers": _without_workers,
}


def run_all(show: Show) -> dict[str, str]:
    """Run every example; what is wrong with each that did not do what it should."""
    airflow = show.airflow
    names = list(examples())
    for dag_id in names:
        if dag_id not in START_BY_THEMSELVES:
            show.run_ids[dag_id] = airflow.trigger(dag_id)
    if "agent_approval" in names:
        show.approve()
    wrong: dict[str, str] = {}
    for dag_id in names:
        began_at = time.monotonic()
        try:
            if dag_id in START_BY_THEMSELVES:
                show.run_ids[dag_id] = show.first_run(dag_id)
            state = airflow.wait_for_dag_run(dag_id, show.run_ids[dag_id], _END_SECONDS)
            _must(state == ENDS.get(dag_id, "success"), f"the DAG run is {state}")
            if look := LOOKS.get(dag_id):
                look(show)
            print(f"{dag_id}: as it should be ({time.monotonic() - began_at:.0f} s more)", flush=True)
        except (RealAirflowError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            wrong[dag_id] = f"{type(error).__name__}: {error}"
            print(f"{dag_id}: {wrong[dag_id]}\n{_logs(airflow, dag_id, show.run_ids.get(dag_id))}", flush=True)
    return wrong


def _logs(airflow: RealAirflow, dag_id: str, run_id: str | None) -> str:
    """The end of the logs of an example's tasks that did not succeed."""
    if run_id is None:
        return airflow.log_file("triggerer").read_text(errors="replace")[-2000:]
    texts = []
    for row in airflow.task_instances(dag_id, run_id):
        if row["state"] != "success":
            with contextlib.suppress(RealAirflowError):
                log = airflow.log_text(dag_id, run_id, row["task_id"], row["try_number"] or 1, row["map_index"])
                texts.append(f"--- {row['task_id']} ({row['state']})\n{log[-2000:]}")
    return "\n".join(texts)


def main() -> int:
    """Run the examples; the exit status. The last line printed says how many did what they should."""
    env = {
        **QUICK_WORKERS,
        # A watcher starts with the first parse after its DAG is on.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    }
    with (
        new_home("examples") as home,
        simulator_server(home, "--key", KEY) as simulator,
        RealAirflow(
            home,
            dags=files_of(home),
            env=env,
            database="postgres",
            connections={"agents_default": connection_to(simulator.url, KEY)},
            pools=POOLS,
        ) as airflow,
    ):
        wrong = run_all(Show(airflow, simulator))
    print(f"{len(examples()) - len(wrong)} of {len(examples())}")
    return int(bool(wrong))


if __name__ == "__main__":
    run_command(main)
