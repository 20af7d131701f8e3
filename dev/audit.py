"""The platform's truth and Airflow's records, set against each other: which runs were wanted, and which were not.

Pure. A task wants one run, and one more for each of its runs that has failed. The `requestId` in the answer to an
execute shows whose run it is: only the task that asked knows it. A task whose process died before it had the answer
knows the run by its event.

Tasks that start one agent side by side may share out their runs: a task is given a run of a sibling, and its log says
so. Such tasks are judged together: there are as many runs as tasks and retries after a failure, no event is handed to
two tasks, and no more tasks succeed than runs COMPLETED.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

_REQUEST = re.compile(r"\brequest_id=([\w-]+)")
_EVENT = re.compile(r"\bevent=([\w,-]+)")
#: A wait for a run without a name: the answer to its POST was lost.
_UNNAMED = re.compile(r"The run was accepted\. agent=[\w-]+(?![\w-])(?! request_id=)")
#: The run cannot be told apart from others. With the events that could be it.
_AMBIGUOUS = re.compile(r"cannot be told apart from other runs of the agent.*?\bevent=([\w,-]+)")
_ASSUMED = "it is taken as the one that was asked for"
_SEVERAL = "COMPLETED, so this task's run did"
_SHARED = "Each task gets one of these runs"
_OVER_BUDGET = "leaves no room for another run"
_ENOUGH = "more of them COMPLETED than other tasks can claim"


class Cause(StrEnum):
    """Why tasks could not tell how their runs ended."""

    OTHER_PARTY = "a run that the platform started by itself was among them"
    NO_ANSWER = "the answer to the POST of one of them was lost"
    SIBLING_UNKNOWN = "tasks had started all of them"


@dataclass(frozen=True, kw_only=True)
class Run:
    """An execute that the platform carried out, and how its run ended."""

    agent_id: str
    request_id: str
    event_id: str
    accepted_at: datetime
    ended_at: datetime
    end_status: str

    @property
    def is_completed(self) -> bool:
        """Whether it ended well."""
        return self.end_status == "COMPLETED"

    def had_failed_at(self, moment: datetime) -> bool:
        """Whether it had failed by then, so that a retry wanted another run."""
        return not self.is_completed and self.ended_at <= moment


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
        shared: it said that tasks started as many runs as there were events, and that each task gets one of them.
        enough: it said that some of the events that could be its run's COMPLETED, more than other tasks can claim.
        ambiguous: the events that could be its run's and ended differently, if it said so.
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
    shared: bool = False
    enough: bool = False
    ambiguous: frozenset[str] = frozenset()
    assumed: bool = False

    @property
    def may_have_siblings_run(self) -> bool:
        """Whether it said so."""
        return self.shared or self.enough or self.assumed

    def with_log(self, text: str) -> Task:
        """The same, and what the log of one of its tries says."""
        return replace(
            self,
            requests=self.requests.union(_REQUEST.findall(text)),
            events=self.events | _ids_in(_EVENT, text),
            unnamed=self.unnamed or _UNNAMED.search(text) is not None,
            several=self.several or _SEVERAL in text,
            shared=self.shared or _SHARED in text,
            enough=self.enough or _ENOUGH in text,
            ambiguous=self.ambiguous | _ids_in(_AMBIGUOUS, text),
            assumed=self.assumed or _ASSUMED in text,
        )


def _ids_in(pattern: re.Pattern[str], text: str) -> frozenset[str]:
    return frozenset(event for found in pattern.findall(text) for event in found.split(","))


@dataclass(kw_only=True)
class Audit:
    """What the two sides give when they are set against each other. Each finding is a sentence.

    Attributes:
        tasks: how many there were.
        executes: runs that the platform was asked for and started.
        after_failure: of them, those that followed a run that had failed, of the same task or of its siblings.
        right: tasks that ended as their own run did, and returned its event; or as the run that was shared out to them.
        several: of them, those that returned one of several events that COMPLETED, and said so.
        shared: of them, those that returned the event of a run that another task had started, and said so.
        ambiguous: by their cause, tasks that failed because they could not tell how their run ended, and said so.
        assumed: tasks that took another's run for theirs since they saw no answer to their POST, and said so.
        doubled: runs that nobody wanted.
        lost: runs that no task knows of.
        wrong: tasks that ended otherwise than their run, or returned another run's event; and agents of which more
            tasks succeeded than runs COMPLETED.
        twice: events that were handed to two tasks.
        unfinished: tasks that Airflow did not bring to an end, or ended before they had started a run.
    """

    tasks: int = 0
    executes: int = 0
    after_failure: int = 0
    right: int = 0
    several: int = 0
    shared: int = 0
    ambiguous: dict[Cause, list[str]] = field(default_factory=lambda: {cause: [] for cause in Cause})
    assumed: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        """Everything that must not be."""
        kinds = {
            "DOUBLED": self.doubled,
            "LOST": self.lost,
            "WRONG": self.wrong,
            "TWICE": self.twice,
            "UNFINISHED": self.unfinished,
        }
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
    of_agents: dict[str, _Agent] = {}
    for task in tasks:
        of_agents.setdefault(task.agent_id, _Agent()).owned[task] = []
    for run in runs:
        owner = of_agents[run.agent_id].owner(run) if run.agent_id in of_agents else None
        if owner is None:
            result.lost.append(f"{run.request_id} of {run.agent_id}, {run.event_id} {run.end_status}")
        else:
            of_agents[run.agent_id].owned[owner].append(run)
    for agent in of_agents.values():
        agent.judge(result)
    return result


@dataclass
class _Agent:
    """The tasks of one agent, each with the runs that it started."""

    owned: dict[Task, list[Run]] = field(default_factory=dict)

    def owner(self, run: Run) -> Task | None:
        named = [task for task in self.owned if run.request_id in task.requests]
        # No log names it. So its task waited for a run without a name, and saw this one or was given a sibling's run.
        unnamed = [task for task in self.owned if task.unnamed]
        seen = [task for task in unnamed if run.event_id in {*task.events, task.returned}]
        idle = [task for task in unnamed if self._are_together and not self.owned[task]]
        found = named or seen or idle
        return min(found, key=lambda task: (len(self.owned[task]), task.returned != run.event_id), default=None)

    def judge(self, result: Audit) -> None:
        for tasks in [list(self.owned)] if self._are_together else [[task] for task in self.owned]:
            self._judge_retries(result, tasks)
        for task, mine in self.owned.items():
            self._judge_end(result, task, mine)
        self._judge_given(result)

    @property
    def _are_together(self) -> bool:
        return any(task.may_have_siblings_run for task in self.owned)

    @property
    def _owners(self) -> dict[str, Task]:
        return {run.event_id: task for task, mine in self.owned.items() for run in mine}

    def _has_completed(self, event_id: str | None) -> bool:
        return any(run.event_id == event_id and run.is_completed for mine in self.owned.values() for run in mine)

    def _judge_retries(self, result: Audit, tasks: Sequence[Task]) -> None:
        runs = [run for task in tasks for run in self.owned[task]]
        retries = [(retry, task) for task in tasks for retry in self.owned[task][1:]]
        wanted = 0
        for retry, task in sorted(retries, key=lambda one: one[0].accepted_at):
            if sum(run.had_failed_at(retry.accepted_at) for run in runs) > wanted:
                wanted += 1
            else:
                result.doubled.append(f"{retry.request_id} of {task.name}; its runs: {_told(self.owned[task])}")
        result.after_failure += wanted

    def _judge_end(self, result: Audit, task: Task, mine: Sequence[Run]) -> None:
        has_siblings_run = self._owners.get(task.returned or "", task) != task
        if task.state in {"success", "failed"} and task.assumed and (not mine or has_siblings_run):
            result.assumed.append(f"{task.name} {task.state} with event {task.returned}")
        elif task.state == "success":
            self._judge_success(result, task, mine)
        elif task.state == "failed" and task.ambiguous:
            result.ambiguous[self._cause(task)].append(f"{task.name}; its runs: {_told(mine)}")
        elif task.state == "failed" and mine:
            # A task to which runs were shared out has failed with one of them.
            failed = self._owners if task.shared else {mine[-1].event_id}
            if all(map(self._has_completed, failed)):
                result.wrong.append(f"{task.name} failed; its runs: {_told(mine)}")
            else:
                result.right += 1
        else:
            result.unfinished.append(f"{task.name} is {task.state}; its runs: {_told(mine)}")

    def _judge_success(self, result: Audit, task: Task, mine: Sequence[Run]) -> None:
        last = mine[-1] if mine else None
        if last is not None and last.is_completed and (task.returned == last.event_id or task.several):
            result.right += 1
            result.several += task.returned != last.event_id
        elif last is not None and (task.enough or (task.shared and self._has_completed(task.returned))):
            # `_judge_given` counts these.
            result.right += 1
            result.shared += 1
        else:
            result.wrong.append(f"{task.name} succeeded with event {task.returned}; its runs: {_told(mine)}")

    def _judge_given(self, result: Audit) -> None:
        """Of all tasks together: no event was handed to two of them, and no more succeeded than runs COMPLETED."""
        succeeded = [task for task in self.owned if task.state == "success" and not task.assumed]
        given = defaultdict(list)
        for task in succeeded:
            if not task.several and not task.enough:  # else it said that the event may be another run's
                given[task.returned].append(task.name)
        result.twice += [f"{event} to {', '.join(names)}" for event, names in given.items() if len(names) > 1]
        completed = sum(run.is_completed for mine in self.owned.values() for run in mine)
        if self._are_together and len(succeeded) > completed:
            names = ", ".join(task.name for task in succeeded)
            result.wrong.append(f"{len(succeeded)} tasks succeeded, {completed} of their runs COMPLETED: {names}")

    def _cause(self, task: Task) -> Cause:
        owners = self._owners
        if not task.ambiguous <= owners.keys():
            return Cause.OTHER_PARTY
        if any(owners[event_id].unnamed for event_id in task.ambiguous):
            return Cause.NO_ANSWER
        return Cause.SIBLING_UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """What became of tasks whose budget is used up.

    Attributes:
        tasks: how many there were.
        refused: of them, those that failed and said so.
        others: those that did not, each as a sentence.
        started: runs that the platform started for them.
    """

    tasks: int
    refused: int
    others: list[str]
    started: list[str]

    @property
    def findings(self) -> list[str]:
        """Everything that must not be."""
        missing = [] if self.tasks else ["there were no tasks without a budget left"]
        return [f"NOT REFUSED {line}" for line in [*missing, *self.others, *self.started]]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The rows of the report."""
        return [
            ("tasks over their budget, and those that were refused", f"{self.tasks}, {self.refused}"),
            ("runs started for tasks over their budget", f"{len(self.started)}"),
        ]


def audit_refusals(tasks: Iterable[tuple[str, str | None, str]], runs: Iterable[Run]) -> Refusals:
    """Judge tasks whose budget is used up: each must fail, say so, and start nothing.

    Args:
        tasks: the name, the state and the logs of each.
        runs: that the platform started for their agent.
    """
    tasks = list(tasks)
    others = [f"{name} is {state}" for name, state, log in tasks if state != "failed" or _OVER_BUDGET not in log]
    started = [f"{run.request_id} of {run.agent_id}, {run.event_id}" for run in runs]
    return Refusals(tasks=len(tasks), refused=len(tasks) - len(others), others=others, started=started)


def _told(runs: Sequence[Run]) -> str:
    return ", ".join(f"{run.event_id} {run.end_status}" for run in runs) or "none"
