"""`make matrix`: the tests, and the examples in a real Airflow, on every Airflow and Python that the package supports.

A cell is one Airflow and one Python, such as `3.0-py3.11`. Each has an environment of its own, made as a user would:
Airflow first, then the wheel, which must leave Airflow alone. Needs nothing but Python, and uv if it is there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from command import ROOT, CommandError, run_command, status_of, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WORK = ROOT / ".cache" / "matrix"
PINS = ROOT / "constraints"
#: What Airflow itself does not support.
IMPOSSIBLE = {("3.0", "3.13")}
#: What the wheel must bring in a newer release than an older Airflow has, without touching Airflow.
COMPAT = "apache-airflow-providers-common-compat"
AIRFLOW = ("apache-airflow", "apache-airflow-core", "apache-airflow-task-sdk")
_INSTALL_SECONDS, _UNIT_SECONDS, _EXAMPLES_SECONDS = 900, 1500, 600
_TAIL_LINES = 25
#: What the code of an older Airflow does to itself, and no code of ours can avoid.
_ALLOWED_WARNINGS = (
    # The opentelemetry of Airflow 3.2's day asks Python 3.11 for entry points.
    "SelectableGroups dict interface is deprecated",
    # The hook of Airflow 3.0 looks a connection up in a task.
    "Using Connection.get_connection_from_secrets from `airflow.models` is deprecated",
    # That of 3.1 finds one in a task's environment.
    "Using Connection.from_json from `airflow.models` is deprecated",
)


class StepError(CommandError):
    """A step of a cell has failed; the text says how, and where its log is."""


def by_number(version: str) -> tuple[int, ...]:
    """The sort key of a version such as 3.12."""
    return tuple(int(part) for part in version.split("."))


def is_pre_release(version: str) -> bool:
    """Whether a version is an alpha, a beta or a release candidate, such as 3.4.0b2."""
    return re.fullmatch(r"[\d.]+", version) is None


# --- which cells there are -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A minor release of Airflow on a minor release of Python."""

    airflow: str
    python: str

    @property
    def name(self) -> str:
        """As it is asked for and as its folder is called."""
        return f"{self.airflow}-py{self.python}"

    @property
    def pins(self) -> Path:
        """The versions of everything in it."""
        return PINS / f"airflow-{self.airflow}.txt"

    @property
    def version(self) -> str:
        """The version of its Airflow."""
        return pinned(self.pins.read_text().splitlines(), "apache-airflow-core")


def _pinned_airflows(*, pre_release: bool) -> list[str]:
    minors = sorted((file.stem.removeprefix("airflow-") for file in PINS.glob("airflow-*.txt")), key=by_number)
    return [minor for minor in minors if is_pre_release(Cell(minor, "").version) == pre_release]


def airflows() -> list[str]:
    """The minor releases of Airflow that the package says it supports, oldest first: one file of pins for each."""
    return _pinned_airflows(pre_release=False)


def coming_airflows() -> list[str]:
    """The minor releases that are coming: those whose pins name a pre-release. Their faults fail nothing."""
    return _pinned_airflows(pre_release=True)


