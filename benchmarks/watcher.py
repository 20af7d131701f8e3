"""A thousand finished runs and a triggerer that is killed ten times: does each run reach a DAG run?

Run it with `make watcher` (about eight minutes). A real Airflow on PostgreSQL watches the simulator with the example
`agent_finished_starts_dag`. The platform starts runs in bursts; they end in random order. Meanwhile the triggerer is
killed (SIGKILL) and started again. At the end the metadata database says which runs were in the triggering events of a
DAG run, and the DAG's XComs what its task made of them. A whole run writes its figures to the documentation.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dev"))

import evidence
from real_airflow import RealAirflow, connection_json, simulator_server, until

ROOT = Path(__file__).resolve().parents[1]
DAG = "agent_finished_starts_dag"
AGENTS = 20
ALL_RUNS, ALL_KILLS = 1000, 10


def told(airflow: RealAirflow) -> tuple[collections.Counter[str], int]:
    """Each run's event id, as often as it was in the triggering events of a DAG run."""
    assert airflow.postgres is not None
    found = airflow.postgres.rows(
        "select e.extra from asset_event e join dagrun_asset_event d on d.event_id = e.id",
    )
    counts: collections.Counter[str] = collections.Counter()
    for (value,) in found:
        extra = json.loads(value) if isinstance(value, str) else value
        counts.update(run["id"] for run in extra["payload"]["runs"])
    return counts, len(found)


def noted(airflow: RealAirflow) -> tuple[collections.Counter[str], int]:
    """What the DAG's task returned, over all its DAG runs."""
    counts: collections.Counter[str] = collections.Counter()
    offset = 0
    while True:
        runs = airflow.api("GET", f"/api/v2/dags/{DAG}/dagRuns?limit=100&offset={offset}")["dag_runs"]
        for run in runs:
            lines = airflow.xcom(DAG, run["dag_run_id"], "note") or []
            counts.update(line.split()[1] for line in (json.loads(lines) if isinstance(lines, str) else lines))
        offset += len(runs)
        if len(runs) < 100:
            return counts, offset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=ALL_RUNS)
    parser.add_argument("--kills", type=int, default=ALL_KILLS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="agents-watcher-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        simulator = stack.enter_context(simulator_server(home, "--key", "test-key", "--queue-seconds", "0"))
        env = {
            "AIRFLOW_CONN_AGENTS_DEFAULT": connection_json(simulator.url, "test-key"),
            # A killed triggerer's triggers go to the next one after this time; 30 s in production.
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        }
        dags = [ROOT / "example_dags" / f"{DAG}.py"]
        airflow = stack.enter_context(RealAirflow(home / "airflow", dags=dags, env=env, database="postgres"))
        airflow.unpause(DAG)
        until(
            lambda: simulator.control("GET", "requests")["total"] > 3,
            120,
            "the first looks of the watcher",
        )
        time.sleep(10)
        began = time.monotonic()
        wanted, bursts, kills = set(), max(1, options.runs // 25), 0
        for burst in range(bursts):
            for _ in range(options.runs // bursts):
                agent_id = f"agent-{rng.randrange(AGENTS)}"
                body = {"agent_id": agent_id, "run_seconds": rng.choice([0.0, 1.0, 5.0, 20.0, 60.0])}
                if rng.random() < 0.1:
                    body["end_status"] = "FAILED"
                simulator.control("POST", "agents", body)
                wanted.add(simulator.control("POST", "runs", {"agentId": agent_id})["eventId"])
            if kills < options.kills * (burst + 1) // bursts:
                kills += 1
                airflow.kill("triggerer")
                time.sleep(rng.uniform(0, 5))
                airflow.start("triggerer")
            time.sleep(rng.uniform(2, 9))
        seconds = time.monotonic() - began
        print(f"{len(wanted):,} runs in {bursts} bursts within {seconds:.0f} s, {kills} kills of the triggerer")
        with contextlib.suppress(Exception):
            until(lambda: wanted <= set(told(airflow)[0]), 180, "the last run", pause=2.0)
        time.sleep(30)
        counts, events = told(airflow)
        by_task, dag_runs = noted(airflow)
    row = {
        "runs": len(wanted),
        "bursts": bursts,
        "seconds": seconds,
        "kills": kills,
        "in_events": len(wanted & set(counts)),
        "missing": len(wanted - set(counts)),
        "asset_events": events,
        "dag_runs": dag_runs,
        "again": sum(count - 1 for count in counts.values()),
        "returned": len(wanted & set(by_task)),
        "twice": sum(count > 1 for count in by_task.values()),
    }
    print(evidence.watcher({"rows": [row]}))
    if (options.runs, options.kills) == (ALL_RUNS, ALL_KILLS):
        evidence.save("watcher", command="make watcher", rows=[row])
    sys.exit(bool(row["missing"]))


if __name__ == "__main__":
    main()
