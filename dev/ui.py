"""`make ui`: the provider in Airflow's pages, as a person uses it, tried in a real browser.

Starts what `make up` starts, on free ports and in a folder of its own, does with Chromium what a person would do, says
what is not as it should be, and takes the pictures of docs/user-interface.md.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command import ROOT, new_home, run_command
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import Page, expect, sync_playwright
from real_airflow import RealAirflow, RealAirflowError, SimulatorServer, until
from ui_agents_page import SCENES as PAGE_SCENES
from up import KEY, airflow_up, run_url_at

from airflow_provider_agents import get_provider_info

if TYPE_CHECKING:
    from collections.abc import Callable

PICTURES = ROOT / "docs" / "images"
#: What was to be seen when something was not so.
FAILED = ROOT / ".airflow-ui" / "failed.png"
DAGS = Path(__file__).parent / "ui_dags.py"
SIZE = {"width": 1280, "height": 800}
#: Seconds of a run that is still running when all scenes are over.
LONG = 3600.0
#: What the connection says of its runs' budget; the page shows it.
BUDGET = {"runs": 20, "browser_seconds": 3600}
#: None of what a browser does by itself is wanted.
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SECONDS = 1000.0  # Playwright counts milliseconds
MASK = "***"
(FORM,) = get_provider_info()["connection-types"]
HOW_TO_GET_IT = (
    "make ui needs Chromium. Install it (Debian: apt-get install chromium), or name one: make ui CHROMIUM=/path/to/it"
)


class WrongPageError(Exception):
    """A page, or what Airflow says of it, is not as it should be."""


def check(fact: object, words: str) -> None:
    """Go on only with what is so."""
    if not fact:
        raise WrongPageError(words)


class Person:
    """Somebody in front of Airflow's pages."""

    def __init__(self, page: Page, airflow: RealAirflow, simulator: SimulatorServer) -> None:
        self.page, self.airflow, self.simulator = page, airflow, simulator
        self.runs: dict[str, str] = {}

    def picture(self, name: str) -> None:
        """Take a picture of what is to be seen."""
        self.page.mouse.move(0, 0)
        self.page.screenshot(path=PICTURES / f"{name}.png", animations="disabled")

    def connection(self, conn_id: str) -> dict[str, Any]:
        """What Airflow says of a connection."""
        connection: dict[str, Any] = self.airflow.api("GET", f"/api/v2/connections/{conn_id}")
        return {**connection, "extra": json.loads(connection["extra"] or "{}")}

    # --- connections ---

    def open_connections(self) -> None:
        self.go("/connections")
        expect(self.page.get_by_role("button", name="Add Connection")).to_be_visible(timeout=60 * SECONDS)

    def go(self, path: str) -> None:
        """Open a page."""
        # Not until everything has loaded: the pages go on loading as long as they are open.
        self.page.goto(f"{self.airflow.url}{path}", wait_until="domcontentloaded")

    def row(self, conn_id: str) -> Any:
        """A connection's line in the list."""
        return self.page.get_by_role("row").filter(has_text=conn_id)

    def start_a_connection(self, conn_id: str) -> Any:
        """Open the form, choose the type as a person would, and return the form."""
        self.open_connections()
        self.page.get_by_role("button", name="Add Connection").click()
        form = self.page.get_by_role("dialog")
        form.locator("[name=connection_id]").fill(conn_id)
        form.get_by_role("combobox").first.click()
        self.page.keyboard.type(FORM["hook-name"])
        self.page.get_by_role("option", name=FORM["hook-name"], exact=True).click()
        expect(form.locator("[name=password]")).to_be_visible()
        return form

    def fill_address(self, form: Any) -> None:
        form.locator("[name=host]").fill("http://127.0.0.1")
        form.locator("[name=port]").fill(str(self.simulator.port))

    def open_extras(self, form: Any) -> None:
        form.get_by_role("button", name="Extra Fields", exact=True).click()
        expect(form.locator("[name=element_run_url]")).to_be_visible()

    def save(self, form: Any) -> None:
        form.get_by_role("button", name="Save").click()
        expect(form).to_be_hidden()

    def test(self, conn_id: str, title: str) -> str:
        """Press a connection's *Test* button and return what is said, under the title that is expected."""
        self.open_connections()
        self.row(conn_id).get_by_role("button", name="Test Connection").click()
        said = self.page.locator("[data-scope=toast][data-part=root]").filter(has_text=title)
        expect(said).to_be_visible(timeout=90 * SECONDS)
        words: str = said.inner_text()
        return words

    # --- tasks ---

    def open_task(self, dag_id: str, task_id: str, map_index: int | None = None, *, tab: str = "") -> None:
        mapped = "" if map_index is None else f"/mapped/{map_index}"
        self.go(f"/dags/{dag_id}/runs/{self.runs[dag_id]}/tasks/{task_id}{mapped}{tab}")

    def link(self) -> Any:
        """The task's link to its run."""
        return self.page.get_by_role("link", name="Agent run")

    def end_runs(self, agent_id: str) -> None:
        """Let the platform say that all runs of an agent have COMPLETED by now."""
        ended = {"status": "COMPLETED", "completedAt": datetime.now(UTC).isoformat(), "browserStepCount": 12}
        for run in self.simulator.runs().values():
            if run["agentId"] == agent_id:
                self.simulator.control("PATCH", "rows", {"eventId": run["eventId"], "row": ended})


