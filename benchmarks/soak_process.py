"""What a long life adds to the process: memory, objects, file descriptors."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sample(NamedTuple):
    """The process, so many days after its start."""

    days: float
    megabytes: float
    objects: int
    waits: int
    descriptors: int


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def growth(samples: Sequence[Sample]) -> tuple[float, float]:
    """Megabytes and objects at the end, beyond those after the first tenth; each the median of some samples."""
    if len(samples) < 9:
        return 0.0, 0
    first, last = samples[2:7], samples[-5:]
    megabytes = statistics.median(one.megabytes for one in last) - statistics.median(one.megabytes for one in first)
    objects = statistics.median(one.objects for one in last) - statistics.median(one.objects for one in first)
    return megabytes, objects