def pythons() -> list[str]:
    """The minor releases of Python that the package says it supports, oldest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in project["classifiers"])
    return sorted((match[1] for match in found if match), key=by_number)


def default_cells() -> list[Cell]:
    """Every Airflow on the oldest Python, the newest on each, and the oldest on the newest that it supports.

    An Airflow that is coming is there on the newest Python.
    """
    oldest, newest = airflows()[0], airflows()[-1]
    cells = [Cell(airflow, pythons()[0]) for airflow in airflows()]
    cells += [Cell(newest, python) for python in pythons()]
    cells += [Cell(oldest, python) for python in pythons() if (oldest, python) not in IMPOSSIBLE][-1:]
    cells += [Cell(airflow, pythons()[-1]) for airflow in coming_airflows()]
    return sorted(set(cells), key=lambda cell: (by_number(cell.airflow), by_number(cell.python)))


def chosen_cells(names: Iterable[str], found: Iterable[str]) -> list[Cell]:
    """The cells that were asked for, each once.

    Args:
        names: of cells; `lowest` and `newest` stand for the oldest of both and for the newest of both among `found`.
            `between` stands for every Airflow between these two, each on the oldest Python among `found`. `next` is the
            Airflow that is coming on the newest of `found`: no cell while there is no pre-release.
        found: the Pythons on this machine.

    Raises:
        ValueError: a name is that of no cell.
    """
    wanted = list(names)
    if not wanted:
        return default_cells()
    possible = {
        cell.name: cell
        for cell in (Cell(airflow, python) for airflow in [*airflows(), *coming_airflows()] for python in pythons())
        if (cell.airflow, cell.python) not in IMPOSSIBLE
    }
    here = set(found) or {*pythons()}
    of_here = [cell for cell in possible.values() if cell.python in here]
    coming = [cell for cell in of_here if cell.airflow in coming_airflows()]
    released = [cell for cell in of_here if cell not in coming]
    between = [cell for cell in released if cell.airflow in airflows()[1:-1] and cell.python == released[0].python]
    stands_for = {"lowest": released[:1], "between": between, "newest": released[-1:], "next": coming[-1:]}
    stands_for |= {name: [cell] for name, cell in possible.items()}
    unknown = [name for name in wanted if name not in stands_for]
    if unknown:
        raise ValueError(f"There is no cell {unknown[0]!r}: there are {', '.join(stands_for)}.")
    return list(dict.fromkeys(cell for name in wanted for cell in stands_for[name]))


# --- interpreters ----------------------------------------------------------------------------------------------------


def version_of(interpreter: str) -> str | None:
    """The version of an interpreter such as 3.12.1; None if it does not run."""
    script = "import platform, venv; print(platform.python_version())"
    try:
        done = subprocess.run([interpreter, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_pythons(named: Sequence[str]) -> dict[str, str]:
    """An interpreter for each supported Python that is on this machine.

    Args:
        named: interpreters that the user has named; they come first, then `python3.x` on the PATH, then pyenv's, of
            which only those are on the PATH that its user has chosen.
    """
    found: dict[str, str] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT") or ROOT / "no-pyenv") / "versions"
    of_pyenv = [str(file) for python in pythons() for file in sorted(pyenv.glob(f"{python}.*/bin/python{python}"))]
    on_path = [f"python{python}" for python in pythons()]
    for interpreter in [*named, *on_path, sys.executable, "python3", *of_pyenv]:
        version = version_of(interpreter)
        if version is None:
            if interpreter in named:
                print(f"{interpreter} does not run, so it is left out.", file=sys.stderr)
            continue
        found.setdefault(version.rpartition(".")[0], interpreter)
    return {python: found[python] for python in pythons() if python in found}


# --- a cell, step by step --------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What came of a cell."""

    cell: Cell
    airflow: str = ""
    python: str = ""
    passed: int = 0
    skipped: int = 0
    failed: int = 0
    examples: str = ""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