# --- what is tried, in this order -------------------------------------------------------------------------------------


def the_form_has_what_is_used_and_nothing_else(person: Person) -> None:
    form = person.start_a_connection("agents_ui")
    for name in ("password", "host"):
        label = FORM["ui-field-behaviour"]["relabeling"][name]
        expect(form.get_by_text(label, exact=True)).to_be_visible()
        shown = form.locator(f"[name={name}]").get_attribute("placeholder")
        check(shown == FORM["ui-field-behaviour"]["placeholders"][name], f"{name} suggests {shown!r}")
    for name in FORM["ui-field-behaviour"]["hidden-fields"]:
        expect(form.locator(f"[name={'url_schema' if name == 'schema' else name}]")).to_have_count(0)
    form.locator("[name=password]").fill(KEY)
    person.fill_address(form)
    person.picture("connection-form")
    person.open_extras(form)
    for name, field in FORM["conn-fields"].items():
        expect(form.locator(f"[name=element_{name}]")).to_have_value("")
        expect(form.get_by_text(field["label"], exact=True)).to_be_visible()
        expect(form.get_by_text(field["description"])).to_be_visible()
    form.locator("[name=element_run_url]").fill(run_url_at(person.simulator))
    form.locator("[name=element_budget]").fill(json.dumps(BUDGET))
    form.locator("[name=element_budget]").blur()
    # High enough for all fields.
    person.page.set_viewport_size({"width": SIZE["width"], "height": 220 + 130 * len(FORM["conn-fields"])})
    person.picture("connection-extras")
    person.page.set_viewport_size(SIZE)
    person.save(form)
    kept = person.connection("agents_ui")
    # Airflow's form keeps a null for each field that was left alone.
    typed = {name: value for name, value in kept["extra"].items() if value is not None}
    wanted = {"run_url": run_url_at(person.simulator), "budget": json.dumps(BUDGET)}
    check(typed == wanted, f"the form has saved {kept['extra']}")
    check((kept["password"], kept["port"]) == (MASK, person.simulator.port), f"the form has saved {kept}")


def an_untouched_field_is_not_saved(person: Person) -> None:
    form = person.start_a_connection("agents_plain")
    form.locator("[name=password]").fill(KEY)
    person.fill_address(form)
    person.save(form)
    kept = person.connection("agents_plain")
    check(not any(kept["extra"].values()), f"the form has saved {kept['extra']}, which nobody typed")


