"""The runs that ended, set against what a DAG's task made of them: did each run arrive, and once?

Pure but for `load_readings`. A task returns the runs of its DAG run. Each try may also have written which runs it has
read: a retry must read the same runs again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The runs that one try of a task has read.

    Attributes:
        dag_run: the id of its DAG run.
        runs: the ids of their events, in the order in which the try was given them.
    """

    dag_run: str
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """What became of the runs that ended. Each list is sorted.

    Attributes:
        dag_runs: how many there were.
        returned: how many of the wanted runs a task has returned.
        lost: wanted runs that no task has returned.
        twice: runs that tasks have returned more than once.
        retried: how many DAG runs have a task that has read its runs in several tries.
        changed: DAG runs of which a try has read other runs than another, or has returned others than it has read.
    """

    dag_runs: int
    returned: int
    lost: list[str]
    twice: list[str]
    retried: int
    changed: list[str]

    @property
    def findings(self) -> list[str]:
        """Everything that must not be."""
        kinds = {"LOST BY THE CONSUMER": self.lost, "TWICE TO THE CONSUMER": self.twice, "CHANGED": self.changed}
        return [f"{kind} {name}" for kind, names in kinds.items() for name in names]


def judge(
    wanted: Collection[str], returned: Mapping[str, tuple[str, ...] | None], readings: Iterable[Reading] = ()
) -> Arrivals:
    """Set the runs that ended against a DAG's tasks.

    Args:
        wanted: the events of the runs that must arrive. Others may.
        returned: what the task of each DAG run returned; None if it returned nothing.
        readings: what its tries have read, if they wrote it down.
    """
    counts = Counter(run for runs in returned.values() for run in runs or ())
    read: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for reading in readings:
        read[reading.dag_run].append(reading.runs)
    results = {dag_run: runs for dag_run, runs in returned.items() if runs is not None}
    different = {dag_run for dag_run, tries in read.items() if len({*tries, results.get(dag_run, tries[0])}) > 1}
    return Arrivals(
        dag_runs=len(returned),
        returned=len(counts.keys() & set(wanted)),
        lost=sorted(set(wanted) - counts.keys()),
        twice=sorted(run for run, count in counts.items() if count > 1),
        retried=sum(len(tries) > 1 for tries in read.values()),
        changed=sorted(different),
    )


def load_readings(folder: Path) -> list[Reading]:
    """The readings that tries of `consumer_dags.py` have written. A try that was killed while it wrote has none."""
    readings = []
    for file in sorted(folder.iterdir()):
        text = file.read_text(encoding="utf-8")
        if text.endswith("]"):
            readings.append(Reading(dag_run=file.name.rpartition(".")[0], runs=tuple(json.loads(text))))
    return readings
