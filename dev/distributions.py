"""`make dist`: build the sdist, the wheel from it, and the list of what an installation contains (the SBOM).

With a tag, such as v0.1.0, this is a release. The command then refuses what users must not get: a version that is not
that of the tag, a changelog without the version, a placeholder in the metadata.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from command import ROOT, CommandError, run_command, status_of

DIST, CACHE = ROOT / "dist", ROOT / ".cache"
SBOM = CACHE / "sbom.json"
#: No name under it belongs to anybody, so it marks what the owner must fill in (RFC 2606).
PLACEHOLDER = re.compile(r"[\w./:@-]+\.example\b[\w./-]*")


def wrong_with(tag: str, version: str, changelog: str, project: str) -> list[str]:
    """Why a tag must not become a release; nothing if it may.

    Args:
        tag: such as v0.1.0.
        version: that of the package.
        changelog: the text of CHANGELOG.md.
        project: the text of pyproject.toml.
    """
    wrong = []
    if tag != f"v{version}":
        wrong.append(f"The tag is {tag}, and the package's version is {version}. Change __version__ or the tag.")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        wrong.append(f"CHANGELOG.md has no heading with a date for the version. Add: ## [{version}] - YYYY-MM-DD")
    wrong += [f"pyproject.toml still has the placeholder {name}." for name in PLACEHOLDER.findall(project)]
    return wrong


def version_of_the_package() -> str:
    """`__version__`, without importing the package."""
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "airflow_provider_agents/__init__.py").read_text("utf-8"))
    if found is None:
        raise CommandError("airflow_provider_agents/__init__.py sets no __version__.")
    return found[1]


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command of the build.

    Raises:
        CommandError: it failed; with the end of its output.
    """
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandError(f"{Path(command[0]).name} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def build() -> list[Path]:
    """The sdist and the wheel in `dist/`. The wheel is built from the sdist, so the sdist is known to be complete."""
    shutil.rmtree(DIST, ignore_errors=True)
    hatchling = (sys.executable, "-m", "hatchling", "build", "--directory", DIST, "--target")
    run(*hatchling, "sdist")
    (sdist,) = DIST.glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="sdist-", dir=CACHE) as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = Path(folder).iterdir()
        run(*hatchling, "wheel", cwd=unpacked)
    (wheel,) = DIST.glob("*.whl")
    return [sdist, wheel]


def write_sbom(wheel: Path, constraints: Path) -> int:
    """Install the wheel at the versions that it was tried with, and write what was installed as CycloneDX.

    Returns:
        How many distributions that are.
    """
    with tempfile.TemporaryDirectory(prefix="installation-", dir=CACHE) as folder:
        uv, python = shutil.which("uv"), Path(folder) / "bin" / "python"
        venv.create(folder, symlinks=True, with_pip=uv is None)
        pip = (uv, "pip", "install", "--python", python) if uv else (python, "-m", "pip", "install")
        run(*pip, "--quiet", "-c", constraints, wheel)
        tool = (Path(sys.executable).parent / "cyclonedx-py", "environment", "--output-reproducible")
        run(*tool, "--output-format", "JSON", "--output-file", SBOM, python)
    return len(json.loads(SBOM.read_text("utf-8"))["components"])


def main() -> int:
    """Build everything; the exit status: 1 if the tag must not become a release."""
    tag = sys.argv[1] if len(sys.argv) > 1 else ""
    if tag:
        texts = ((ROOT / name).read_text("utf-8") for name in ("CHANGELOG.md", "pyproject.toml"))
        wrong = wrong_with(tag, version_of_the_package(), *texts)
        if wrong:
            return status_of(wrong)
    CACHE.mkdir(exist_ok=True)
    files = build()
    count = write_sbom(files[1], ROOT / "constraints" / "airflow-3.3.txt")
    for file in files:
        print(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(ROOT)}")
    print(f"{SBOM.relative_to(ROOT)}: {count} distributions")
    return 0


if __name__ == "__main__":
    run_command(main)
