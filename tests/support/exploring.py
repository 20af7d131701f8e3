"""Every order of what can happen, one after the other: a program is run again for each list of choices.

The program asks for each choice and says in which state it is. A state that was reached before, by other choices, is
not followed again: what comes after it is known. So the orders are the paths through a graph of states, and counted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: The most orders that are run, so that a scope that is too wide ends.
MOST_RUNS = 2_000_000

#: What is counted of an end; hashable.
End = TypeVar("End")


class KnownState(BaseException):
    """What comes after this state is known already."""


@dataclass
class Order:
    """One order of what happens: the choices to take first, then the first option each time.

    Attributes:
        taken: the label and the option of each choice so far.
    """

    explorer: Explorer[Any]
    prefix: tuple[int, ...] = ()
    parent: tuple[bytes, int] | None = None
    taken: list[tuple[str, str]] = field(default_factory=list)
    picks: list[int] = field(default_factory=list)
    is_over: bool = False

    def choose(self, label: str, options: Sequence[str], state: Callable[[], str]) -> str:
        """One of the options.

        Args:
            label: what is chosen.
            options: texts; the first is the usual one.
            state: called for a text. Two equal texts mean that the same can follow.

        Raises:
            KnownState: this state was reached before. The program must end.
        """
        if self.is_over:
            raise KnownState
        if len(options) == 1:
            return options[0]
        position = len(self.picks)
        if position < len(self.prefix):
            pick = self.prefix[position]
        else:
            self._arrive(hashlib.blake2b(f"{label}\n{state()}".encode(), digest_size=16).digest(), len(options))
            pick = 0
        self.picks.append(pick)
        self.taken.append((label, options[pick]))
        return options[pick]

    def _arrive(self, key: bytes, count: int) -> None:
        if not self.explorer.arrive(key, self.parent):
            self.is_over = True
            raise KnownState
        self.parent = (key, 0)
        self.explorer.plan(key, tuple(self.picks), count)


class Explorer(Generic[End]):
    """Runs a program for all orders.

    Args:
        play: runs the program once with an `Order`, to its end; returns what is to be counted of the end.

    Attributes:
        ends: how often each end was reached.
        runs: how often the program was run.
    """

    def __init__(self, play: Callable[[Order], End]) -> None:
        self._play = play
        self._planned: list[tuple[tuple[int, ...], tuple[bytes, int] | None]] = [((), None)]
        #: By state: the state after each of its options; None is an end.
        self._after: dict[bytes | None, dict[int, bytes | None]] = {}
        self.ends: dict[End, int] = {}
        self.runs = 0

    @property
    def states(self) -> int:
        """How many states were reached."""
        return len(self._after)

    def arrive(self, key: bytes, parent: tuple[bytes, int] | None) -> bool:
        """Take note of a state. Returns whether it is new."""
        is_new = key not in self._after
        if is_new:
            self._after[key] = {}
        if parent is not None:
            self._after[parent[0]][parent[1]] = key
        return is_new

    def plan(self, key: bytes, picks: tuple[int, ...], count: int) -> None:
        """Plan a run for each option but the first."""
        self._planned.extend(((*picks, pick), (key, pick)) for pick in range(count - 1, 0, -1))

    def explore(self, most_runs: int = MOST_RUNS) -> None:
        """Run all orders.

        Raises:
            RuntimeError: there are more than `most_runs`.
        """
        while self._planned:
            if self.runs == most_runs:
                raise RuntimeError(f"there are more than {most_runs} runs: make the scope smaller")
            prefix, parent = self._planned.pop()
            order = Order(self, prefix, parent)
            self.runs += 1
            try:
                end = self._play(order)
            except KnownState:
                continue
            if order.parent is not None:
                self._after[order.parent[0]][order.parent[1]] = None
            self.ends[end] = self.ends.get(end, 0) + 1

    def count_orders(self) -> int:
        """How many orders there are: paths from the first state to an end.

        Raises:
            RuntimeError: a state follows from itself, so it does not say all that the future depends on.
        """
        first = next(iter(self._after), None)
        counts: dict[bytes | None, int] = {None: 1}
        open_states: set[bytes | None] = set()
        stack = [first]
        while stack:
            key = stack[-1]
            missing = [] if key in counts else [after for after in self._after[key].values() if after not in counts]
            if not missing:
                if key not in counts:
                    counts[key] = sum(counts[after] for after in self._after[key].values())
                open_states.discard(stack.pop())
                continue
            if key in open_states:
                raise RuntimeError("a state follows from itself: it does not say all that the future depends on")
            open_states.add(key)
            stack.extend(missing)
        return counts[first]
