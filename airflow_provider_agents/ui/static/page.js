"use strict";
// Everything that comes from the platform or from Airflow is shown by `textContent` only. This page has the rights of
// Airflow's own pages: markup that got into it would act in the user's name.

const EVERY_SECONDS = 10;
const USAGE_EVERY_SECONDS = 60;
const RUN_COLUMNS = ["Status", "Agent", "Started", "Duration", "Steps", "Browser", "Model", "Task", "Error"];
const AGENT_COLUMNS = ["Agent", "Status", "Schedule", "Today", "Seven days", "Budget", "Each day"];

const SHORT = { dateStyle: "short", timeStyle: "medium" };

const here = new URL(".", document.location.href);
// Airflow's base path: this page is directly below it.
const base = here.pathname.replace(/\/agents\/$/, "");
const element = (id) => document.getElementById(id);

/** What is known of each connection, by its id: the server's answer and when it came. */
const known = new Map();
/** What the agents of each connection have used, likewise. */
const used = new Map();
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
  link.title = task.name;
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
  const agent = names.get(run.agent_id) ?? run.agent_id;
  cell(row, "Agent", "short", agent).title = `${agent}, event ${run.id}`;
  if (several) cell(row, "Connection", "short", run.connection);
  const started = run.started_at ? new Date(run.started_at) : null;
  cell(row, "Started", "time", started ? started.toLocaleString(undefined, SHORT) : "").title = run.started_at ?? "";
  const counting = cell(row, "Duration", "number", "");
  counting.dataset.seconds = run.seconds ?? "";
  if (run.state === "active") counting.dataset.connection = run.connection;
  counting.textContent = secondsOf(counting);
  cell(row, "Steps", "number", run.steps ?? "");
  cell(row, "Browser", "number", duration(run.browser_seconds));
  cell(row, "Model", "short", run.model).title = run.model;
  const task = cell(row, "Task", "task");
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
  cell(row, "Agent", "short", agent.name).title = `${agent.name}, ${agent.id}`;
  if (several) cell(row, "Connection", "short", agent.connection);
  cell(row, "Status", "", agent.status);
  cell(row, "Schedule", "", agent.schedule);
  const answer = used.get(agent.connection);
  // No runs in seven days: the server names only agents that have some.
  const own = answer?.usage?.[agent.id] ?? (answer && answer.age_seconds !== null ? { days: [], week: null } : null);
  cell(row, "Today", "", own ? usageText(own.days.at(-1)) : "not known yet");
  cell(row, "Seven days", "", own ? usageText(own.week) : "not known yet");
  const budget = answer?.budget?.of === "agent" ? budgetOf(answer.budget, agent.id) : null;
  cell(row, "Budget", budget?.isFull ? "full" : "", budget?.text ?? "");
  const bars = cell(row, "Each day", "");
  if (own?.days.length) bars.append(barsOf(own.days));
  return row;
}

function usageText(usage) {
  if (!usage?.runs) return "none";
  const failed = usage.failed ? `, ${usage.failed} failed` : "";
  const seconds = usage.browser_seconds ? `, browser ${duration(usage.browser_seconds)}` : "";
  return `${usage.runs} ${usage.runs === 1 ? "run" : "runs"}${failed}${seconds}`;
}

/** What an agent has used of a connection's budget, or the account, whose id here is an empty text. */
function budgetOf(budget, id) {
  const used = budget.used[id] ?? { runs: 0, browser_seconds: 0, failures: 0 };
  const { runs, browser_seconds: seconds, failures } = budget.limits;
  const parts = [];
  if (runs !== null) parts.push(`${used.runs} of ${runs} runs`);
  if (seconds !== null) parts.push(`${duration(used.browser_seconds)} of ${duration(seconds)} in the browser`);
  if (failures !== null) parts.push(`${used.failures} of ${failures} failed runs in a row`);
  const isFull = Object.entries(budget.limits).some(([name, limit]) => limit !== null && used[name] >= limit);
  const period = { day: "today", hour: "this hour" }[budget.per] ?? `in the last ${periodOf(budget.per)}`;
  return { text: `${period} ${parts.join(", ")}${isFull ? ": no room" : ""}`, isFull };
}

function periodOf(seconds) {
  const days = seconds / 86400;
  if (!Number.isInteger(days)) return duration(seconds);
  return days === 1 ? "24 hours" : `${days} days`;
}

/** Seven small bars, the highest for the day with the most runs; the failed runs are the lower part of each. */
function barsOf(days) {
  const most = Math.max(1, ...days.map((day) => day.runs));
  const bars = make("div", "bars");
  bars.setAttribute("role", "img");
  bars.setAttribute("aria-label", days.map((day) => `${day.day}: ${day.runs} runs`).join("; "));
  for (const day of days) {
    const bar = make("span", day.runs ? "" : "empty");
    bar.style.height = `${Math.round((100 * day.runs) / most)}%`;
    bar.title = `${day.day} (UTC): ${usageText(day)}`;
    if (day.failed) {
      const failed = make("i");
      failed.style.height = `${Math.round((100 * day.failed) / day.runs)}%`;
      bar.append(failed);
    }
    bars.append(bar);
  }
  return bars;
}

/** The names of columns, with that of the connection after the agent's. */
function columns(names, several) {
  return several ? names.flatMap((name) => (name === "Agent" ? [name, "Connection"] : [name])) : names;
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
  const isActive = (run) => run.state === "active";
  if (several) shown.sort((a, b) => isActive(b) - isActive(a) || (b.started_at ?? "").localeCompare(a.started_at ?? ""));
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
  const accounts = chosen().filter((id) => used.get(id)?.budget?.of === "account");
  const budgets = accounts.map((id) => [id, budgetOf(used.get(id).budget, "")]);
  element("budgets").replaceChildren(
    ...budgets.map(([id, { text, isFull }]) => make("span", isFull ? "full" : "", `budget of ${id}: ${text}`)),
  );
  // A connection that is wrong says so once.
  const errors = chosen().flatMap((id) => {
    const use = used.get(id)?.error;
    const words = known.get(id)?.error ?? (use ? `The use of seven days is not known: ${use}` : null);
    return words ? [make("p", "", `${id}: ${words}`)] : [];
  });
  element("errors").replaceChildren(...errors);
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

async function refreshUsage(id) {
  const before = used.get(id);
  if (before && performance.now() - before.came_at < USAGE_EVERY_SECONDS * 1000) return;
  try {
    used.set(id, { ...(await ask(`connections/${encodeURIComponent(id)}/usage`)), came_at: performance.now() });
  } catch (error) {
    used.set(id, { usage: {}, age_seconds: null, ...before, error: error.message, came_at: performance.now() });
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
  await Promise.all(chosen().flatMap((id) => [refreshOne(id).then(show), refreshUsage(id).then(show)]));
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
