"""The plugin that adds *Browse > Agents* to Airflow's pages, if `[agents] ui` is set.

Every Airflow process loads this module, so it imports nothing heavy. The page itself is loaded at its first request.
"""

from __future__ import annotations

import logging
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

log = logging.getLogger(__name__)

#: Where the page is, below Airflow's base URL.
PREFIX = "/agents"
#: The oldest Airflow with the page. Before 3.1.1 the frame of a plugin's page is not logged in; 3.1.8 was tried.
OLDEST = (3, 1, 6)


class PageApp:
    """The page as an ASGI app that is made at its first request: it takes a second, and most processes never serve."""

    @cached_property
    def _app(self) -> Callable[..., Awaitable[None]]:
        from airflow_provider_agents.ui.app import create_app

        return create_app()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one request."""
        await self._app(scope, receive, send)


def is_supported(version: str) -> bool:
    """Whether an Airflow of this version has what the page needs."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3]) >= OLDEST


class AgentsPlugin(AirflowPlugin):
    """*Browse > Agents*. Airflow asks for the two lists where it serves its pages, and nowhere else."""

    name = "agents"

    @cached_property
    def _is_on(self) -> bool:
        from airflow import __version__
        from airflow.configuration import conf

        if not conf.getboolean("agents", "ui", fallback=False):
            return False
        if not is_supported(__version__):
            log.warning("Browse > Agents needs Airflow 3.1.6 or newer, so [agents] ui has no effect.")
            return False
        return True

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]  # asked for on an instance
        """The page's routes."""
        return [{"app": PageApp(), "url_prefix": PREFIX, "name": "Agents"}] if self._is_on else []

    @cached_property
    def external_views(self) -> list[Any]:  # type: ignore[override]  # asked for on an instance
        """The entry in the menu."""
        from airflow.configuration import conf

        if not self._is_on:
            return []
        root = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
        return [
            {
                "name": "Agents",
                "href": f"{root}{PREFIX}/page",
                "destination": "nav",
                "category": "browse",
                "url_route": "agents",
                "icon": f"{root}{PREFIX}/icon.svg",
                "icon_dark_mode": f"{root}{PREFIX}/icon-dark.svg",
            }
        ]
