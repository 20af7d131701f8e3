"""The scenes of `make ui` for *Browse > Agents*: what it shows, to whom, and what a hostile platform can do to it."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
from playwright.sync_api import Page, expect
from real_airflow import Process, free_port, until
from up import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ui import Person

SECONDS = 1000.0
#: Milliseconds for what takes a second on a machine that does nothing else.
PATIENCE = 90 * SECONDS
#: A phone, and a window that is too small for all columns.
PHONE, SMALL = {"width": 420, "height": 860}, {"width": 800, "height": 860}
#: Text that would run a script if any part of the page took it for markup.
HOSTILE = '<img src=x onerror="parent.hacked=1"><script>parent.hacked=1</script>'
PATH = "/plugin/agents"


def frame_of(page: Page) -> Any:
    """What is inside of Airflow's frame."""
    return page.frame_locator("iframe")


def rows_of(page: Page, table: str) -> Any:
    """The rows of one of the page's tables."""
    return frame_of(page).locator(f"#{table} tbody tr")


def _is_so(fact: object, words: str) -> None:
    if not fact:
        raise AssertionError(words)


def the_menu_leads_to_the_agents(person: Person) -> None:
    """*Browse > Agents* is in the menu, and shows the runs, those that run first."""
    person.go("/")
    person.page.get_by_role("button", name="Browse").click()
    person.page.get_by_role("menuitem", name="Agents").click()
    # Sooner or later, Airflow adds the frame's own path. A bookmark of that leads here, too.
    expect(person.page).to_have_url(re.compile(f"^{re.escape(person.airflow.url + PATH)}(/agents/page)?$"))
    person.page.reload(wait_until="domcontentloaded")
    # This connection alone: others of this command's are wrong on purpose.
    frame_of(person.page).locator("#connection").select_option("agents_ui", timeout=PATIENCE)
    first = rows_of(person.page, "runs").first
    expect(first.locator(".state.active")).to_be_visible(timeout=PATIENCE)


def the_seconds_of_a_run_count(person: Person) -> None:
    """A run's duration grows without an answer of the platform."""
    counting = rows_of(person.page, "runs").first.locator("[data-name=Duration]")
    before = counting.inner_text()
    expect(counting).not_to_have_text(before)
    expect(frame_of(person.page).locator("#age")).to_contain_text("ago")


def the_page_is_readable_in_light_and_dark_and_on_a_phone(person: Person) -> None:
    """Take the pictures, and look for what is cut off."""
    page = person.page
    size = page.viewport_size
    for scheme, name in (("dark", "agents-page-dark"), ("light", "agents-page")):
        _open(page, person.airflow.url, scheme)
        expect(rows_of(page, "runs").first.locator(".state.active")).to_be_visible(timeout=PATIENCE)
        is_dark = frame_of(page).locator("html").evaluate("html => html.classList.contains('dark')")
        _is_so(is_dark == (scheme == "dark"), f"the page does not follow Airflow's {scheme} theme")
        person.picture(name)
    agents = frame_of(page).locator("#agents")
    expect(agents.locator(".bars").first).to_be_visible(timeout=PATIENCE)
    expect(agents.get_by_text("today 1 of 20 runs").first).to_be_visible()
    agents.scroll_into_view_if_needed()
    frame_of(page).locator("html").evaluate("html => html.scrollTo(0, html.scrollHeight)")
    person.picture("agents-page-use")
    page.set_viewport_size(PHONE)
    page.goto(f"{person.airflow.url}/agents/page")
    page.locator("#connection").select_option("agents_ui", timeout=PATIENCE)
    expect(page.locator("#runs tbody tr").nth(1)).to_be_visible(timeout=PATIENCE)
    person.picture("agents-page-phone")
    for window in (PHONE, SMALL):
        page.set_viewport_size(window)
        wide = page.evaluate("document.documentElement.scrollWidth")
        _is_so(wide <= window["width"], f"in a window of {window['width']} pixels the page is {wide} pixels wide")
    page.set_viewport_size(size)
    _open(page, person.airflow.url, "light")