def opening_and_saving_again_changes_nothing(person: Person) -> None:
    before = person.connection("agents_ui")
    person.open_connections()
    person.row("agents_ui").get_by_role("button", name="Edit Connection").click()
    form = person.page.get_by_role("dialog")
    expect(form.locator("[name=host]")).to_have_value("http://127.0.0.1")
    # A form in which nothing has changed cannot be saved.
    form.locator("[name=description]").fill("The platform, for reports")
    person.save(form)
    after = person.connection("agents_ui")
    check(after == {**before, "description": "The platform, for reports"}, f"{before} has become {after}")
    person.test("agents_ui", "Test Connection Successful")  # the key is there as before


def the_test_button_tells_a_good_connection_from_bad_ones(person: Person) -> None:
    made = {"conn_type": "agents", "host": "http://127.0.0.1", "port": person.simulator.port, "password": KEY}
    changes: dict[str, dict[str, object]] = {
        "agents_wrong": {"password": "a-wrong-key"},
        "agents_nowhere": {"host": "https://gateway.invalid", "port": 443},
        "agents_masked": {"password": "******"},
        "agents_script": {"extra": json.dumps({"run_url": "javascript:alert(1)"})},
    }
    for conn_id, changed in changes.items():
        person.airflow.api("POST", "/api/v2/connections", {**made, "connection_id": conn_id, **changed})
    for conn_id, title, words, picture in (
        ("agents_ui", "Test Connection Successful", "accepts the API key", "connection-test-good"),
        ("agents_wrong", "Test Connection Failed", "401: The API key of the connection", "connection-test-bad"),
        ("agents_nowhere", "Test Connection Failed", "No connection to gateway.invalid", None),
        ("agents_masked", "Test Connection Failed", "only asterisks", None),
        ("agents_script", "Test Connection Failed", "run_url must be an http(s) URL", None),
    ):  # fmt: skip
        said = person.test(conn_id, title)
        check(words in said, f"the test of {conn_id} says {said!r}")
        check("a-wrong-key" not in said, "a message repeats the key")
        if picture is not None:
            person.picture(picture)


def the_list_names_the_type(person: Person) -> None:
    person.open_connections()
    expect(person.row("agents_ui")).to_contain_text("agents")
    person.picture("connection-list")


def start_the_runs(person: Person) -> None:
    for agent in (
        # These run until a scene ends them: how long the pages take is the machine's affair.
        {"agent_id": "agent-prices", "run_seconds": LONG, "queue_seconds": 2.0},
        {"agent_id": "agent-london", "run_seconds": LONG, "queue_seconds": 2.0},
        {"agent_id": "agent-paris", "run_seconds": LONG, "queue_seconds": 2.0},
        {
            "agent_id": "agent-failing", "run_seconds": 5.0, "end_status": "FAILED",
            "error": "The site asked for a login that the agent does not have.",
        },
    ):  # fmt: skip
        person.simulator.control("POST", "agents", agent)
    for dag_id in ("price_report", "price_reports", "failing_report", "wrong_key", "no_run_url"):
        person.runs[dag_id] = person.airflow.trigger(dag_id)


def a_deferred_task_leads_to_its_run(person: Person) -> None:
    run_id = person.runs["price_report"]
    person.airflow.wait_for_task("price_report", run_id, "run_agent", "deferred")
    link = _shown_link(person, "price_report", "run_agent")
    state = person.airflow.task_instances("price_report", run_id)[0]["state"]
    check(state == "deferred", f"the link came when the task was {state}")
    person.picture("link-deferred")
    event_id = person.airflow.xcom("price_report", run_id, "run_agent", "event_id")
    (run,) = person.page.request.get(link.get_attribute("href")).json()
    check((run["eventId"], run["status"]) == (event_id, "RUNNING"), f"the link of {event_id} leads to {run}")


def _shown_link(person: Person, dag_id: str, task_id: str, map_index: int | None = None) -> Any:
    def shown() -> bool:
        person.open_task(dag_id, task_id, map_index, tab="/details")
        try:
            expect(person.link()).to_be_visible(timeout=10 * SECONDS)
        except AssertionError:
            return False
        return True

    until(shown, 120, f"the link of {dag_id} {task_id}")
    person.link().scroll_into_view_if_needed()
    return person.link()