class CellEnvironment:
    """One cell's environment, and what is done in it.

    Args:
        cell: the cell.
        interpreter: its Python.
        wheel: the package.
    """

    def __init__(self, cell: Cell, interpreter: str, wheel: Path) -> None:
        self.cell, self.interpreter, self.wheel = cell, interpreter, wheel
        self.folder = WORK / cell.name
        self.venv = self.folder / "venv"
        self.python = self.venv / "bin" / "python"
        self.result = Result(cell)

    def run(self, tests: Sequence[str], *, with_examples: bool) -> Result:
        """Do all of it; a step that fails does not keep the others from being tried, unless they need it.

        Args:
            tests: files and folders of tests; all tests if none is named.
            with_examples: whether the examples run, too.
        """
        steps = [(lambda: self._test(tests), "the tests")]
        if with_examples:
            steps.append((self._examples, "the examples in a real Airflow"))
        began_at = time.monotonic()
        try:
            self.install()
            for step, words in steps:
                self._say(words)
                try:
                    step()
                except StepError as error:
                    self._fault(error)
        except StepError as error:
            self._fault(error)
        self.result.seconds = time.monotonic() - began_at
        return self.result

    def _fault(self, error: StepError) -> None:
        self.result.faults.append(str(error))
        print(f"{self.cell.name}: FAILED: {error}", file=sys.stderr, flush=True)

    def _say(self, words: str) -> None:
        print(f"{self.cell.name}: {words} ...", flush=True)

    def _do(self, name: str, command: Sequence[str | Path], seconds: float, **env: str) -> Path:
        log = self.folder / f"{name}.log"
        do(name, command, log, seconds, {"AIRFLOW_HOME": str(self.folder / "airflow"), **env})
        return log

    def _pip(self, name: str, *arguments: str | Path) -> None:
        self._do(name, [self.python, "-m", "pip", "install", "--quiet", *arguments], _INSTALL_SECONDS)

    def install(self) -> None:
        """Make the environment anew: Airflow, the wheel, and the tools of the tests.

        Raises:
            StepError: that failed, or the wheel has changed Airflow.
        """
        self._say("installing Airflow, then the wheel")
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.venv, ignore_errors=True)
        uv = shutil.which("uv")
        if uv:
            # With pip in it: what users install with decides whether Airflow stays as it is.
            self._do("venv", [uv, "venv", "--quiet", "--seed", "--python", self.interpreter, self.venv], 120)
        else:
            self._do("venv", [self.interpreter, "-m", "venv", self.venv], 120)
        pins = self.folder / "pins.txt"
        lines = self.cell.pins.read_text().splitlines()
        if self.cell.airflow not in [*airflows()[-1:], *coming_airflows()]:
            # As Airflow's own constraints have it: too old for us. The newest ones' pins are of today, and bear none.
            lines = [line for line in lines if not line.startswith(COMPAT)] + [f"{COMPAT}<1.21"]
        pins.write_text("\n".join(lines))
        airflow = [f"apache-airflow=={self.cell.version}", "-c", str(pins)]
        if uv:
            command: list[str | Path] = [uv, "pip", "install", "--quiet", "--python", self.python, *airflow]
            self._do("install-airflow", command, _INSTALL_SECONDS)
        else:
            self._pip("install-airflow", *airflow)
        before = self._versions()
        self._pip("install-wheel", self.wheel)
        after = self._versions()
        self.result.airflow, self.result.python = after["apache-airflow"], after["python"]
        changed = [f"{name} from {before[name]} to {after[name]}" for name in AIRFLOW if before[name] != after[name]]
        if changed:
            raise StepError(f"to install the wheel has changed {', '.join(changed)}")
        tools = [f"{self.wheel}[dev]", "-c", str(self.cell.pins)]
        if uv:
            command = [uv, "pip", "install", "--quiet", "--python", self.python, *tools]
            self._do("install-tools", command, _INSTALL_SECONDS)
        else:
            self._pip("install-tools", *tools)

    def _versions(self) -> dict[str, str]:
        script = (
            "import importlib.metadata, platform, sys\n"
            "print('python', platform.python_version())\n"
            "for name in sys.argv[1:]: print(name, importlib.metadata.version(name))"
        )
        log = self._do("versions", [self.python, "-c", script, *AIRFLOW], 60)
        return {name: version for name, _, version in (line.partition(" ") for line in log.read_text().splitlines())}

    def _test(self, tests: Sequence[str]) -> None:
        report = self.folder / "tests.xml"
        report.unlink(missing_ok=True)
        options = ["-q", "-m", "not system", "--numprocesses=2", "--dist=loadgroup", f"--junitxml={report}"]
        allowed = [option for warning in _ALLOWED_WARNINGS for option in ("-W", f"ignore:{warning}:DeprecationWarning")]
        # An older anyio brings a plugin at which a newer pytest warns before it has read any option; no test uses it.
        allowed += ["-p", "no:anyio"]
        command: list[str | Path] = [self.python, "-m", "pytest", *allowed, *options, *tests]
        try:
            self._do("tests", command, _UNIT_SECONDS)
        finally:
            if report.exists():
                passed, failed, skipped = counts(report.read_text())
                self.result.passed, self.result.failed, self.result.skipped = passed, failed, skipped

    def _examples(self) -> None:
        self.result.examples = "failed"
        log = self._do("examples", [self.python, ROOT / "dev" / "examples.py"], _EXAMPLES_SECONDS)
        self.result.examples = log.read_text().rstrip().rpartition("\n")[2]


def pinned(lines: Iterable[str], name: str) -> str:
    """The version of a distribution among pins."""
    for line in lines:
        found, _, version = line.partition(";")[0].strip().partition("==")
        if found == name:
            return version
    raise StepError(f"the pins name no {name}")


