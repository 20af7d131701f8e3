"""Which connections there are, and what a user may see. Airflow's auth manager decides; it may ask a database."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity, DagDetails
from airflow.configuration import conf
from airflow.models.connection import Connection
from airflow.models.dag import DagModel
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_agents import _CONN_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser

_VARIABLE = "AIRFLOW_CONN_"


def agents_connections() -> list[str]:
    """The ids of all connections of the type Agents that Airflow can list.

    They are in the metadata database or in the environment. Those of a secrets backend cannot be listed, so
    `[agents] ui_connections` names them.
    """
    with create_session() as session:
        found = set(session.scalars(select(Connection.conn_id).where(Connection.conn_type == _CONN_TYPE)))
    for name, value in os.environ.items():
        if name.startswith(_VARIABLE) and _is_agents(value.strip()):
            found.add(name.removeprefix(_VARIABLE).lower())
    named = conf.get("agents", "ui_connections", fallback="") or ""
    found.update(filter(None, (part.strip() for part in named.split(","))))
    return sorted(found)


def _is_agents(text: str) -> bool:
    if not text.startswith("{"):
        return text.startswith(f"{_CONN_TYPE}:")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and fields.get("conn_type") == _CONN_TYPE


def may_read_connection(user: BaseUser, conn_id: str) -> bool:
    """Whether a user may read a connection, and so what its key can read."""
    team = Connection.get_team_name(conn_id) if _has_teams() else None
    return get_auth_manager().is_authorized_connection(
        method="GET", user=user, details=ConnectionDetails(conn_id=conn_id, team_name=team)
    )


def readable_dags(user: BaseUser, dag_ids: Iterable[str]) -> set[str]:
    """Those of some DAGs whose task instances a user may read."""
    has_teams = _has_teams()
    return {
        dag_id
        for dag_id in set(dag_ids)
        if get_auth_manager().is_authorized_dag(
            method="GET",
            user=user,
            access_entity=DagAccessEntity.TASK_INSTANCE,
            details=DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id) if has_teams else None),
        )
    }


def _has_teams() -> bool:
    return conf.getboolean("core", "multi_team", fallback=False)
