"""One event to each submission: a bipartite matching over sets of bits, and what could change hands in it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Assignment:
    """Events given to keys, each to one. Which event a key has may change for the sake of another key.

    Args:
        possible: the events that each key can have. The order of the keys is the order of time.
    """

    def __init__(self, possible: Mapping[str, int]) -> None:
        self._possible = possible
        self._owner: dict[int, str] = {}
        self.position_of: dict[str, int] = {}
        self.taken = 0

    def assign(self, blocked: int = 0) -> set[str]:
        """Give an event to as many keys as can have one. Those that have one keep one.

        Args:
            blocked: events that no key gets.

        Returns:
            The keys that compete for too few events; whichever of them has one now.
        """
        short = set()
        for key in self._possible:
            if key in self.position_of:
                continue
            searched = self._add(key, blocked)
            if searched is not None:
                # These keys have all the events that any of them can have.
                short |= {key, *(self._owner[position] for position in positions(searched & ~blocked))}
                blocked |= searched
        return short

    def _add(self, key: str, blocked: int) -> int | None:
        """Give an event to a key without one, along a shortest augmenting path. Blocked events stay where they are.

        Returns:
            None if the key has one now, else all the events that were tried in vain, and `blocked`.
        """
        searched, queue = blocked, [key]
        wanted_by: dict[int, str] = {}
        for wanting in queue:
            fresh = self._possible[wanting] & ~searched
            free = fresh & ~self.taken
            if free:
                position, taker = lowest(free), wanting
                while taker != key:
                    released = self.position_of[taker]
                    self._put(taker, position)
                    position, taker = released, wanted_by[released]
                self._put(key, position)
                return None
            searched |= fresh
            for position in positions(fresh):
                wanted_by[position] = wanting
                queue.append(self._owner[position])
        return searched

    def release(self, key: str) -> None:
        """Take the event of a key away, if it has one."""
        position = self.position_of.pop(key, None)
        if position is not None:
            del self._owner[position]
            self.taken ^= 1 << position

    def prefer_earliest(self) -> None:
        """Give each key in turn the earliest event that leaves an event to all others that have one."""
        fixed = 0
        for key in self._possible:
            if key not in self.position_of:
                continue
            choice = self._possible[key] & ~fixed
            while lowest(choice) != self.position_of[key]:
                tried = self._move(key, lowest(choice), fixed)
                if tried is None:
                    break
                choice &= ~tried
            fixed |= 1 << self.position_of[key]

    def _move(self, key: str, position: int, fixed: int) -> int | None:
        """Give a key another event. Returns None, or the events that cannot be had, with everything as before."""
        before, displaced = self.position_of[key], self._owner.get(position)
        self.release(key)
        if displaced is not None:
            self.release(displaced)
        self._put(key, position)
        if displaced is None:
            return None
        tried = self._add(displaced, fixed | 1 << position)
        if tried is not None:
            self.release(key)
            self._put(key, before)
            self._put(displaced, position)
        return tried

    def _put(self, key: str, position: int) -> None:
        self.position_of[key], self._owner[position] = position, key
        self.taken |= 1 << position

    def exchanges(self, every: int) -> tuple[dict[str, int], int]:
        """What could change hands with every key still having an event.

        One walk along the arrows "has an event that another key holds": events on a circle of arrows can be exchanged
        among their keys, and an event from which arrows lead to a free event can be freed. The walk keeps the circles
        on its way merged, so it visits each key once.

        Args:
            every: all events.

        Returns:
            For each key the events that it can have by exchange; and the events that are free, or can be freed.
        """
        unvisited, freeable = self.taken, every & ~self.taken
        exchangeable: dict[str, int] = {}
        while unvisited:
            # Each step: the events of one circle, and those that their keys can have.
            steps: list[tuple[int, int]] = []
            on_path, following = 0, unvisited & -unvisited
            while following or steps:
                if following:
                    on_path |= following
                    unvisited ^= following
                    steps.append((following, self._possible[self._owner[lowest(following)]]))
                circle, reach = steps.pop()
                while reach & on_path & ~circle:
                    lower_circle, lower_reach = steps.pop()
                    circle, reach = circle | lower_circle, reach | lower_reach
                following = reach & unvisited & -(reach & unvisited)
                if following:
                    steps.append((circle, reach))
                    continue
                on_path ^= circle
                if reach & freeable:
                    freeable |= circle
                exchangeable.update(dict.fromkeys((self._owner[position] for position in positions(circle)), circle))
        return exchangeable, freeable


def lowest(mask: int) -> int:
    """The lowest bit of a set; -1 if the set is empty."""
    return (mask & -mask).bit_length() - 1


def positions(mask: int) -> Iterator[int]:
    """The bits of a set, the lowest first."""
    while mask:
        yield lowest(mask)
        mask &= mask - 1
