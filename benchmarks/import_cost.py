"""What importing the operators costs on top of `airflow.sdk`, beside dbt Cloud's, each in fresh processes in turn.

Run it with `python benchmarks/import_cost.py`, after `pip install apache-airflow-providers-dbt-cloud`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

SCRIPT = """
import time
import airflow.sdk
from airflow.sdk import BaseOperator, BaseHook
began = time.process_time()
import {module}
print(time.process_time() - began)
"""
MODULES = ("airflow_provider_agents.operators", "airflow.providers.dbt.cloud.operators.dbt")
ROUNDS = 7


def cost(module: str) -> float:
    command = [sys.executable, "-c", SCRIPT.format(module=module)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own script
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    costs: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(ROUNDS):
        for module in MODULES:
            costs[module].append(cost(module))
    for module, seconds in costs.items():
        print(f"{module:45} {statistics.median(seconds):.3f} s CPU (median of {ROUNDS})")
    ratios = [mine / theirs for mine, theirs in zip(*costs.values(), strict=True)]
    print(f"ratio, pair by pair: median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
