"""The figures of the benchmarks: kept in docs/evidence/data/, shown as tables on the pages of docs/evidence/.

A benchmark saves its figures here when it has run whole. `dev/plots.py` draws them.
"""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

EVIDENCE = Path(__file__).resolve().parents[1] / "docs" / "evidence"
DATA = EVIDENCE / "data"

Row = dict[str, Any]
Figures = dict[str, Any]


def machine() -> str:
    """The machine and the versions, in the words of the pages."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, Airflow {metadata.version('apache-airflow')}"


def text_of(figures: Figures) -> str:
    """Figures as the text of their file: JSON with one line for each row, so that a difference can be read."""
    figures = _rounded(figures)
    rows = ",\n".join(f"    {json.dumps(row)}" for row in figures["rows"])
    others = "".join(f"  {json.dumps(name)}: {json.dumps(it)},\n" for name, it in figures.items() if name != "rows")
    return f'{{\n{others}  "rows": [\n{rows}\n  ]\n}}\n'


def _rounded(value: Any) -> Any:
    """A value with its numbers as exact as they were measured."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def save(name: str, *, command: str, rows: Iterable[Row], **more: Any) -> None:
    """Write the figures of a benchmark, the tables of the pages, and, where the library is, the plots.

    Args:
        name: of the file, without its suffix.
        command: that measured them.
        rows: of the tables and plots.
        more: figures beside the rows.
    """
    day = datetime.now(UTC).date().isoformat()
    load = round(os.getloadavg()[2], 1)
    figures = {"command": command, "date": day, "machine": machine(), "load": load, **more, "rows": list(rows)}
    file = DATA / f"{name}.json"
    file.write_text(text_of(figures), encoding="utf-8")
    print(f"\nWrote {file.relative_to(EVIDENCE.parents[1])}.")
    write_tables()
    try:
        from plots import write_plots
    except ModuleNotFoundError:
        print("The plots need one more package: draw them with `make plots`.")
    else:
        write_plots()


def spread(seconds: Iterable[float]) -> list[float]:
    """How times are spread: from the shortest to the longest, in steps of a twentieth of all of them."""
    times = sorted(seconds)
    return [round(times[round(step * (len(times) - 1) / 20)], 3) for step in range(21)]


