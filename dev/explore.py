"""Every order of events in a task's life at a small scope, played and counted.

Kills before and after each request and each write, answers lost before and after the platform acted, clears, a sibling,
another party: enumerated, not drawn. Run by `make explore`. `tests/support/lives.py` says what can happen, and
`tests/support/life_judge.py` what counts as a fault.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from itertools import product
from typing import Any

from command import ROOT, run_command, status_of, table

sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]

#: What can happen in each scope, beside runs that are short or long. Each is played for every way to wait.
NARROW = {
    "a fault": {"faults": 1, "clears": 0},
    "a fault in the only try": {"faults": 1, "clears": 0, "tries": 1},
    "a clear": {"faults": 0, "clears": 1},
    "a sibling": {"sibling": True, "faults": 0, "clears": 0, "odd_runs": 0},
    "another party": {"stranger": True, "faults": 0, "clears": 0},
}
WIDE = {
    "two faults": {"faults": 2, "clears": 0, "odd_runs": 0},
    "a fault and a clear": {"faults": 1, "clears": 1},
    "a sibling and an odd run": {"sibling": True, "faults": 0, "clears": 0},
    "a sibling and a fault": {"sibling": True, "faults": 1, "clears": 0, "odd_runs": 0},
    "another party and a fault": {"stranger": True, "faults": 1, "clears": 0, "odd_runs": 0},
    "a sibling and another party": {"sibling": True, "stranger": True, "faults": 0, "clears": 0, "odd_runs": 0},
}
WAITS = ("worker", "deferred", "trigger")


def explore(mode: tuple[str, bool, str]) -> tuple[tuple[str, bool, str], int, int, int, float, Counter[str], Any]:
    """One mode: its states, orders, runs, seconds, ends and faults."""
    from life_judge import Exploration
    from lives import Scope

    wait, copies, scope = mode
    began = time.process_time()
    what: dict[str, Any] = {**(NARROW | WIDE)[scope]}
    found = Exploration(Scope(wait=wait, copies=copies, **what))
    counted = found.explorer
    seconds = time.process_time() - began
    print(
        f"{scope}, {wait}, copies={copies}: {counted.runs:,} runs, {len(found.faults)} faults, {seconds:.0f} s of CPU",
        file=sys.stderr,
        flush=True,
    )
    return mode, counted.states, counted.count_orders(), counted.runs, seconds, found.ends, found.faults


def main() -> int:
    """Explore all modes on all cores, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wait", choices=WAITS, action="append", help="only this way to wait; may be repeated")
    parser.add_argument("--scope", choices=list(NARROW | WIDE), action="append", help="only this; may be repeated")
    parser.add_argument("--narrow", action="store_true", help="only the scopes of a few minutes")
    parser.add_argument("--processes", type=int, help="how many at once; by default, one for each core")
    options = parser.parse_args()
    scopes = options.scope or list(NARROW if options.narrow else NARROW | WIDE)
    modes = list(product(options.wait or WAITS, [False, True], scopes))
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        found = sorted(pool.imap_unordered(explore, modes, chunksize=1), key=lambda one: modes.index(one[0]))
    rows = [
        (scope, wait, "with" if copies else "without", f"{states:,}", f"{orders:,}", f"{runs:,}", len(faults))
        for (wait, copies, scope), states, orders, runs, _, _, faults in found
    ]
    print(table(["scope", "waits", "copy of the record", "states", "orders", "runs", "faults"], sorted(rows)))
    ends: Counter[str] = sum((one[5] for one in found), Counter())
    print("\n" + table(["end of a task", "runs"], [(end, f"{count:,}") for end, count in ends.most_common()]))
    states, orders, runs = (sum(one[1] for one in found), sum(one[2] for one in found), sum(one[3] for one in found))
    seconds = sum(one[4] for one in found)
    print(f"\n{states:,} states, {orders:,} orders, {runs:,} runs, {seconds:.0f} seconds of CPU")
    return status_of(
        f"{'; '.join(map(str, mode))}: {fault}: {' > '.join(order)}"
        for mode, *_, faults in found
        for fault, order in faults.items()
    )


if __name__ == "__main__":
    run_command(main)
