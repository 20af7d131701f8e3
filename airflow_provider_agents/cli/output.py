"""What the commands print."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from airflow_provider_agents.api.models import ExecutionEvent

#: Of a line on the terminal. Our own messages quote less of what a server sent.
LONGEST_LINE = 2000
#: On a narrow terminal the other columns fold: none is cut.
_NEVER_FOLDED = frozenset({"created (UTC)", "written (UTC)", "took", "check", "result"})
#: Of a cell in a table. An id has its full length; JSON and YAML shorten nothing.
_LONGEST_CELL = 1024


def say(message: str) -> None:
    """Print one line to the standard error."""
    print(one_line(message, LONGEST_LINE), file=sys.stderr)


def _write(text: str) -> None:
    # Names are the server's: a terminal that cannot show a letter of one is no reason to end.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has enough, as with `| head`. What Python flushes at its end must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_rows(output: str, records: Sequence[dict[str, Any]], rows: Sequence[dict[str, str]], empty: str) -> None:
    """Print what was found.

    Args:
        output: as `--output` says.
        records: for scripts.
        rows: the same for people, column by column.
        empty: printed in place of a table without rows.
    """
    if output == "json":
        # ASCII only, so that no character can mean anything to a terminal.
        _write(json.dumps(records, indent=2) + "\n")
    elif output == "yaml":
        from airflow.utils import yaml

        _write(yaml.dump(records, sort_keys=False))
    elif not rows:
        say(empty)
    elif output == "plain":
        _write(_plain(rows))
    else:
        _write(_table(rows))


def print_text(lines: Iterable[str]) -> None:
    """Print lines for people."""
    _write("".join(f"{line}\n" for line in lines))


def _cells(row: dict[str, str]) -> list[str]:
    return [one_line(cell, _LONGEST_CELL) or "-" for cell in row.values()]


def _plain(rows: Sequence[dict[str, str]]) -> str:
    from rich.cells import cell_len

    lines = [list(rows[0]), *map(_cells, rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "".join(f"{line.rstrip()}\n" for line in padded)


def _table(rows: Sequence[dict[str, str]]) -> str:
    from airflow.cli.simple_table import AirflowConsole, SimpleTable
    from rich.text import Text

    table = SimpleTable(show_header=True)
    for name in rows[0]:
        table.add_column(Text(name), no_wrap=name in _NEVER_FOLDED)
    for row in rows:
        # Text, not str: in a str rich would take `[red]` for a colour and `:bug:` for a picture.
        table.add_row(*map(Text, _cells(row)))
    console = AirflowConsole()
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def clock_time(moment: datetime | None) -> str:
    """A moment in UTC, to the second; empty without one."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment is not None else ""


def length_in_words(seconds: float) -> str:
    """A length of time in words, to the second: `1h 2m 3s`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    parts = [f"{value}{unit}" for value, unit in ((hours, "h"), (minutes, "m"), (left, "s")) if value]
    return " ".join(parts) or "0s"


def run_rows(events: Sequence[ExecutionEvent]) -> list[dict[str, str]]:
    """Runs as rows of a table, without the column of errors if there are none."""
    rows = [
        {
            "event": event.id,
            "status": event.status if event.unreadable is None else "unreadable",
            "created (UTC)": clock_time(event.createdAt or event.startedAt),
            "took": length_in_words((event.completedAt - event.startedAt).total_seconds())
            if event.startedAt is not None and event.completedAt is not None
            else "",
            "error": str(event.error or "") if event.unreadable is None else event.unreadable,
        }
        for event in events
    ]
    if not any(row["error"] for row in rows):
        for row in rows:
            del row["error"]
    return rows
