"""The platform's truth and Airflow's records, set against each other: which runs were wanted, and which were not.

Pure. A task wants one run, and one more for each of its runs that has failed. Whose run an execute was, only its answer
tells: the `requestId` in it is known to nobody but the task that asked. A task whose process died before it had the
answer knows the run by its event.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

_REQUEST = re.compile(r"\brequest_id=([\w-]+)")
_EVENT = re.compile(r"\bevent=([\w,-]+)")
#: A wait for a run without a name: the answer to its POST was lost.
_UNNAMED = re.compile(r"The run was accepted\. agent=[\w-]+(?![\w-])(?! request_id=)")
_UNDECIDED = "cannot be told apart from other runs of the agent"
_ASSUMED = "it is taken as the one that was asked for"
_SEVERAL = "COMPLETED, so this task's run did"


@dataclass(frozen=True, kw_only=True)
class Run:
    """An execute that the platform carried out, and how its run ended."""

    agent_id: str
    request_id: str
    event_id: str
    accepted_at: datetime
    ended_at: datetime
    end_status: str

    def wants_another(self, after: Run) -> bool:
        """Whether it had failed before `after` was started, so that a retry wanted that one."""
        return self.end_status != "COMPLETED" and self.ended_at <= after.accepted_at


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is known of a task instance at the end.

    Attributes:
        name: for messages, unique.
        agent_id: whose run it wanted.
        state: as Airflow has it.
        returned: the id of the event that it returned.
        requests: each `requestId` in the logs of its tries.
        events: each event in them.
        unnamed: a try waited for a run of which it had no `requestId`.
        several: it said that several events could be its run's, and all of them COMPLETED.
        undecided: it said that several events could be its run's, and that they ended differently.
        assumed: it said that it takes a run for its own without having seen an answer to its POST.
    """

    name: str
    agent_id: str
    state: str | None
    returned: str | None = None
    requests: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    unnamed: bool = False
    several: bool = False
    undecided: bool = False
    assumed: bool = False

    def with_log(self, text: str) -> Task:
        """The same, and what the log of one of its tries says."""
        events = (event for found in _EVENT.findall(text) for event in found.split(","))
        return replace(
            self,
            requests=self.requests.union(_REQUEST.findall(text)),
            events=self.events.union(events),
            unnamed=self.unnamed or _UNNAMED.search(text) is not None,
            several=self.several or _SEVERAL in text,
            undecided=self.undecided or _UNDECIDED in text,
            assumed=self.assumed or _ASSUMED in text,
        )


@dataclass(kw_only=True)
class Audit:
    """What the two sides give when they are set against each other. Each finding is a sentence.

    Attributes:
        tasks: how many there were.
        executes: runs that the platform was asked for and started.
        after_failure: of them, those that followed a run of the same task that had failed.
        right: tasks that ended as their own run did, and returned its event.
        several: of them, those that returned one of several events that COMPLETED, and said so.
        undecided: tasks that failed because they could not tell how their run ended, and said so.
        assumed: tasks without a run, since their POST was never acted on, that took another's for theirs, and said so.
        doubled: runs that nobody wanted.
        lost: runs that no task knows of.
        wrong: tasks that ended otherwise than their run, or returned another run's event.
        unfinished: tasks that Airflow did not bring to an end, or ended before they had started a run.
    """

    tasks: int = 0
    executes: int = 0
    after_failure: int = 0
    right: int = 0
    several: int = 0
    undecided: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        """Everything that must not be."""
        kinds = {"DOUBLED": self.doubled, "LOST": self.lost, "WRONG": self.wrong, "UNFINISHED": self.unfinished}
        return [f"{kind} {line}" for kind, lines in kinds.items() for line in lines]


def audit(tasks: Sequence[Task], runs: Iterable[Run]) -> Audit:
    """Set every run against the tasks, and every task against the runs that it started.

    Raises:
        ValueError: two tasks have one name.
    """
    doubles = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if doubles:
        raise ValueError(f"two tasks are called {doubles[0]}")
    runs = sorted(runs, key=lambda run: run.accepted_at)
    result = Audit(tasks=len(tasks), executes=len(runs))
    owned: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        owner = _owner(run, tasks)
        if owner is None:
            result.lost.append(f"{run.request_id} of {run.agent_id}, {run.event_id} {run.end_status}")
        else:
            owned[owner.name].append(run)
    for task in tasks:
        mine = owned[task.name]
        for before, after in pairwise(mine):
            if before.wants_another(after):
                result.after_failure += 1
            else:
                result.doubled.append(f"{after.request_id} of {task.name}; its runs: {_told(mine)}")
        _decide(result, task, mine)
    return result


def _owner(run: Run, tasks: Sequence[Task]) -> Task | None:
    of_agent = [task for task in tasks if task.agent_id == run.agent_id]
    named = [task for task in of_agent if run.request_id in task.requests]
    # Without a name in anyone's log, it is that of a task which waited for a run without one and saw this one.
    seen = [task for task in of_agent if task.unnamed and run.event_id in {*task.events, task.returned}]
    return next(iter(named or seen), None)


def _decide(result: Audit, task: Task, mine: Sequence[Run]) -> None:
    last = mine[-1] if mine else None
    if last is None and task.assumed and task.state in {"success", "failed"}:
        result.assumed.append(f"{task.name} {task.state} with event {task.returned}")
    elif task.state == "success":
        if last is not None and last.end_status == "COMPLETED" and (task.returned == last.event_id or task.several):
            result.right += 1
            result.several += task.returned != last.event_id
        else:
            result.wrong.append(f"{task.name} succeeded with event {task.returned}; its runs: {_told(mine)}")
    elif task.state == "failed" and task.undecided:
        result.undecided.append(f"{task.name}; its runs: {_told(mine)}")
    elif task.state == "failed" and last is not None:
        if last.end_status == "COMPLETED":
            result.wrong.append(f"{task.name} failed; its runs: {_told(mine)}")
        else:
            result.right += 1
    else:
        result.unfinished.append(f"{task.name} is {task.state}; its runs: {_told(mine)}")


def _told(runs: Sequence[Run]) -> str:
    return ", ".join(f"{run.event_id} {run.end_status}" for run in runs) or "none"
