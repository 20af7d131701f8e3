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
    figures = {"command": command, "date": day, "machine": machine(), **more, "rows": list(rows)}
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


def waits(figures: Figures) -> str:
    """The rows of `make benchmark`, each of ours beside dbt Cloud's of as many runs."""
    dbt = {row["runs"]: row for row in figures["rows"] if row["trigger"] == "dbt Cloud"}
    columns = (
        *("trigger", "runs, agents", "requests", "CPU s", "ms a poll cycle", "of it GC", "KB a run"),
        *("mean delay s", "worst delay s", "fewer requests", "less CPU, waiting", "less CPU, in all"),
    )

    def cells(row: Row) -> list[str]:
        agents = "" if row["trigger"] == "dbt Cloud" else f", {row['agents']:,}"
        theirs = dbt.get(row["runs"]) if row["trigger"] == "ours" else None
        keys = ("requests", "cycle_cpu_s", "cpu_s")
        return [
            row["trigger"],
            f"{row['runs']:,}{agents}" if not row["others"] else f"{row['runs']} of {row['runs'] + row['others']:,}",
            f"{row['requests']:,}",
            f"{row['cpu_s']:.2f}",
            f"{row['cycle_cpu_s'] * 1e3:.1f}",
            f"{row['cycle_gc_s'] * 1e3:.1f}",
            f"{row['memory_kb'] / row['runs']:.1f}",
            f"{row['mean_delay_s']:.2f}",
            f"{row['worst_delay_s']:.2f}",
            *("" if theirs is None else f"{theirs[key] / row[key]:.{int(key != 'requests')}f}" for key in keys),
        ]

    return table(columns, map(cells, figures["rows"]))


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
        ]
        for row in figures["rows"]
    )
    return table(("way", "run, s", "worker starts", "worker CPU s", "slot s", "s beyond the run"), lines)


#: By the marker on the page: the figures, and what shows them.
TABLES: dict[str, tuple[str, Callable[[Figures], str]]] = {
    "waits": ("triggerer", waits),
    "growth": ("triggerer", growth),
    "one task": ("soundness", soundness("one task")),
    "side by side": ("soundness", soundness("side by side")),
    "chains": ("soundness", soundness("chains")),
    "workers": ("worker_time", workers),
}
_MARKED = re.compile(r"(<!-- table: (.+?) -->\n).*?(\n<!-- end of table -->)", re.DOTALL)


def with_tables(page: str, figures: dict[str, Figures]) -> str:
    """The text of a page, with what stands between its markers made from the figures."""

    def made(found: re.Match[str]) -> str:
        name, show = TABLES[found[2]]
        source = f"{figures[name]['date']}; {figures[name]['machine']}; `{figures[name]['command']}`."
        return f"{found[1]}\n{source}\n\n{show(figures[name])}\n{found[3]}"

    return _MARKED.sub(made, page)


def write_tables() -> None:
    """Write the tables of all pages."""
    for page in sorted(EVIDENCE.glob("*.md")):
        page.write_text(with_tables(page.read_text(encoding="utf-8"), load()), encoding="utf-8")
