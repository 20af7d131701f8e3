"use strict";
// Everything that comes from the platform or from Airflow is shown by `textContent` only. This page has the rights of
// Airflow's own pages: markup that got into it would act in the user's name.

const EVERY_SECONDS = 10;
const RUN_COLUMNS = ["Status", "Agent", "Started", "Duration", "Steps", "Browser", "Model", "Task", "Error"];
const AGENT_COLUMNS = ["Agent", "Status", "Schedule"];

const here = new URL(".", document.location.href);
// Airflow's base path: this page is directly below it.
const base = here.pathname.replace(/\/agents\/$/, "");
const element = (id) => document.getElementById(id);

/** What is known of each connection, by its id: the server's answer and when it came. */
const known = new Map();
let connections = [];

// --- the parts of a page -------------------------------------------------------------------------------------------

function make(tag, classes, text) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (text !== undefined && text !== null) made.textContent = String(text);
  return made;
}

function cell(row, name, classes, text) {
  const made = make("td", classes, text);
  made.dataset.name = name;
  row.append(made);
  return made;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (parts[0]) return `${parts[0]} h ${String(parts[1]).padStart(2, "0")} min`;
  if (parts[1]) return `${parts[1]} min ${String(parts[2]).padStart(2, "0")} s`;
  return `${parts[2]} s`;
}

function options(select, values, everything) {
  const chosen = select.value;
  const wanted = JSON.stringify(values);
  if (select.dataset.values === wanted) return;
  select.dataset.values = wanted;
  const made = values.map(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  });
  if (everything) {
    const all = make("option", "", everything);
    all.value = "";
    made.unshift(all);
  }
  select.replaceChildren(...made);
  if (values.some(([value]) => value === chosen)) select.value = chosen;
}

