"""Write constraints/airflow-X.Y.txt: every version of a cell of the matrix, as it was when that Airflow came out.

    python dev/pins.py 3.0.6 2025-08-30

A pre-release such as 3.4.0b2 makes the cell `next`, and 3.4.0 in its place a cell like the others.

The day is the one after the release: what Airflow's own users have is of that day, not of today. Only what is ours, and
the tools of the tests, are as new as can be. Needs uv, and asks the registry that uv is set up for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict

from command import ROOT
from matrix import COMPAT, IMPOSSIBLE, PINS, by_number, is_pre_release, pythons


def compiled(python: str, requirements: list[str], *options: str) -> dict[str, str]:
    """The version of each distribution that the requirements lead to."""
    done = subprocess.run(
        [
            "uv", "pip", "compile", "--quiet", "--python-version", python, "--no-annotate", "--no-header",
            "--no-emit-package", "airflow-provider-agents", *options, "-",
        ],
        input="\n".join(requirements), cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    pairs = (line.partition("==") for line in done.stdout.splitlines() if "==" in line)
    return {name: version for name, _, version in pairs}


def pins_of(airflow: str, day: str, python: str) -> dict[str, str]:
    """What is installed beside an Airflow on a Python."""
    ours = f"airflow-provider-agents @ {ROOT.as_uri()}"
    core = [f"apache-airflow=={airflow}"]
    if is_pre_release(airflow):
        # uv takes a pre-release only where one is asked for; Airflow itself says which one of its parts.
        core += [f"apache-airflow-core=={airflow}", "apache-airflow-task-sdk>=1.0.0b1"]
    then = compiled(
        python,
        [*core, "apache-airflow-providers-standard", ours.replace(" @", "[simulator] @")],
        *("--exclude-newer", day, "--exclude-newer-package", f"{COMPAT}=false"),
    )
    # Older ones do not know the metadata of a wheel that is built today.
    then.pop("packaging", None)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(f"{name}=={version}" for name, version in then.items()))
        file.flush()
        return compiled(python, [*core, ours.replace(" @", "[dev] @")], "-c", file.name)


def lines_of(pins: dict[str, dict[str, str]]) -> list[str]:
    """One line for each version, with a marker where it is not that of all Pythons.

    Args:
        pins: by Python, the version of each distribution.
    """
    users: dict[tuple[str, str], list[str]] = defaultdict(list)
    for python, versions in pins.items():
        for name, version in versions.items():
            users[name, version].append(python)
    lines = []
    for (name, version), where in users.items():
        of_all = len(where) == len(pins)
        marker = " or ".join(f"python_version == '{python}'" for python in sorted(where, key=by_number))
        lines.append(f"{name}=={version}" if of_all else f"{name}=={version} ; {marker}")
    return sorted(lines, key=str.lower)


def main(airflow: str, day: str) -> int:
    """Write the file; the exit status."""
    minor = airflow.rpartition(".")[0]
    possible = [python for python in pythons() if (minor, python) not in IMPOSSIBLE]
    lines = lines_of({python: pins_of(airflow, day, python) for python in possible})
    file = PINS / f"airflow-{minor}.txt"
    file.write_text("\n".join(lines) + "\n")
    print(f"{file.relative_to(ROOT)}: {len(lines)} lines, for Python {', '.join(possible)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
