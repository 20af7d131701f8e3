"""Reads an Airflow connection into the client's settings, and explains what is wrong with it.

Errors are returned, not raised: Airflow's own objects show the password to anyone who prints the variables of a
traceback's frames. No message quotes a connection that cannot be read: any part of it can be the key.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import threading
from concurrent.futures import Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException

from airflow_provider_agents import _CONN_TYPE, _EXTRAS
from airflow_provider_agents.api.errors import (
    InvalidConnectionError,
    MissingConnectionError,
    one_line,
    without_frames,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from airflow.providers.common.compat.sdk import Connection

    # Imported where a connection is read: the settings load httpx, and parsing a DAG must stay cheap.
    from airflow_provider_agents.api.settings import Settings

#: Extras whose settings have another name.
_SETTINGS = {"timeout": "timeout_seconds"}
#: The prefix of the extras' names in older forms of Airflow.
_FORM_PREFIX = "extra__agents__"
#: The text fields of a connection in JSON; `port` and `extra` are the others.
_TEXT_FIELDS = ("conn_type", "description", "host", "login", "password", "schema")
_JSON_FORM = 'Write it like {"conn_type": "agents", "password": "KEY"}.'
_LARGEST_PORT = 65535
_UNNAMED = "a field that is not known"
#: Seconds until a worker gives up reading a connection. A secrets backend needs a few seconds, and may have no timeout.
LOOK_UP_SECONDS = 60.0


# --- reading it -----------------------------------------------------------------------------------------------------


def read_settings(
    conn_id: str, get_connection: Callable[[str], Connection], *, within_seconds: float = LOOK_UP_SECONDS
) -> Settings | InvalidConnectionError:
    """The settings of a connection, or the error. Never raises.

    Args:
        conn_id: the connection.
        get_connection: Airflow's function that reads it.
        within_seconds: when to give up.
    """
    try:
        connection = _within(within_seconds, lambda: get_connection(conn_id))
        return _settings_of(connection, connection.extra_dejson)
    except Exception as error:  # noqa: BLE001 - the frames of any error can hold the key
        return _to_connection_error(conn_id, error)


def _within(seconds: float, look_up: Callable[[], Connection]) -> Connection:
    """The result of `look_up`, which runs in its own thread: a secrets backend can hang.

    Raises:
        TimeoutError: `look_up` has not returned yet. Nothing can stop its thread.
        Exception: as raised by `look_up`.
    """
    result: Future[Connection] = Future()

    def run() -> None:
        try:
            result.set_result(look_up())
        except BaseException as error:  # noqa: BLE001 - raised where the result is read
            result.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), daemon=True).start()
    return result.result(seconds)


async def aread_settings(conn_id: str) -> Settings | InvalidConnectionError:
    """As `read_settings`, on an event loop."""
    try:
        connection = await get_async_connection(conn_id)
        return _settings_of(connection, await get_async_extra_dejson(connection))
    except Exception as error:  # noqa: BLE001 - as above
        return _to_connection_error(conn_id, error)


def _settings_of(connection: Connection, extras: object) -> Settings:
    from airflow import __version__ as airflow_version

    from airflow_provider_agents.api.settings import DEFAULT_BASE_URL, Settings, check_api_key, user_agent

    _check_type(connection)
    # Checked first: in a URI that is written wrongly, parts of the key are in the other fields.
    check_api_key(connection.password or "")
    if not isinstance(extras, dict) or not _is_json_object(connection.extra):
        raise InvalidConnectionError("The connection's extra is not a JSON object.")
    given = _given_extras(extras)
    unknown = [name for name in given if name not in _EXTRAS]
    _refuse_unknown([name for name in unknown if _similar(name, _EXTRAS)], may_be_shown=True)

    base_url = (connection.host or "").strip() or DEFAULT_BASE_URL
    if connection.port:
        base_url = _with_port(base_url, connection.port)
    if connection.schema:
        raise InvalidConnectionError(
            "The connection has a schema (in a URI: a path after the host), which is not used. Put a path into the "
            "host itself: the whole base URL, percent-encoded in a URI. A / in the key is percent-encoded, too."
        )

    settings = Settings(
        api_key=connection.password or "",
        base_url=base_url,
        user_agent=user_agent(f"airflow/{airflow_version}"),
        **{_SETTINGS.get(name, name): value for name, value in given.items() if name in _EXTRAS},
    )
    # Checked last: in a URI that is written wrongly, such a name is a part of the key, and another error says why.
    _refuse_unknown(unknown, may_be_shown=not any("@" in f"{name}{given[name]}" for name in unknown))
    return settings


def _check_type(connection: Connection) -> None:
    conn_type = connection.conn_type
    if conn_type and conn_type != _CONN_TYPE:
        # Without a password, the type can be the beginning of a key that was given alone.
        shown = f", {one_line(str(conn_type), 40)!r}" if connection.password else ""
        raise InvalidConnectionError(
            f"The connection has another type{shown}. Set its type to Agents: in a URI agents://:KEY@, in JSON "
            '"conn_type": "agents".'
        )


def _is_json_object(extra: str | None) -> bool:
    # Airflow reads an invalid extra as an empty one, and so would drop a proxy or a CA bundle.
    try:
        return not extra or isinstance(json.loads(extra), dict)
    except ValueError:
        return False


def _with_port(base_url: str, port: int) -> str:
    """The base URL with the connection's port."""
    if not 1 <= port <= _LARGEST_PORT:
        raise InvalidConnectionError(f"The connection's port must be from 1 to {_LARGEST_PORT}, got {port}.")
    try:
        url = urlsplit(base_url)
        own = url.port
    except ValueError:
        return base_url  # `Settings` refuses it with a better message
    if own is not None and own != port:
        raise InvalidConnectionError(
            f"The connection has the port {port}, and its base URL names the port {own}. Leave one of the two out."
        )
    return base_url if own is not None or not url.netloc else urlunsplit(url._replace(netloc=f"{url.netloc}:{port}"))


