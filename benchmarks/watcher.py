"""A thousand finished runs and a triggerer that is killed ten times: does each run reach the DAGs that consume them?

Run it with `make watcher` (about nine minutes). A real Airflow on PostgreSQL watches the simulator with the example
`agent_finished_starts_dag`. A second DAG consumes the same asset, `retried_consumer` of dev/consumer_dags.py: the first
try of each task fails, or is killed, once it has read its runs. The platform starts runs in bursts; they end in random
order. Meanwhile the triggerer is killed (SIGKILL) and started again. At the end the metadata database says which runs
were in the triggering events of each DAG's runs, the XComs what its tasks made of them, and files what each try of the
second DAG read. A whole run writes its figures to the documentation. The exit status is 1 if a run is missing or given
twice, or if a retry was given other runs.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dev"))

import evidence
from arrivals import Reading, judge, load_readings
from real_airflow import RealAirflow, RealAirflowError, connection_json, simulator_server, until

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE, RETRIED = "agent_finished_starts_dag", "retried_consumer"
AGENTS = 20
ALL_RUNS, ALL_KILLS = 1000, 10


def rows(airflow: RealAirflow, query: str) -> list[Any]:
    assert airflow.postgres is not None
    return airflow.postgres.rows(query)


def reported(airflow: RealAirflow, dag_id: str) -> tuple[collections.Counter[str], int]:
    """Each run's event id, as often as it was in the triggering events of the DAG's runs; and how many events."""
    found = rows(
        airflow,
        "select r.dag_id, e.extra from asset_event e join dagrun_asset_event d on d.event_id = e.id "
        "join dag_run r on r.id = d.dag_run_id",
    )
    values = [value for of_dag, value in found if of_dag == dag_id]
    counts: collections.Counter[str] = collections.Counter()
    for value in values:
        extra = json.loads(value) if isinstance(value, str) else value
        counts.update(run["id"] for run in extra["payload"]["runs"])
    return counts, len(values)


def is_over(airflow: RealAirflow) -> bool:
    """Whether all DAG runs have ended."""
    return not rows(airflow, "select 1 from dag_run where state not in ('success', 'failed')")


def returned(airflow: RealAirflow, dag_id: str) -> dict[str, tuple[str, ...] | None]:
    """The runs that the task of each of the DAG's runs returned; None if it returned nothing."""
    found: dict[str, tuple[str, ...] | None] = {}
    while True:
        path = f"/api/v2/dags/{dag_id}/dagRuns?limit=100&offset={len(found)}"
        page = [run["dag_run_id"] for run in airflow.api("GET", path)["dag_runs"]]
        for run_id in page:
            lines = airflow.xcom(dag_id, run_id, "note")
            lines = json.loads(lines) if isinstance(lines, str) else lines
            found[run_id] = None if lines is None else tuple(line.split()[1] for line in lines)
        if len(page) < 100:
            return found


def row_of(airflow: RealAirflow, dag_id: str, wanted: set[str], readings: list[Reading]) -> evidence.Row:
    """What reached one of the DAGs."""
    counts, events = reported(airflow, dag_id)
    found = judge(wanted, returned(airflow, dag_id), readings)
    for line in found.findings:
        print(f"    {dag_id}: {line}")
    return {
        "dag": dag_id,
        "in_events": len(wanted & set(counts)),
        "asset_events": events,
        "again": sum(count - 1 for count in counts.values()),
        "dag_runs": found.dag_runs,
        "returned": found.returned,
        "missing": len(found.lost),
        "twice": len(found.twice),
        "retried": found.retried,
        "changed": len(found.changed),
    }


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
        readings = home / "readings"
        readings.mkdir()
        env = {
            "CONSUMER_READINGS": str(readings),
            "AIRFLOW_CONN_AGENTS_DEFAULT": connection_json(simulator.url, "test-key"),
            # A killed triggerer's triggers go to the next one after this time; 30 s in production.
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        }
        dags = [ROOT / "example_dags" / f"{EXAMPLE}.py", ROOT / "dev" / "consumer_dags.py"]
        airflow = stack.enter_context(RealAirflow(home / "airflow", dags=dags, env=env, database="postgres"))
        for dag_id in (EXAMPLE, RETRIED):
            airflow.unpause(dag_id)
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
        with contextlib.suppress(RealAirflowError):
            until(
                lambda: all(wanted <= set(reported(airflow, dag)[0]) for dag in (EXAMPLE, RETRIED)), 180, "", pause=2.0
            )
        # Within this time an event can still start a DAG run.
        time.sleep(30)
        with contextlib.suppress(RealAirflowError):
            until(lambda: is_over(airflow), 120, "", pause=2.0)
        found = [row_of(airflow, EXAMPLE, wanted, []), row_of(airflow, RETRIED, wanted, load_readings(readings))]
    figures = {"runs": len(wanted), "bursts": bursts, "seconds": seconds, "kills": kills}
    print(evidence.watcher({**figures, "rows": found}))
    if (options.runs, options.kills) == (ALL_RUNS, ALL_KILLS):
        evidence.save("watcher", command="make watcher", rows=found, **figures)
    sys.exit(any(row[name] for row in found for name in ("missing", "twice", "changed")))


if __name__ == "__main__":
    main()
