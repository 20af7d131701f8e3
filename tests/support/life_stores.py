"""What Airflow keeps for a task: before each use of it, the process that uses it can be killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_agents.testing.variables import Copies

if TYPE_CHECKING:
    from datetime import timedelta

    from life_world import World
    from lives import Life


class WatchedStore:
    """A task state store before each use of which its process can be killed."""

    def __init__(self, world: World, life: Life) -> None:
        self._world, self._life = world, life

    def get(self, key: str, default: Any = None) -> Any:
        self._world.may_die(self._life, "read of the record")
        return self._life.store.get(key, default)

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        self._world.may_die(self._life, f"write of the record: {value['phase']}")
        self._life.store.set(key, value, retention=retention)


class WatchedCopies(Copies):
    """The copies of records. Before each use a process can be killed; the triggerer's writes can get lost."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def _use(self, what: str) -> Life | None:
        life = self._world.life
        if life is not None:
            self._world.may_die(life, f"{what} of the copy")
        return life

    def read(self, key: str) -> str | None:
        self._use("read")
        text = super().read(key)
        self._world.saw(f"read {text}")
        return text

    def list(self, prefix: str) -> list[str]:
        self._use("list")
        keys = super().list(prefix)
        self._world.saw(f"listed {keys}")
        return keys

    def write(self, key: str, text: str, description: str | None) -> None:
        if self._use("write") is None and not self._is_written():
            return
        super().write(key, text, description)

    def delete(self, key: str) -> None:
        self._use("delete")
        super().delete(key)

    def _is_written(self) -> bool:
        world = self._world
        if not world.faults_left or world.choose("triggerer: write of the copy", ["go on", "killed"]) == "go on":
            return True
        world.faults_left -= 1
        return False
