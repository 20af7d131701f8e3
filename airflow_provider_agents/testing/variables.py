"""The Airflow Variables that hold copies of records, without a database."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Copies(dict[str, str]):
    """The copies by the keys of their Variables."""

    def read(self, key: str) -> str | None:
        """The value of a Variable; None if there is none."""
        return self.get(key)

    def list(self, prefix: str) -> list[str]:
        """The keys that begin with a prefix."""
        return [key for key in self if key.startswith(prefix)]

    def write(self, key: str, text: str, description: str | None) -> None:  # noqa: ARG002 - for those who look at it
        """Make or change a Variable."""
        self[key] = text

    def delete(self, key: str) -> None:
        """Delete a Variable, if it is there."""
        self.pop(key, None)


@contextlib.contextmanager
def copies_kept_in(copies: Copies) -> Iterator[None]:
    """Keep the copies of records here rather than in Airflow's database. Every other Variable is Airflow's."""
    import pytest
    from airflow.sdk import Variable

    from airflow_provider_agents.runs.copies import PREFIX

    # Airflow has `keys` from 3.3 on.
    names = ("get", "set", "delete", "keys")
    airflows: dict[str, Any] = {name: getattr(Variable, name, None) for name in names}

    def get(key: str, *arguments: Any, **named: Any) -> Any:
        if not key.startswith(PREFIX):
            return airflows["get"](key, *arguments, **named)
        text = copies.read(key)
        return text if text is not None else named["default"]

    def set_(key: str, value: Any, description: str | None = None, **named: Any) -> None:
        if key.startswith(PREFIX):
            copies.write(key, value, description)
        else:
            airflows["set"](key, value, description, **named)

    def delete(key: str) -> None:
        (copies.delete if key.startswith(PREFIX) else airflows["delete"])(key)

    def keys(prefix: str | None = None) -> Any:
        if prefix is not None and prefix.startswith(PREFIX):
            return copies.list(prefix)
        return airflows["keys"](prefix)

    with pytest.MonkeyPatch.context() as patch:
        functions: tuple[Callable[..., Any], ...] = (get, set_, delete, keys)
        for name, function in zip(names, functions, strict=True):
            patch.setattr(Variable, name, staticmethod(function), raising=False)
        yield
