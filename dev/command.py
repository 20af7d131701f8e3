"""How the commands for developers print, fail and end. Needs nothing but Python."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ROOT = Path(__file__).resolve().parents[1]


class CommandError(Exception):
    """The command cannot do its work; the text says why."""


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    first, *others = (f"| {' | '.join(map(str, line))} |" for line in (headings, *rows))
    return "\n".join([first, f"|{'---|' * len(headings)}", *others])


def status_of(wrong: Iterable[str]) -> int:
    """Print what is wrong, a line each, to the standard error; the exit status: 1 if anything is."""
    lines = list(wrong)
    print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)
    return int(bool(lines))


@contextlib.contextmanager
def new_home(name: str) -> Iterator[Path]:
    """A folder of the clone for all that an Airflow writes. It is deleted at the end."""
    home = Path(tempfile.mkdtemp(prefix=f".airflow-{name}-", dir=ROOT))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def run_command(main: Callable[[], int]) -> NoReturn:
    """End the process with the exit status of `main`: 1 after a `CommandError`, 130 if a signal ends it.

    Both Ctrl-C and SIGTERM stop what `main` has started, as its blocks are left.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main())
    except CommandError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nInterrupted. Everything is stopped.", file=sys.stderr)
        sys.exit(130)
