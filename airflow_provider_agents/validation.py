"""Checks of what users write: every argument of every public class, by one mechanism.

A class lists its arguments with one check each (`Arguments`). The list is applied twice: when the DAG is parsed, to
the values that are known then, and again before anything is paid for. Templates, mapped values and cluster policies
come in between. A wrong value is an `InvalidArgumentError`, which no retry can fix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.endpoints import check_agent_id
from airflow_provider_agents.api.errors import InvalidArgumentError, shown
from airflow_provider_agents.budget import Budget
from airflow_provider_agents.runs.copies import PREFIX
from airflow_provider_agents.runs.selector import Check, read_moment
from airflow_provider_agents.runs.tracker import WaitPolicy
from airflow_provider_agents.version_compat import TRIGGERS_END_TASKS
from airflow_provider_agents.versioned_json import MAX_SECONDS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

    from airflow_provider_agents.api.settings import Settings

#: Airflow drops the id of a connection that does not match this (its `sanitize_conn_id`).
_CONN_ID = re.compile(r"[\w#!()\-.:/\\]{1,200}")
#: How Jinja marks its parts. A text with one of them is only known once it is rendered.
_TEMPLATE_MARKS = ("{{", "{%", "{#")
#: A length of time as people write it. Airflow's arguments are seconds or a `timedelta`.
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\w*\s*", re.IGNORECASE)
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
#: What a template must not use where the triggerer renders it: Airflow never answers these requests there, so that the
#: task would hang until its deferral timeout.
_HANGS_IN_TRIGGERER = ("xcom_pull", "task_state_store")

#: What is wrong with the arguments together, as a sentence; None if nothing is.
Relation = Callable[[Any], str | None]


def known_later(value: object) -> bool:
    """Whether a value is only known when the task runs: a template, an XCom, a callable, or a collection of these."""
    match value:
        case str():
            return any(mark in value for mark in _TEMPLATE_MARKS)
        case dict():
            return any(known_later(one) for one in value.values())
        case list() | tuple():
            return any(known_later(one) for one in value)
    return callable(value) or callable(getattr(value, "resolve", None))


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of one public class.

    Attributes:
        checks: one for each argument, by its name.
        relations: what has to hold between several of them.
        identifiers: those that are ids, so that a rendered number is text again.
    """

    checks: Mapping[str, Check]
    relations: Sequence[Relation] = ()
    identifiers: frozenset[str] = frozenset({"agent_id", "agents_conn_id", "event_id"})

    def check(self, owner: Any, *, parsing: bool = False, templated: Sequence[str] | None = None) -> Collection[str]:
        """Check the arguments, which are attributes of their owner, and put the checked values in their place.

        Args:
            owner: a task, a trigger or a hook.
            parsing: leave out values of template fields that are only known when the task runs.
            templated: the template fields; None for those of the owner.

        Returns:
            The arguments that were left out.

        Raises:
            InvalidArgumentError: naming the argument, the owner, the value and what to write instead.
        """
        fields = templated if templated is not None else getattr(owner, "template_fields", ())
        is_unclear = _has_own_delimiters(owner)
        # A subclass may have template fields of its own, which it sets after this.
        own = self.checks.keys() & fields if parsing else ()
        later = {name for name in own if is_unclear or known_later(getattr(owner, name))}
        for name, check in self.checks.items():
            if name in later:
                continue
            value = getattr(owner, name)
            if not parsing and name in self.identifiers and type(value) is int and value >= 0:
                # With `render_template_as_native_obj` the text "12345" arrives as a number.
                value = str(value)
            try:
                checked = check(value)
            except ValueError as error:
                raise InvalidArgumentError(f"{name} of {_name_of(owner)} {error}") from None
            if checked is not getattr(owner, name):
                setattr(owner, name, checked)
        for relation in self.relations:
            fault = relation(owner)
            if fault is not None:
                raise InvalidArgumentError(f"{fault} (in {_name_of(owner)})")
        return later


