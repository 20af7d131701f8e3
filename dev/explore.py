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

#: What goes wrong beside each company: a sibling or another party multiplies the orders.
BUDGETS = {
    "alone": {"faults": 2, "clears": 0, "odd_runs": 1},
    "alone, cleared": {"faults": 1, "clears": 1, "odd_runs": 1},
    "a sibling": {"sibling": True, "faults": 1, "clears": 0, "odd_runs": 0},
    "another party": {"stranger": True, "faults": 1, "clears": 0, "odd_runs": 1},
    "both": {"sibling": True, "stranger": True, "faults": 0, "clears": 0, "odd_runs": 1},
}
WAITS = ("worker", "deferred", "trigger")


def explore(mode: tuple[str, bool, str]) -> tuple[tuple[str, bool, str], int, int, int, float, Counter[str], Any]:
    """One mode: its states, orders, runs, seconds, ends and faults."""
    from life_judge import Exploration
    from lives import Scope

    wait, copies, company = mode
    began = time.monotonic()
    budget: dict[str, Any] = {**BUDGETS[company]}
    found = Exploration(Scope(wait=wait, copies=copies, **budget))
    counted = found.explorer
    seconds = time.monotonic() - began
    print(f"{wait}, copies={copies}, {company}: {counted.runs:,} runs in {seconds:.0f} s", file=sys.stderr, flush=True)
    return mode, counted.states, counted.count_orders(), counted.runs, seconds, found.ends, found.faults


def main() -> int:
    """Explore all modes on all cores, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wait", choices=WAITS, action="append", help="only this way to wait; may be repeated")
    parser.add_argument("--company", choices=list(BUDGETS), action="append", help="only this company; may be repeated")
    parser.add_argument("--copies", choices=["yes", "no"], help="only with, or only without, the copy of the record")
    options = parser.parse_args()
    copies = [options.copies == "yes"] if options.copies else [False, True]
    modes = list(product(options.wait or WAITS, copies, options.company or BUDGETS))
    with multiprocessing.get_context("spawn").Pool() as pool:
        found = sorted(pool.imap_unordered(explore, modes), key=lambda one: modes.index(one[0]))
    rows = [
        (wait, "with" if copies else "without", company, f"{states:,}", f"{orders:,}", f"{runs:,}", len(faults))
        for (wait, copies, company), states, orders, runs, _, _, faults in found
    ]
    print(table(["waits", "copy of the record", "company", "states", "orders", "runs", "faults"], rows))
    ends: Counter[str] = sum((one[5] for one in found), Counter())
    print("\n" + table(["end of a task", "runs"], [(end, f"{count:,}") for end, count in ends.most_common()]))
    states, orders, runs = (sum(one[1] for one in found), sum(one[2] for one in found), sum(one[3] for one in found))
    print(f"\n{states:,} states, {orders:,} orders, {runs:,} runs")
    return status_of(
        f"{'; '.join(map(str, mode))}: {fault}: {' > '.join(order)}"
        for mode, *_, faults in found
        for fault, order in faults.items()
    )


if __name__ == "__main__":
    run_command(main)
