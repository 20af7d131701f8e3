"""An Airflow metadata database of its own, empty, in a file."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def metadata_database_in(folder: Path) -> Iterator[None]:
    """Airflow's models use it for the length of a block.

    Args:
        folder: an empty one.
    """
    from airflow import settings
    from airflow.models import import_all_models
    from airflow.models.base import Base

    url = f"sqlite:///{folder / 'airflow.db'}"
    with mock.patch.dict(os.environ, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url}):
        settings.dispose_orm(do_log=False)
        settings.configure_vars()
        settings.configure_orm()
        import_all_models()
        Base.metadata.create_all(settings.engine)
        yield
        settings.dispose_orm(do_log=False)
    settings.configure_vars()
    settings.configure_orm()