def _has_own_delimiters(owner: Any) -> bool:
    """Whether the DAG marks its templates in a way of its own, so that a template cannot be told from a text."""
    dag = owner.dag if getattr(owner, "has_dag", lambda: False)() else None
    return bool(getattr(dag, "jinja_environment_kwargs", None))


def _name_of(owner: Any) -> str:
    task_id = getattr(owner, "task_id", None)
    return f"task {task_id!r}" if isinstance(task_id, str) else type(owner).__name__


# --- one value ------------------------------------------------------------------------------------------------------


def optional(check: Check) -> Check:
    """The same check, which also takes None."""
    return lambda value: None if value is None else check(value)


def switch(value: object) -> bool:
    """True or False. Texts are refused: `"False"` would count as true."""
    if isinstance(value, bool):
        return value
    spelled = value.strip().title() if isinstance(value, str) else ""
    hint = f" Write {spelled} without quotes." if spelled in {"True", "False"} else ""
    raise ValueError(f"must be True or False, got {shown(value)}.{hint}")


def seconds(value: object) -> float:
    """A number of seconds or a `timedelta`: above 0, a hundred years at most."""
    return _seconds(value, lambda number: 0 < number <= MAX_SECONDS, "above 0")


def seconds_from(least: float) -> Check:
    """The same, from `least` on."""
    return lambda value: _seconds(value, lambda number: least <= number <= MAX_SECONDS, f"from {least:g} on")


def _seconds(value: object, in_range: Callable[[float], bool], words: str) -> float:
    number = value.total_seconds() if isinstance(value, timedelta) else value
    # The range also refuses NaN, which is in none.
    if isinstance(number, bool) or not isinstance(number, int | float) or not in_range(number):
        hint = ""
        if isinstance(value, str) and (found := _DURATION.fullmatch(value)):
            hint = f" Write {float(found[1]) * _UNIT_SECONDS[found[2].lower()]:g} without quotes."
        raise ValueError(
            f"must be a number of seconds or a timedelta, {words} and at most a hundred years, "
            f"got {shown(value)}.{hint}"
        )
    return float(number)


def one_of(*choices: str) -> Check:
    """One of some texts."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, got {shown(value)}.")
        return str(value)

    return check


def agent_id(value: object) -> str:
    """The id of an agent."""
    try:
        return check_agent_id(value)
    except InvalidArgumentError as error:
        raise ValueError(str(error).removeprefix("agent_id ")) from None


def connection_id(value: object) -> str:
    """The id of an Airflow connection."""
    if not isinstance(value, str) or not _CONN_ID.fullmatch(value):
        raise ValueError(
            f"must be the id of an Airflow connection (letters, digits and any of _-.:/#!()\\, at most 200), "
            f"got {shown(value)}."
        )
    return value


def copy_key(value: object) -> str:
    """The Variable of a record's copy. A trigger deletes that Variable, so it may be no other."""
    if not isinstance(value, str) or not value.startswith(PREFIX):
        raise ValueError(f"must be the key of a record's copy ({PREFIX}...), got {shown(value)}.")
    return value


def deadline(value: object) -> str:
    """A moment with a time zone as ISO 8601 text, as a trigger carries it."""
    if not isinstance(value, str):
        raise ValueError(f"must be ISO 8601 text, got {shown(value)}.")  # noqa: TRY004 - every check raises the same
    read_moment(value)
    return value


def budget(value: object) -> Budget | None:
    """A `Budget`, which has checked its own values, or None."""
    if value is not None and not isinstance(value, Budget):
        raise ValueError(f"must be a Budget, such as Budget(runs=20, per='day'), got {shown(value)}.")
    return value