/** Open a page of Airflow around this frame, as a click in its own menu does. */
function open(event, path) {
  if (window.parent === window || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  window.parent.history.pushState({}, "", path);
  window.parent.dispatchEvent(new PopStateEvent("popstate"));
}

function taskLink(task) {
  const link = make("a", "", task.name);
  const path = base + task.path;
  link.href = path;
  link.addEventListener("click", (event) => open(event, path));
  return link;
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function chosen() {
  const one = element("connection").value;
  return connections.filter((id) => one === "" || one === id);
}

function all(kind) {
  return chosen().flatMap((id) => (known.get(id)?.[kind] ?? []).map((row) => ({ ...row, connection: id })));
}

function showColumns(table, names) {
  const row = table.tHead.rows[0];
  const numbers = new Set(["Duration", "Steps", "Browser"]);
  row.replaceChildren(...names.map((name) => make("th", numbers.has(name) ? "number" : "", name)));
}

function showRows(table, rows, words) {
  const body = table.tBodies[0];
  if (rows.length) {
    body.replaceChildren(...rows);
    return;
  }
  const row = make("tr");
  const nothing = cell(row, "", "nothing", words);
  nothing.colSpan = table.tHead.rows[0].cells.length;
  body.replaceChildren(row);
}

function runRow(run, names, several) {
  const row = make("tr");
  cell(row, "Status", `state ${run.state}`, run.status);
  cell(row, "Agent", "", names.get(run.agent_id) ?? run.agent_id).title = run.id;
  if (several) cell(row, "Connection", "", run.connection);
  const started = run.started_at ? new Date(run.started_at) : null;
  cell(row, "Started", "time", started ? started.toLocaleString() : "").title = run.started_at ?? "";
  const counting = cell(row, "Duration", "number", "");
  counting.dataset.seconds = run.seconds ?? "";
  if (run.state === "active") counting.dataset.connection = run.connection;
  counting.textContent = secondsOf(counting);
  cell(row, "Steps", "number", run.steps ?? "");
  cell(row, "Browser", "number", duration(run.browser_seconds));
  cell(row, "Model", "", run.model);
  const task = cell(row, "Task", "");
  if (run.task) task.append(taskLink(run.task));
  cell(row, "Error", "error", run.error);
  return row;
}

/** How long a run has taken by now. The server has counted up to its answer; only the time since is counted here. */
function secondsOf(counting) {
  if (counting.dataset.seconds === "") return "";
  const since = counting.dataset.connection ? ageOf(counting.dataset.connection) ?? 0 : 0;
  return duration(Number(counting.dataset.seconds) + since);
}

function ageOf(id) {
  const data = known.get(id);
  if (!data || data.age_seconds === null) return null;
  return data.age_seconds + (performance.now() - data.came_at) / 1000;
}

function agentRow(agent, several) {
  const row = make("tr");
  cell(row, "Agent", "", agent.name).title = agent.id;
  if (several) cell(row, "Connection", "", agent.connection);
  cell(row, "Status", "", agent.status);
  cell(row, "Schedule", "", agent.schedule);
  return row;
}

function columns(names, several) {
  return several ? [names[0], ...(names === RUN_COLUMNS ? [names[1]] : []), "Connection", ...names.slice(names === RUN_COLUMNS ? 2 : 1)] : names;
}

function show() {
  options(element("connection"), connections.map((id) => [id, id]), connections.length > 1 ? "all" : "");
  const several = chosen().length > 1;
  const agents = all("agents");
  const names = new Map(agents.map((agent) => [agent.id, agent.name]));
  const runs = all("runs");
  for (const run of runs) if (run.agent_id && !names.has(run.agent_id)) names.set(run.agent_id, run.agent_id);
  options(element("agent"), [...names], "all");
  const agentId = element("agent").value;
  const state = element("status").value;
  const shown = runs.filter((run) => (!agentId || run.agent_id === agentId) && (!state || run.state === state));
  // Of several connections: those that run first, as the server has ordered each.
  shown.sort((one, other) => (other.state === "active") - (one.state === "active") || (several ? (other.started_at ?? "").localeCompare(one.started_at ?? "") : 0));
  showColumns(element("runs"), columns(RUN_COLUMNS, several));
  showRows(element("runs"), shown.map((run) => runRow(run, names, several)), "No runs.");
  showColumns(element("agents"), columns(AGENT_COLUMNS, several));
  showRows(
    element("agents"),
    agents.filter((agent) => !agentId || agent.id === agentId).map((agent) => agentRow(agent, several)),
    "No agents.",
  );
  const running = shown.filter((run) => run.state === "active").length;
  element("counts").textContent = shown.length ? `${running} running, ${shown.length} shown` : "";
  const errors = chosen().filter((id) => known.get(id)?.error);
  element("errors").replaceChildren(...errors.map((id) => make("p", "", `${id}: ${known.get(id).error}`)));
  tick();
}

function tick() {
  for (const counting of document.querySelectorAll("td[data-connection]")) counting.textContent = secondsOf(counting);
  const age = element("age");
  if (!connections.length) return;
  const ages = chosen().map(ageOf);
  const oldest = Math.max(...ages.filter((one) => one !== null));
  age.textContent = Number.isFinite(oldest) ? `Data from ${duration(oldest)} ago` : "No data yet";
  age.className = Number.isFinite(oldest) && oldest < 3 * EVERY_SECONDS ? "" : "old";
}

// --- what is asked -----------------------------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(new URL(path, here), { credentials: "same-origin" });
  if (answer.status === 401) throw new Error("You are logged out. Load Airflow's page again.");
  if (!answer.ok) throw new Error(`Airflow has answered ${answer.status}.`);
  return answer.json();
}

async function refreshOne(id) {
  try {
    const data = await ask(`connections/${encodeURIComponent(id)}`);
    known.set(id, { ...data, came_at: performance.now() });
  } catch (error) {
    const before = known.get(id) ?? { agents: [], runs: [], age_seconds: null, came_at: performance.now() };
    known.set(id, { ...before, error: error.message });
  }
}

async function refresh() {
  try {
    connections = (await ask("connections")).connections;
    options(element("connection"), connections.map((id) => [id, id]), connections.length > 1 ? "all" : "");
  } catch (error) {
    element("errors").replaceChildren(make("p", "", error.message));
    return;
  }
  if (!connections.length) {
    element("age").textContent = "There is no connection of the type Agents that you may read.";
    showRows(element("runs"), [], "No runs.");
    showRows(element("agents"), [], "No agents.");
    return;
  }
  await Promise.all(chosen().map((id) => refreshOne(id).then(show)));
}

async function refreshForever() {
  for (;;) {
    // Nobody looks at a hidden page.
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, EVERY_SECONDS * 1000));
  }
}

// --- dark or light -----------------------------------------------------------------------------------------------------

function theme() {
  let dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  // The class that Airflow's pages set by the user's choice.
  const outer = window.parent === window ? null : window.parent.document.documentElement.classList;
  if (outer && (outer.contains("dark") || outer.contains("light"))) dark = outer.contains("dark");
  document.documentElement.classList.toggle("dark", dark);
}

theme();
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
if (window.parent !== window) {
  new MutationObserver(theme).observe(window.parent.document.documentElement, { attributeFilter: ["class"] });
}
showColumns(element("runs"), RUN_COLUMNS);
showColumns(element("agents"), AGENT_COLUMNS);
element("filters").addEventListener("change", (event) => {
  show();
  if (event.target.id === "connection") refresh();
});
element("filters").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => document.hidden || refresh());
setInterval(tick, 1000);
refreshForever();
