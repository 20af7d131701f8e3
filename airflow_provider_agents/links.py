"""The link from a task to its run: a button on the task instance's page.

Airflow's pages read a link from an XCom. A worker writes that XCom whenever it lets go of a task (at the deferral as
well as at the end), with what `get_link` says; while a task is deferred, its trigger writes it as soon as the run's
event is known. So there is one invariant: what is written is either a link to this task's own run or nothing. A worker
that knows no better leaves what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from typing import Protocol

    from airflow.providers.common.compat.sdk import BaseOperator

    class TaskKey(Protocol):
        """What names a task instance."""

        dag_id: str
        task_id: str
        run_id: str
        map_index: int


#: The key of the XCom that holds the link. Public: a task that sends a message may pull it.
RUN_URL_KEY = "run_url"
#: The attribute of an operator with its link, as far as the process that runs it knows: "" for none, None if a trigger
#: may know more.
LINK_ATTRIBUTE = "run_link"


class AgentRunLink(BaseOperatorLink):
    """Leads to the run, at the address that the connection's `run_url` makes of its ids; absent without one."""

    name = "Agent run"
    xcom_key = RUN_URL_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: TaskKey) -> str:  # type: ignore[override]  # a wider key
        """The link, or "" for none. Never raises, since Airflow would put a traceback into the task's log.

        Args:
            operator: the task as this process has run it; one that is mapped and not yet expanded knows nothing.
            ti_key: the task instance.
        """
        try:
            link = getattr(operator, LINK_ATTRIBUTE, None)
            if link is None:
                # Not at the top: it brings the deployment's own XCom backend with it, whatever that imports.
                from airflow.providers.common.compat.sdk import XCom

                link = XCom.get_value(ti_key=ti_key, key=self.xcom_key)
        except Exception:  # noqa: BLE001 - a link is a comfort
            return ""
        return link if isinstance(link, str) and link.startswith(("https://", "http://")) else ""