# --- the extra ------------------------------------------------------------------------------------------------------


def _given_extras(extras: dict[str, Any]) -> dict[str, Any]:
    """The fields of the extra that are set, under their plain names.

    A form saves null or an empty text for a field that the user did not fill in. Names that begin with an underscore
    are notes of people and other tools.
    """
    given: dict[str, Any] = {}
    for full_name, value in extras.items():
        name = full_name.removeprefix(_FORM_PREFIX)
        if value is None or name.startswith("_") or (value == "" and name in _EXTRAS):
            continue
        if name in _EXTRAS and given.get(name, value) != value:
            raise InvalidConnectionError(
                f"The connection's extra has both {name} and {_FORM_PREFIX}{name}, and they differ. Remove one of them."
            )
        given[name] = value
    return given


def _refuse_unknown(names: list[str], *, may_be_shown: bool) -> None:
    if names:
        named = _named(names[0], _EXTRAS) if may_be_shown else _UNNAMED
        raise InvalidConnectionError(
            f"The connection's extra has {named}. Its fields are {', '.join(_EXTRAS)}; "
            "a name that begins with an underscore is left alone."
        )


def _similar(name: str, known: Collection[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), known, 1)), None)


def _named(name: str, known: Collection[str]) -> str:
    """An unknown field for a message; without its name if that can be a part of a key."""
    similar = _similar(name, known)
    if similar is not None:
        return f"a field {one_line(name, 40)!r} that is not known (did you mean {similar!r}?)"
    return f"a field {name!r} that is not known" if re.fullmatch(r"[a-z_]{3,40}", name) else _UNNAMED


# --- errors ---------------------------------------------------------------------------------------------------------


def _to_connection_error(conn_id: str, error: Exception) -> InvalidConnectionError:
    if isinstance(error, InvalidConnectionError):
        return without_frames(error)
    if not isinstance(error, AirflowException | ValueError):
        return MissingConnectionError(
            f"Airflow failed to look up the connection {conn_id!r} ({type(error).__name__}). "
            "Check the secrets backend, and that this task is allowed to read the connection."
        )
    in_environment = _error_in_environment(conn_id)
    if in_environment is not None:
        return in_environment
    if isinstance(error, AirflowNotFoundException):
        return MissingConnectionError(
            f"The connection {conn_id!r} does not exist, or cannot be read. Create it under Admin > Connections with "
            f"the type Agents, or set AIRFLOW_CONN_{conn_id.upper()}='agents://:KEY@'."
        )
    # Airflow's own message would quote the whole connection.
    return InvalidConnectionError(
        f"The connection {conn_id!r} cannot be read. Check its form: 'agents://:KEY@' with the key percent-encoded, "
        'or JSON such as {"conn_type": "agents", "password": "KEY"}.'
    )


def _error_in_environment(conn_id: str) -> InvalidConnectionError | None:
    """The error in the environment variable of a connection that Airflow did not find; None if the variable is right.

    Airflow ignores a variable that it cannot read, and reports that the connection does not exist. It also reports so
    while its API server restarts, so a variable is only blamed for an error that can be seen in it.
    """
    variable = f"AIRFLOW_CONN_{conn_id.upper()}"
    text = os.environ.get(variable, "").strip()
    if not text:
        other = next((name for name in os.environ if name.upper() == variable and name != variable), None)
        if other is None:
            return None
        return InvalidConnectionError(
            f"The connection {conn_id!r} does not exist. The environment variable {other} is not read, because "
            f"Airflow looks for upper case. Rename it to {variable}."
        )
    reason = _error_in_json(text) if text.startswith("{") else _error_in_uri(text)
    if reason is None:
        return None
    return InvalidConnectionError(
        f"The connection {conn_id!r} cannot be read from the environment variable {variable}: {reason}"
    )


def _error_in_json(text: str) -> str | None:
    known = (*_TEXT_FIELDS, "port", "extra")
    reason = None
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        # Not the error's message, which can quote a character of the key.
        reason = f"it is not JSON at line {error.lineno}, column {error.colno}"
    except RecursionError:
        reason = "it is not JSON"
    else:
        wrong = [name for name in _TEXT_FIELDS if not isinstance(fields.get(name), str | None)]
        unknown = [name for name in fields if name not in known]
        if unknown:
            reason = f"it has {_named(unknown[0], known)}"
        elif wrong:
            reason = f"its {wrong[0]} is not text"
        elif not re.fullmatch(r"(None)?|-?\d+", str(fields.get("port")).strip()):
            reason = "its port is not a number"
    return f"{reason}. {_JSON_FORM}" if reason is not None else None


def _error_in_uri(text: str) -> str | None:
    # As Airflow reads it: the host can have its own scheme, before the user name.
    rest = text.partition("://")[2]
    before, _, nested = rest.partition("://")
    try:
        port, query = urlsplit(rest if nested else f"//{rest}").port, urlsplit(text).query
    except ValueError:
        port, query = -1, ""
    if port != -1 and "://" not in nested and not (nested and set(before) & set("@:")):
        # Airflow 3.0 also ignores a variable with an invalid extra.
        extras = parse_qs(query).get("__extra__", ["{}"])
        return None if _is_json_object(extras[0]) else "its __extra__ is not a JSON object, percent-encoded."
    return (
        "it is not a URI. In the key and in the host, percent-encode what URIs reserve, such as / ? # @ : [ ] %; "
        'a port is a number. Or write it as JSON, which needs no encoding: {"conn_type": "agents", "password": "KEY"}.'
    )
