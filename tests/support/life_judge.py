"""What a task's life is worth: runs that nobody wanted, runs that were forgotten, untrue ends, and undecided ones."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import structlog
from exploring import MOST_RUNS, Explorer
from life_world import World

from airflow_provider_agents.api.errors import AgentRunFailedError, AmbiguousAgentRunError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exploring import Order
    from lives import Clear, Life, Scope

    from airflow_provider_agents.simulator import Run

#: Options that are not worth a word in the report of a fault.
USUAL = {"go on", "resume", "done"}
#: Why a task ended without a verdict on its run. Any other undecided end is a fault.
CAUSES = {
    "killed": "its last process was killed",
    "ended": "its last process was killed after its run had ended, and before Airflow knew",
    "lost": "the API could not be read after an answer was lost",
    "stranger": "a run of another party can be its own",
    "unseen": "a task of ours on another worker started the agent, and no copies show its start",
    "doubt": "the answer to its POST was lost, and another run can be its own",
}


class Judged:
    """The lives of one order, judged.

    Args:
        world: after its play.

    Attributes:
        faults: what is wrong, in sentences; each begins with `doubled`, `lost` or `wrong`.
        ends: the end of each life in a few words.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults: list[str] = []
        self.ends = [self._end(life) for life in world.lives]
        for life in world.lives:
            self._judge_runs(life)
            self._judge_failures(life)
        self._judge_events()

    def _truth(self, event_id: str) -> Run:
        return self.world.sim.truth(event_id)

    def _name(self, event_id: str) -> str:
        return self.world.names.get(event_id, event_id)

    def _wrong(self, words: str) -> None:
        self.faults.append(words)

    # --- the end ---

    def _end(self, life: Life) -> str:
        if life.state == "success":
            return self._success(life)
        if isinstance(life.error, AgentRunFailedError):
            return "failed with its run"
        cause = self._cause(life)
        if cause is None:
            self._wrong(f"wrong: {life.name} ended undecided for no reason that is known: {life.error!r}")
        self._judge_memory(life)
        return f"undecided: {cause}"

    def _success(self, life: Life) -> str:
        event_id = life.result["id"]
        if self._truth(event_id).end_status != "COMPLETED":
            self._wrong(f"wrong: {life.name} succeeded with {self._name(event_id)}, which did not complete")
        if event_id in life.posts:
            return "succeeded with its run"
        last = self._truth(life.posts[-1]) if life.posts else None
        if last is not None and last.end_status == "COMPLETED":
            return "succeeded with a run that ended like its own"
        if any(event_id in other.posts for other in self.world.lives):
            return "succeeded with a run of its sibling"
        if life.is_in_doubt:
            return "succeeded with another party's run, after a lost answer"
        self._wrong(f"wrong: {life.name} succeeded with {self._name(event_id)}, a run of another party")
        return "succeeded wrongly"

    def _cause(self, life: Life) -> str | None:
        scope = self.world.scope
        if life.error is None:
            return "ended" if life.has_recorded_end else "killed"
        if not isinstance(life.error, AmbiguousAgentRunError):
            had_losses = scope.faults > self.world.faults_left
            return "lost" if had_losses and isinstance(life.error, TemporaryError) else None
        if scope.stranger:
            return "stranger"
        if life.is_in_doubt:
            return "doubt"
        return "unseen" if self._is_sibling_unseen else None

    @property
    def _is_sibling_unseen(self) -> bool:
        """Whether tasks wait in processes that know nothing of each other."""
        scope = self.world.scope
        return scope.sibling and scope.wait == "worker" and not scope.copies

    # --- the runs ---

    def _judge_runs(self, life: Life) -> None:
        clears = list(life.clears)
        for number, (before, after) in enumerate(pairwise(life.posts), start=1):
            run, started_at = self._truth(before), self._truth(after).accepted_at
            if run.end_status == "FAILED" and run.ended_at <= started_at:
                continue  # that is what a retry is for
            clear = next(
                (clear for clear in clears if clear.runs == number and self._wants_run(clear, run, after)), None
            )
            if clear is None:
                self._wrong(
                    f"doubled: {life.name} started {self._name(after)} although {self._name(before)} was wanted"
                )
            else:
                clears.remove(clear)

    def _wants_run(self, clear: Clear, run: Run, after: str) -> bool:
        """Whether a clear asks for a new run after this one."""
        has_ended = run.ended_at <= self._truth(after).accepted_at
        ended_it = clear.state == "success" or clear.error in {"AmbiguousAgentRunError", "AgentRunFailedError"}
        # A trigger cannot write the record, so a clear of a waiting task looks like one after the end.
        is_like_after_the_end = (clear.discards or self.world.scope.wait == "trigger") and has_ended
        return ended_it or clear.has_recorded_end or is_like_after_the_end

    def _judge_failures(self, life: Life) -> None:
        for runs, error, in_doubt in life.told:
            if not isinstance(error, AgentRunFailedError):
                continue
            own = self._truth(life.posts[runs - 1]) if runs else None
            if own is not None and own.end_status == "FAILED" and own.ended_at <= self.world.stage.clock():
                continue
            given = [event_id for other in self.world.lives for event_id in other.posts if event_id in error.event_ids]
            if not given and not in_doubt:
                self._wrong(f"wrong: {life.name} failed with {error.event_ids}, and its own run did not fail")

    def _judge_events(self) -> None:
        if len(self.world.lives) < 2:
            return
        first, second = (life.result["id"] if life.state == "success" else None for life in self.world.lives)
        if first is None or first != second:
            return
        if self._is_sibling_unseen or any(life.is_in_doubt for life in self.world.lives):
            self.ends.append("both tasks succeeded with one event")
        else:
            self._wrong(f"wrong: one event was given to two tasks: {self._name(first)}")

    # --- what is remembered ---

    def _judge_memory(self, life: Life) -> None:
        """A clear of the task finds its run again."""
        # A clear after a recorded end looks like one of a task that has succeeded: it asks for a new run.
        if not life.posts or isinstance(life.error, AmbiguousAgentRunError) or life.has_recorded_end:
            return
        last = self._truth(life.posts[-1])
        if last.end_status == "FAILED":
            return
        if life.started_again:
            self._wrong(f"lost: {life.name} does not remember {self._name(last.event_id)}: a clear starts another run")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the log of each step: nobody reads thousands of them, and they take a third of the time."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        structlog.configure(**before)


class Exploration:
    """Every order of a scope, played and judged.

    Args:
        scope: what can happen.

    Attributes:
        explorer: counts.
        faults: by each fault, the shortest order that led to it: what was chosen, without the usual.
    """

    def __init__(self, scope: Scope, most_runs: int = MOST_RUNS) -> None:
        self.scope = scope
        self.faults: dict[str, list[str]] = {}
        self.explorer = Explorer(self._play)
        with _silence():
            self.explorer.explore(most_runs)

    def _play(self, order: Order) -> tuple[str, ...]:
        world = World(self.scope, order)
        world.play()
        judged = Judged(world)
        for fault in judged.faults:
            unusual = [f"{label}: {option}" for label, option in order.taken if option not in USUAL]
            self.faults[fault] = min(self.faults.get(fault, unusual), unusual, key=len)
        return tuple(judged.ends)

    @property
    def ends(self) -> Counter[str]:
        """How often a task ended in each way."""
        counts: Counter[str] = Counter()
        for ends, count in self.explorer.ends.items():
            for end in ends:
                counts[end] += count
        return counts