def load() -> dict[str, Figures]:
    """The figures of all benchmarks, by name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(DATA.glob("*.json"))}


# --- tables -----------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """A share of the tasks."""
    return f"{share:.1%}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first two are aligned to the right."""
    lines = [columns, ["---", "---", *["--:"] * (len(columns) - 2)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def waits(figures: Figures, shown: slice = slice(None)) -> str:
    """The rows of `make benchmark`, each of ours beside dbt Cloud's of as many runs.

    Args:
        figures: of `make benchmark`.
        shown: the columns beside the first two.
    """
    dbt = {row["runs"]: row for row in figures["rows"] if row["trigger"] == "dbt Cloud"}
    columns = (
        *("requests", "CPU s", "ms a poll cycle", "of it GC", "KB a run"),
        *("mean delay s", "worst delay s", "failed", "fewer requests", "less CPU, waiting", "less CPU, in all"),
    )

    def cells(row: Row) -> list[str]:
        agents = "" if row["trigger"] == "dbt Cloud" else f", {row['agents']:,}"
        theirs = dbt.get(row["runs"]) if row["trigger"] == "ours" else None
        keys = ("requests", "cycle_cpu_s", "cpu_s")
        runs = f"{row['runs']:,}{agents}" if not row["others"] else f"{row['runs']} of {row['runs'] + row['others']:,}"
        numbers = [
            f"{row['requests']:,}",
            f"{row['cpu_s']:.2f}",
            f"{row['cycle_cpu_s'] * 1e3:.1f}",
            f"{row['cycle_gc_s'] * 1e3:.1f}",
            f"{row['memory_kb'] / row['runs']:.1f}",
            f"{row['mean_delay_s']:.2f}",
            f"{row['worst_delay_s']:.2f}",
            f"{row['failed']:,}",
            *("" if theirs is None else f"{theirs[key] / row[key]:.{int(key != 'requests')}f}" for key in keys),
        ]
        return [row["trigger"], runs, *numbers[shown]]

    return table(("trigger", "runs, agents", *columns[shown]), map(cells, figures["rows"]))


def costs(figures: Figures) -> str:
    """The half of the columns that fits on a page."""
    return waits(figures, slice(5))


def delays_and_ratios(figures: Figures) -> str:
    """The other half."""
    return waits(figures, slice(5, None))


def growth(figures: Figures) -> str:
    """What `make benchmark` says of memory, of steps on the loop, and of growth."""
    lines = [f"- The first run of a connection takes {figures['first_run_kb'] / 1024:.1f} MB: the client, TLS."]
    lines += [
        f"- {one['runs']:,} runs: {one['kb']:.1f} KB for each further one beyond a trigger that only waits. The "
        f"longest step on the loop took {one['step_ms']:.0f} ms; with garbage collection {one['step_gc_ms']:.0f} ms, "
        f"and {one['idle_step_ms']:.0f} ms where all triggers only wait."
        for one in figures["further"]
    ]
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in figures["growth"].items())
    return "\n".join([*lines, f"- CPU a run and poll cycle without GC, 10,000 runs over 1,000: {ratios}."])


def of_each(figures: Figures, runs: int) -> tuple[Row, Row]:
    """The rows of dbt Cloud and of this provider, for so many runs of an agent each."""
    rows = {row["trigger"]: row for row in figures["rows"] if row["runs"] == row["agents"] == runs}
    return rows["dbt Cloud"], rows["ours"]


def goals(figures: Figures) -> str:
    """What `make benchmark` is to show, and what it shows."""
    dbt, ours = of_each(figures, 1000)
    further = {one["runs"]: one for one in figures["further"]}

    def times(key: str) -> float:
        return float(dbt[key] / ours[key])

    lines = (
        ("requests, fewer by", times("requests"), "at least 115 times", times("requests") >= 115, ".0f"),
        ("CPU while they wait, less by", times("cycle_cpu_s"), "at least 30 times", times("cycle_cpu_s") >= 30, ".1f"),
        ("CPU from start to end, less by", times("cpu_s"), "at least 10 times", times("cpu_s") >= 10, ".1f"),
        ("worst delay, s", ours["worst_delay_s"], "at most 5.5", ours["worst_delay_s"] <= 5.5, ".2f"),
        ("KB a further run", further[1000]["kb"], "at most 10", further[1000]["kb"] <= 10, ".1f"),
        (
            "ms of the longest step, 10,000 runs",
            further[10000]["step_ms"],
            "at most 50",
            further[10000]["step_ms"] <= 50,
            ".0f",
        ),
        *(
            (f"CPU a run, 10,000 over 1,000 runs, {name}", ratio, "below 1.2", ratio < 1.2, ".2f")
            for name, ratio in figures["growth"].items()
        ),
    )
    columns = ("at 1,000 runs", "goal", "measured", "")
    return table(
        columns, ([what, goal, f"{it:{shown}}", "met" if met else "missed"] for what, it, goal, met, shown in lines)
    )


def deployment(figures: Figures) -> str:
    """What `make deployment` says of real triggerers."""
    lines: tuple[tuple[str, str, Callable[[Row], str]], ...] = (
        ("load of the machine", "processes", lambda row: f"{row['load']:.1f}"),
        ("waits of each triggerer", "", lambda row: ", ".join(f"{count:,}" for count in row["waits"])),
        ("CPU of a triggerer that has nothing to do", "% of a core", lambda row: f"{row['idle_cpu_percent']:.1f}"),
        ("CPU of a triggerer while all wait", "% of a core", lambda row: f"{row['cpu_percent']:.1f}"),
        ("memory of a triggerer that has nothing to do", "MB", lambda row: f"{row['idle_memory_mb']:.0f}"),
        ("memory of a triggerer while all wait", "MB", lambda row: f"{row['memory_mb']:.0f}"),
        ("until all are deferred", "s", lambda row: f"{row['deferred_after_s']:.0f}"),
        ("until all triggers wait", "s", lambda row: f"{row['waiting_after_s']:.0f}"),
        (
            "requests until then, for a thousand tasks",
            "",
            lambda row: f"{row['arrival_requests'] * 1e3 / row['tasks']:.0f}",
        ),
        ("requests while all wait", "a minute", lambda row: f"{row['requests_per_minute']:.0f}"),
        ("requests from the first start to the last end", "", lambda row: f"{row['agents.poll.requests']:,}"),
        ("an end is noticed after, on average", "s", lambda row: f"{row['mean_delay_s']:.2f}"),
        ("an end is noticed after, at most", "s", lambda row: f"{row['worst_delay_s']:.2f}"),
        ("a poll cycle, on average", "ms", lambda row: f"{row['mean_cycle_ms']:.0f}"),
        ("a poll cycle, at most", "ms", lambda row: f"{row['worst_cycle_ms']:,.0f}"),
        ("Airflow's warnings that a triggerer's loop is blocked", "", lambda row: f"{len(row['blocked_s'])}"),
        ("the longest of them", "s", lambda row: f"{max(row['blocked_s'], default=0.0):.1f}"),
    )
    columns = [f"{row['tasks']:,} tasks, triggerers: {row['triggerers']}" for row in figures["rows"]]
    return table(("", "", *columns), ([what, unit, *map(show, figures["rows"])] for what, unit, show in lines))


def deployment_goals(figures: Figures) -> str:
    """What `make deployment` is to show with the most tasks, and what it shows."""
    row = figures["rows"][-1]
    lines = (
        ("requests until all wait, for a thousand tasks", row["arrival_requests"] * 1e3 / row["tasks"], 250, ".0f"),
        ("% of a core, more than with nothing to do", row["cpu_percent"] - row["idle_cpu_percent"], 2, ".1f"),
        ("s until an end is noticed, at most", row["worst_delay_s"], 10, ".1f"),
    )
    columns = (f"{row['tasks']:,} tasks, triggerers: {row['triggerers']}", "goal", "measured", "")
    return table(
        columns,
        (
            [what, f"at most {goal}", f"{it:{shown}}", "met" if it <= goal else "missed"]
            for what, it, goal, shown in lines
        ),
    )


def soundness(part: str) -> Callable[[Figures], str]:
    """The worlds of one part of `make soundness`."""
    shares = ("own event", "a sibling's", "another party's", "event to two", "ambiguous", "wrong success")

    def rows(figures: Figures) -> str:
        lines = (
            [row["world"], row["loop"], *(percent(row[name]) for name in shares), f"{row['delay (s)']:.1f}"]
            for row in figures["rows"]
            if row["part"] == part
        )
        return table(("world", "loop", *shares, "delay (s)"), lines)

    return rows


def workers(figures: Figures) -> str:
    """What each way of waiting takes from the workers."""
    lines = (
        [
            row["way"],
            f"{row['run_s']:g}",
            f"{row['starts']:g}",
            f"{row['cpu_s']:.2f}",
            f"{row['slot_s']:.1f}",
            f"{row['beyond_s']:.1f}",
            f"{row['to_success_s']:.1f}",
            f"{row['to_next_s']:.1f}",
        ]
        for row in figures["rows"]
    )
    titles = ("way", "run, s", "worker starts", "worker CPU s", "slot s", "s beyond the run")
    return table((*titles, "run's end to success, s", "success to next task, s"), lines)


def watcher(figures: Figures) -> str:
    """How many of the runs that ended reached each DAG, over kills of the triggerer."""
    lines = (
        (
            f"`{row['dag']}`",
            f"{row['in_events']:,}",
            *(f"{row[name]:,}" for name in ("returned", "missing", "twice", "dag_runs", "again", "retried", "changed")),
        )
        for row in figures["rows"]
    )
    titles = ("DAG", "runs in its triggering events", "returned by its tasks", "missing", "returned twice")
    more = ("DAG runs", "reported again after a kill", "tasks tried again", "of them, given other runs")
    ran = f"{figures['runs']:,} runs ended, in {figures['bursts']} bursts within {figures['seconds']:.0f} s"
    return f"{ran}; {figures['kills']} kills of the triggerer.\n\n{table((*titles, *more), lines)}"


#: By the marker on the page: the figures, and what shows them.
TABLES: dict[str, tuple[str, Callable[[Figures], str]]] = {
    "costs": ("triggerer", costs),
    "delays and ratios": ("triggerer", delays_and_ratios),
    "costs on a busy machine": ("triggerer_busy", costs),
    "delays on a busy machine": ("triggerer_busy", delays_and_ratios),
    "growth": ("triggerer", growth),
    "goals": ("triggerer", goals),
    "deployment": ("deployment", deployment),
    "goals of a deployment": ("deployment", deployment_goals),
    "one task": ("soundness", soundness("one task")),
    "side by side": ("soundness", soundness("side by side")),
    "exclusive": ("soundness", soundness("exclusive")),
    "spread": ("soundness", soundness("spread")),
    "chains": ("soundness", soundness("chains")),
    "watcher": ("watcher", watcher),
    "workers": ("worker_time", workers),
}
_MARKED = re.compile(r"(<!-- table: (.+?) -->\n).*?(\n<!-- end of table -->)", re.DOTALL)


def source(figures: Figures) -> str:
    """Where figures are from. The load counts the processes that wanted a core, on average of 15 minutes."""
    load = f", load {figures['load']}" if "load" in figures else ""
    return f"{figures['date']}; {figures['machine']}{load}; `{figures['command']}`."


def with_tables(page: str, figures: dict[str, Figures]) -> str:
    """The text of a page, with what stands between its markers made from the figures."""

    def made(found: re.Match[str]) -> str:
        name, show = TABLES[found[2]]
        return f"{found[1]}\n{source(figures[name])}\n\n{show(figures[name])}\n{found[3]}"

    return _MARKED.sub(made, page)


def write_tables() -> None:
    """Write the tables of all pages."""
    for page in sorted(EVIDENCE.glob("*.md")):
        page.write_text(with_tables(page.read_text(encoding="utf-8"), load()), encoding="utf-8")