def each_mapped_task_leads_to_its_own_run(person: Person) -> None:
    links = {
        person.airflow.xcom("price_reports", person.runs["price_reports"], "run_agents", "event_id", map_index): (
            _shown_link(person, "price_reports", "run_agents", map_index).get_attribute("href")
        )
        for map_index in (0, 1)
    }
    person.picture("link-mapped")
    for event_id, url in links.items():
        check(event_id is not None and url is not None and event_id in url, f"the links are {links}")


def without_a_run_url_there_is_no_link(person: Person) -> None:
    person.airflow.wait_for_task("no_run_url", person.runs["no_run_url"], "run_agent", "success")
    person.open_task("no_run_url", "run_agent", tab="/details")
    expect(person.page.get_by_text("Success").first).to_be_visible()
    expect(person.page.get_by_text("ExecuteAgentOperator").nth(1)).to_be_visible()
    expect(person.link()).to_have_count(0)


def the_logs_tell_what_happened(person: Person) -> None:
    person.end_runs("agent-prices")
    # w wraps the lines, here and on each page from now on, or not any more; f takes the whole window.
    for dag_id, state, words, keys, picture in (
        ("wrong_key", "failed", "The API key of the connection is missing, wrong or revoked", "w", "log-wrong-key"),
        ("failing_report", "failed", "The site asked for a login that the agent does not have.", "wf", "log-failed"),
        ("price_report", "success", "A run COMPLETED", "", "log-deferred"),
    ):
        ended = person.airflow.wait_for_dag_run(dag_id, person.runs[dag_id], 180)
        check(ended == state, f"{dag_id} is {ended}")
        person.open_task(dag_id, "run_agent")
        expect(person.page.get_by_text(words).first).to_be_visible(timeout=90 * SECONDS)
        for key in keys:
            person.page.keyboard.press(key)
        shown: Any = person.page.get_by_role("dialog") if "f" in keys else person.page
        expect(shown.get_by_text(words).first).to_be_visible()
        for traceback in reversed(shown.locator("details[open] > summary").all()):
            traceback.click()
        shown.get_by_text("Pre Execute").first.scroll_into_view_if_needed()
        person.picture(picture)
        log = person.airflow.log_text(dag_id, person.runs[dag_id], "run_agent")
        check(KEY not in log and "a-wrong-key" not in log, f"the log of {dag_id} holds the key")


SCENES: tuple[Callable[[Person], None], ...] = (
    the_form_has_what_is_used_and_nothing_else,
    an_untouched_field_is_not_saved,
    opening_and_saving_again_changes_nothing,
    the_test_button_tells_a_good_connection_from_bad_ones,
    the_list_names_the_type,
    start_the_runs,
    a_deferred_task_leads_to_its_run,
    *PAGE_SCENES,
    each_mapped_task_leads_to_its_own_run,
    without_a_run_url_there_is_no_link,
    the_logs_tell_what_happened,
)


def main() -> int:
    """Try everything; the exit status."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None or not Path(chromium).exists():
        print(HOW_TO_GET_IT, file=sys.stderr)
        return 1
    PICTURES.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with new_home("ui") as home:
        (home / "dags").mkdir()
        shutil.copy(DAGS, home / "dags")
        print("Starting Airflow (about half a minute) ...", flush=True)
        with airflow_up(home, home / "dags") as (airflow, simulator), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(90 * SECONDS)
            expect.set_options(timeout=45 * SECONDS)
            person = Person(page, airflow, simulator)
            for scene in SCENES:
                name = scene.__name__.replace("_", " ")
                try:
                    scene(person)
                except (WrongPageError, RealAirflowError, BrowserError, AssertionError) as error:
                    page.screenshot(path=FAILED)
                    print(f"[{time.monotonic() - began:5.1f}s] NOT SO: {name}\n{error}\nSee {FAILED.relative_to(ROOT)}")
                    return 1
                print(f"[{time.monotonic() - began:5.1f}s] {name}", flush=True)
            browser.close()
        print(f"All as it should be. The pictures are in {PICTURES.relative_to(ROOT)}/.")
        return 0


if __name__ == "__main__":
    run_command(main)
