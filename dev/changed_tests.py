"""`make check`: run the tests of what was changed since the branch left `main`.

A test belongs to a changed module if its file is named after the module: `runs/tracker.py` has
`tests/runs/test_tracker.py`, and `cli/probe.py` has `tests/test_cli_probe.py`. A module without such a file has the
tests that import it. `BY_FOLDER` says which tests read files that are no modules. `make test` runs everything.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from command import ROOT, CommandError, run_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: By the beginning of a changed file's path, the tests that read such files.
BY_FOLDER = {
    "docs/": ["tests/test_docs.py"],
    "mkdocs.yml": ["tests/test_docs.py"],
    "README.md": ["tests/test_docs.py", "tests/test_package.py"],
    "CONTRIBUTING.md": ["tests/test_project.py"],
    "Makefile": ["tests/test_project.py"],
    "pyproject.toml": ["tests/test_project.py", "tests/test_package.py"],
    ".ci/": ["tests/test_project.py"],
    ".github/": ["tests/test_project.py"],
    "example_dags/": ["tests/test_package.py"],
    "constraints/": ["tests/test_matrix.py"],
}


def related_tests(changed: str, tests: Mapping[str, str]) -> set[str]:
    """The test files that belong to a changed file.

    Args:
        changed: the path of the file in the repository.
        tests: by its path, the text of each test file there is.
    """
    if changed in tests:
        return {changed}
    found = {test for start, named in BY_FOLDER.items() if changed.startswith(start) for test in named}
    path = PurePosixPath(changed)
    if path.suffix != ".py":
        return found
    names = {f"test_{path.stem}.py", f"test_{path.parent.name}_{path.stem}.py"}
    named_after = {test for test in tests if PurePosixPath(test).name in names}
    return found | (named_after or {test for test, text in tests.items() if _imports(text, path)})


def _imports(text: str, path: PurePosixPath) -> bool:
    """Whether a test's text imports a module of the package, or a module of `dev/` or `tests/support/`."""
    if path.parts[0] == "airflow_provider_agents":
        module, room = ".".join(path.with_suffix("").parts), ".".join(path.parent.parts)
        return f"{module} import" in text or f"{room} import {path.stem}" in text
    return f"from {path.stem} import" in text


def changed_files() -> list[str]:
    """The paths that differ from where the branch left `main`, new files among them.

    Raises:
        CommandError: this is no Git repository.
    """
    # Outside of a repository, `git diff` explains its options rather than what is wrong.
    _git("rev-parse", "--git-dir")
    base = _git("merge-base", "HEAD", "main", or_else="HEAD").strip()
    return [*_git("diff", "--name-only", base).split(), *_git("ls-files", "--others", "--exclude-standard").split()]


def _git(*arguments: str, or_else: str | None = None) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    if or_else is None:
        why = done.stderr.partition("\n")[0].removeprefix("fatal: ")
        raise CommandError(f'Git cannot say what was changed ("{why}"): run make unit instead.')
    return or_else


def chosen(changed: Iterable[str]) -> list[str]:
    """The test files of all changed files, in order."""
    tests = {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py")}
    # A system test takes minutes; `make system` runs it.
    tests = {test: text for test, text in tests.items() if not test.startswith("tests/system/")}
    return sorted({test for file in changed for test in related_tests(file, tests)})


def main() -> int:
    """Run the tests; the exit status of pytest, 0 if there are none, or 2 if Git cannot say what was changed."""
    try:
        changed = changed_files()
    except CommandError as error:
        print(error, file=sys.stderr)
        return 2
    tests = chosen(changed)
    if not tests:
        print("No test belongs to what was changed.")
        return 0
    print(f"The tests of what was changed: {' '.join(tests)}")
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", *tests], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    run_command(main)