def counts(junit: str) -> tuple[int, int, int]:
    """How many tests passed, failed and were skipped, out of pytest's report."""
    suite = next(ET.fromstring(junit).iter("testsuite"))  # noqa: S314 - pytest has just written it
    total, failed, errors, skipped = (int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped"))
    return total - failed - errors - skipped, failed + errors, skipped


def do(name: str, command: Sequence[str | Path], log: Path, seconds: float, env: Mapping[str, str]) -> None:
    """Run a command with its output in a file.

    Raises:
        StepError: it failed or took too long; with the end of its output.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env={**inherited, **env}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        status: int | None = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        # Asked first: what it has started is stopped by it alone.
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if status != 0:
        how = f"ended with status {status}" if status is not None else f"was not over after {seconds:g} seconds"
        end = "\n    ".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise StepError(f"{name} {how}. The end of {log.relative_to(ROOT)}:\n    {end}")


def build_wheel() -> Path:
    """The package as its users get it."""
    dist = WORK / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    uv = shutil.which("uv")
    if uv:
        do("build", [uv, "build", "--quiet", "--wheel", "--out-dir", dist, ROOT], WORK / "build.log", 300, {})
    else:
        venv = WORK / "build"
        do("venv", [sys.executable, "-m", "venv", venv], WORK / "build.log", 120, {})
        python = venv / "bin" / "python"
        command: list[str | Path] = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", dist, ROOT]
        do("build", command, WORK / "build.log", 300, {})
    (wheel,) = dist.glob("*.whl")
    return wheel


# --- what is printed -------------------------------------------------------------------------------------------------


def table_of(results: Iterable[Result], missing: Iterable[Cell]) -> str:
    """All cells as a Markdown table, those without an interpreter too."""
    rows = []
    for result in results:
        passed = f"{result.passed}, {result.failed} failed" if result.failed else str(result.passed)
        if result.faults and not result.failed and not result.passed:
            passed = "failed"
        counts = [passed, result.skipped, result.examples, f"{result.seconds:.0f}"]
        rows.append([result.cell.name, result.airflow, result.python, *counts])
    rows += [[cell.name, "", "", f"not run: no python{cell.python} was found", "", "", ""] for cell in missing]
    return table(["cell", "Airflow", "Python", "tests passed", "skipped", "examples", "seconds"], rows)


def main(given: Sequence[str] | None = None) -> int:
    """Run the cells; the exit status: 0, 1 if something failed, 2 if what was asked for is not there."""
    parser = argparse.ArgumentParser(prog="dev/matrix.py", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "cells", nargs="*", help="such as 3.0-py3.11, or lowest, between, newest, next; all if none is named"
    )
    parser.add_argument("--no-examples", action="store_true", help="run the tests, and not the examples")
    parser.add_argument("--tests", nargs="+", default=[], help="such as tests/ui; all if none is named")
    parser.add_argument("--python", action="append", default=[], help="an interpreter; repeatable")
    parser.add_argument("--list", action="store_true", help="say which cells there are, and run none")
    arguments = parser.parse_args(given)
    found = find_pythons(arguments.python)
    try:
        cells = chosen_cells(arguments.cells, found)
    except ValueError as error:
        parser.error(str(error))
    missing = [cell for cell in cells if cell.python not in found]
    for python in sorted({cell.python for cell in missing}, key=by_number):
        print(
            f"No python{python} was found. Put it on the PATH, or name it: make matrix PYTHONS=/path/to/python{python}",
            file=sys.stderr,
        )
    if arguments.list:
        print("\n".join(f"{cell.name}  {found.get(cell.python, 'no interpreter')}" for cell in cells))
        return 0
    if arguments.cells and missing:
        return 2
    if not cells:
        print("No Airflow is coming: the pins name no pre-release. There is nothing to do.")
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel()
    results = [
        CellEnvironment(cell, found[cell.python], wheel).run(arguments.tests, with_examples=not arguments.no_examples)
        for cell in cells
        if cell not in missing
    ]
    print(f"\n{table_of(results, missing)}\n")
    return status_of_cells(results)


def status_of_cells(results: Iterable[Result]) -> int:
    """Print each fault; the exit status: 1 if there is one with an Airflow that is released."""
    wrong = []
    for result in results:
        lines = [f"{result.cell.name}: {fault.partition(chr(10))[0]}" for fault in result.faults]
        if is_pre_release(result.cell.version):
            excuse = f" (counts from the release on: {result.cell.version} is a pre-release)"
            status_of(line + excuse for line in lines)
        else:
            wrong += lines
    return status_of(wrong)


if __name__ == "__main__":
    run_command(main)