def _open(page: Page, url: str, scheme: str) -> None:
    page.goto(f"{url}/", wait_until="domcontentloaded")
    page.evaluate("scheme => localStorage.setItem('theme', scheme)", scheme)
    page.goto(f"{url}{PATH}", wait_until="domcontentloaded")
    frame_of(page).locator("#connection").select_option("agents_ui", timeout=PATIENCE)


def a_run_leads_to_its_task(person: Person) -> None:
    """The link of a run opens the task that started it, around the frame."""
    link = frame_of(person.page).get_by_role("link", name="price_report.run_agent").first
    link.click(timeout=PATIENCE)
    run_id = person.runs["price_report"]
    path = f"/dags/price_report/runs/{quote(run_id, safe='')}/tasks/run_agent"
    expect(person.page).to_have_url(f"{person.airflow.url}{path}")
    expect(person.page.get_by_text("run_agent").first).to_be_visible()


def nothing_from_the_platform_becomes_markup(person: Person) -> None:
    """Hostile names and errors are shown as text."""
    agent = {
        "agent_id": "agent-hostile", "name": HOSTILE, "run_seconds": 0.1, "end_status": "FAILED", "error": HOSTILE,
    }  # fmt: skip
    person.simulator.control("POST", "agents", agent)
    httpx.post(
        f"{person.simulator.url}/v1/agents/agent-hostile/execute", headers={"Authorization": f"Bearer {KEY}"}
    ).raise_for_status()
    person.page.on("dialog", lambda dialog: dialog.dismiss())
    _open(person.page, person.airflow.url, "light")
    failed = rows_of(person.page, "runs").filter(has_text="onerror").first
    expect(failed).to_be_visible(timeout=PATIENCE)
    expect(failed.locator("[data-name=Error]")).to_have_text(HOSTILE)
    _is_so(person.page.evaluate("window.hacked") is None, "a script from the platform has run")
    _is_so(frame_of(person.page).locator("img").count() == 0, "the page holds an element that the platform has named")


def each_user_sees_what_airflow_allows(person: Person) -> None:
    """Admin and op see the runs, a viewer none, and nobody gets in without a login."""
    with _server_with_users(person) as url:
        for user in ("admin", "op", "viewer"):
            answer = httpx.post(f"{url}/auth/token", json={"username": user, "password": f"{user}-word"})
            answer.raise_for_status()
            context = person.page.context.browser.new_context()
            context.add_cookies([{"name": "_token", "value": answer.json()["access_token"], "url": url}])
            page = context.new_page()
            page.goto(f"{url}{PATH}", wait_until="domcontentloaded")
            if user == "viewer":
                words = "no connection of the type Agents that you may read"
                expect(frame_of(page).locator("#age")).to_contain_text(words, timeout=PATIENCE)
                refused = page.request.get(f"{url}/agents/connections/agents_ui")
                _is_so(refused.status == 403, f"a viewer's question is answered {refused.status}")
            else:
                expect(rows_of(page, "runs").first.locator(".state")).to_be_visible(timeout=PATIENCE)
            context.close()
        for path in ("page", "page.js", "connections", "connections/agents_ui"):
            status = httpx.get(f"{url}/agents/{path}").status_code
            _is_so(status == 401, f"without a login /agents/{path} answers {status}")


@contextlib.contextmanager
def _server_with_users(person: Person) -> Iterator[str]:
    """A second API server on the same database, which asks for a login."""
    names, port = ("admin", "op", "viewer"), free_port()
    url, home = f"http://127.0.0.1:{port}", person.airflow.home
    words = home / "passwords.json"
    words.write_text(json.dumps({name: f"{name}-word" for name in names}))
    env = {
        **person.airflow.env(),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{name}" for name in names),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(words),
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
    }
    log = home / "api-server-with-users.log"
    server = Process([person.airflow.executable, "api-server"], env, log)

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/api/v2/monitor/health", timeout=5).is_success
        return False

    try:
        until(answers, 90, "the start of a second API server")
        yield url
    finally:
        server.stop()


SCENES = (
    the_menu_leads_to_the_agents,
    the_seconds_of_a_run_count,
    the_page_is_readable_in_light_and_dark_and_on_a_phone,
    a_run_leads_to_its_task,
    nothing_from_the_platform_becomes_markup,
    each_user_sees_what_airflow_allows,
)