def text(value: object) -> str:
    """Words."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {shown(value)}.")  # noqa: TRY004 - every check raises the same
    return value


def list_of(*choices: str) -> Check:
    """Some of some texts, in any order."""

    def check(value: object) -> list[str]:
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one in choices for one in value):
            raise ValueError(f"must be a list of {', '.join(choices)}, got {shown(value)}.")
        return list(value)

    return check


# --- several values together ------------------------------------------------------------------------------------------


#: What a platform is like: arguments whose default is the connection's value, by their names here, there and in
#: `WaitPolicy`.
PLATFORM: dict[str, Check] = {
    "settle": optional(seconds),
    "appear_within": optional(seconds),
    "exclusive": optional(switch),
}


def lost_after_settling(policy: Any) -> str | None:
    """`appear_within` is at least `settle`, where both are known."""
    if policy.settle is None or policy.appear_within is None or policy.appear_within >= policy.settle:
        return None
    return (
        f"appear_within ({policy.appear_within:g} s) must be at least settle ({policy.settle:g} s): until a run has "
        "settled, nothing can be said about it."
    )


def ends_after_settling(owner: Any, policy: Any = None) -> str | None:
    """A task waits at least for `settle`, where that is known, so that it can have a verdict.

    Args:
        owner: the task.
        policy: how the task waits; None for what its own arguments say.
    """
    policy = policy if policy is not None else owner
    if policy.settle is None or policy.exclusive:
        return None
    limits = {"timeout": owner.timeout, "execution_timeout": _seconds_of(getattr(owner, "execution_timeout", None))}
    for name, limit in limits.items():
        if limit is not None and limit < policy.settle:
            return (
                f"{name} ({limit:g} s) must be at least settle ({policy.settle:g} s): before that there is no verdict, "
                f"and the task would always fail. Raise {name}, or lower settle."
            )
    return None


def verdict_after_settling(task: Any) -> str | None:
    """A task that waits for its run waits at least for `settle`."""
    return ends_after_settling(task) if task.wait_for_completion else None


def ends_where_it_waits(task: Any) -> str | None:
    """A trigger can only end a task that waits in the triggerer."""
    if not task.end_from_trigger or (task.wait_for_completion and task.deferrable):
        return None
    return "end_from_trigger needs a task that waits in the triggerer: leave out wait_for_completion and deferrable."


def policy_of(owner: Any, settings: Settings | None = None, *, needs_verdict: bool) -> WaitPolicy:
    """How a task or a trigger waits: its own arguments, or else the connection's values, or else the defaults.

    Args:
        owner: a task, a trigger or a connection. Its values are checked already.
        settings: the owner's connection; None if the owner has all values itself, or is a connection.
        needs_verdict: whether the owner's time limits must leave time for a verdict.

    Raises:
        InvalidArgumentError: the values do not fit together.
    """
    sources = (owner,) if settings is None else (settings, owner)
    policy = WaitPolicy(
        **{
            name: value
            for source in sources
            for name in (*PLATFORM, "on_ambiguous")
            if (value := getattr(source, name, None)) is not None
        }
    )
    fault = lost_after_settling(policy) or (ends_after_settling(owner, policy) if needs_verdict else None)
    if fault is not None:
        raise InvalidArgumentError(
            f"{fault} What a task leaves out is an extra of its connection, or the default. (in {_name_of(owner)})"
        )
    return policy


def in_seconds(value: object) -> Any:
    """A `timedelta` in seconds; anything else as it is.

    A mapped task is made again on each worker, and a resumed one checks its arguments no second time.
    """
    return value.total_seconds() if isinstance(value, timedelta) else value


def _seconds_of(value: timedelta | None) -> float | None:
    return value.total_seconds() if isinstance(value, timedelta) else None


def checked_switch(owner: Any, name: str, value: object) -> bool:
    """An argument that is no attribute of its owner, checked as a switch.

    Raises:
        InvalidArgumentError: it is none.
    """
    try:
        return switch(value)
    except ValueError as error:
        raise InvalidArgumentError(f"{name} of {_name_of(owner)} {error}") from None


# --- a task that ends, or starts, in its trigger ----------------------------------------------------------------------


def made_from_mapped(task: BaseOperator) -> bool:
    """Whether Airflow makes this task from a mapped one, on a worker.

    An error there would be retried, so such a task checks its arguments only when it is executed.
    """
    return bool(getattr(task, "_BaseOperator__from_mapped", False))


def refuse_trigger_end(
    task: BaseOperator, name: str, *, overridden: Sequence[str], lost: Callable[..., str | None] | None = None
) -> None:
    """Refuse to end a task from its trigger where that cannot be done, or would lose something.

    Args:
        task: as its DAG has made it.
        name: the argument that asks for it.
        overridden: methods that would not be called.
        lost: looks for more that would be lost.

    Raises:
        InvalidArgumentError: saying why.
    """
    if not TRIGGERS_END_TASKS:
        raise InvalidArgumentError(f"{name} of {_name_of(task)} needs Airflow 3.3 or newer. Leave it out.")
    for find in (lost_at_trigger_end, lost):
        words = find(task, overridden=overridden) if find is not None else None
        if words is not None:
            raise InvalidArgumentError(f"{name} of {_name_of(task)} would lose {words}. Leave one of the two out.")


def refuse_trigger_start(sensor: Any) -> None:
    """Refuse to start a sensor in its trigger where that cannot be done, or would lose something.

    Raises:
        InvalidArgumentError: saying why.
    """
    name = f"start_from_trigger of {_name_of(sensor)}"
    if not sensor.deferrable:
        raise InvalidArgumentError(f"{name} needs a deferrable sensor. Leave out mode and deferrable.")
    refuse_trigger_end(
        sensor,
        "start_from_trigger",
        overridden=("execute", "poke", "execute_complete"),
        lost=_lost_at_trigger_start,
    )
    for field in sensor.template_fields:
        value = getattr(sensor, field)
        if not isinstance(value, str | dict | datetime | None):
            raise InvalidArgumentError(
                f"{name} needs a {field} that is known when the DAG is parsed, or a template. Only a worker can read "
                "an XCom: leave one of the two out."
            )
        hangs = next((word for word in _HANGS_IN_TRIGGERER if isinstance(value, str) and word in value), None)
        if hangs is not None:
            raise InvalidArgumentError(
                f"{name} would never start: the template of {field} uses {hangs}, and Airflow does not answer that in "
                "the triggerer. Leave one of the two out."
            )


def lost_at_trigger_end(task: BaseOperator, *, overridden: Sequence[str]) -> str | None:
    """What a task would lose if its trigger ended it, as far as the task itself shows it; None if nothing.

    Args:
        task: as its DAG has made it.
        overridden: methods that would not be called, so that a subclass must not bring its own.
    """
    given: tuple[tuple[str, str], ...] = (
        ("outlets", "the asset events of its outlets"),
        ("on_success_callback", "its on_success_callback"),
        ("multiple_outputs", "its multiple_outputs"),
        ("_post_execute_hook", "its post_execute"),
    )
    return _lost(task, given, (*overridden, "post_execute"))


def _lost_at_trigger_start(task: BaseOperator, *, overridden: Sequence[str]) -> str | None:
    """What a task would lose in addition if it also started in its trigger."""
    given = (("_pre_execute_hook", "its pre_execute"), ("on_execute_callback", "its on_execute_callback"))
    return _lost(task, given, (*overridden, "pre_execute"))


def _lost(task: BaseOperator, given: Sequence[tuple[str, str]], methods: Sequence[str]) -> str | None:
    for name, words in given:
        if getattr(task, name, None):
            return words
    for name in methods:
        owner = next(one for one in type(task).__mro__ if name in vars(one))
        if not owner.__module__.startswith(("airflow.", "airflow_provider_agents.")):
            return f"the {name} of {owner.__name__}"
    return None
