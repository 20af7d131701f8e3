"""Airflow's metadata database as `make cluster-test` reads it: past Airflow, whatever of it is dead just then."""

from __future__ import annotations

from typing import Any

import psycopg2

#: The start of a query. `tasks (id, dag_id, run_id, task_id, map_index, state)` is the current try of each task
#: instance, and `xcoms (id, key, value)` are the XComs of the same ids. Airflow 3.4 has renamed its tables and columns.
_TABLES_BEFORE_34 = """
    with tasks as (select id, dag_id, run_id, task_id, map_index, state from task_instance),
    xcoms as (select tasks.id, xcom.key, xcom.value from xcom join tasks using (dag_id, run_id, task_id, map_index))
"""
_TABLES = """
    with tasks as (select id, dag_id, run_id, task_id, region_index as map_index, state from task_instance
        where working_set),
    xcoms as (select task_instance_id as id, key, value from xcom_v2)
"""


class Database:
    """The metadata database.

    Args:
        port: of PostgreSQL.
        release: of Airflow, as its major and its minor number.
    """

    def __init__(self, port: int, release: tuple[int, int]) -> None:
        self._tables = _TABLES if release >= (3, 4) else _TABLES_BEFORE_34
        self._address = {"host": "127.0.0.1", "port": port, "user": "airflow", "dbname": "postgres"}
        self._connection: Any = None

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query.

        Raises:
            psycopg2.OperationalError: PostgreSQL is away.
        """
        try:
            if self._connection is None:
                self._connection = psycopg2.connect(**self._address, connect_timeout=5)
                self._connection.autocommit = True
            with self._connection.cursor() as cursor:
                cursor.execute(self._tables + query, values)
                rows: list[tuple[Any, ...]] = cursor.fetchall()
                return rows
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            self._connection = None
            raise psycopg2.OperationalError(str(error)) from error
