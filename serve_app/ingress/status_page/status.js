// The status view: polls /status/fleet while it is seen. Whatever comes from the service is written as text, never as HTML.

const POLL_MS = 2000;
const TIMEOUT_MS = 5000;
const SHOWN_FIRST = 5;
const KEY = "step-serve-key";

export const byId = (id) => document.getElementById(id);
export const apiKey = () => sessionStorage.getItem(KEY) || "";
export const headers = (more = {}) => (apiKey() ? { authorization: `Bearer ${apiKey()}`, ...more } : more);

/** An element with attributes and children; strings become text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Shows the form for the key. `problem` says why. */
export function askForKey(problem) {
  byId("key-form").hidden = false;
  byId("key-problem").textContent = problem;
}

// ---- words and figures ----------------------------------------------------------------------------------------------

const number = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const percent = (ratio) => `${Math.round(ratio * 100)}\u00a0%`;
const clock = (unixS) => new Date(unixS * 1000).toLocaleTimeString("en-GB");

function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)}\u00a0ms`;
  if (seconds < 100) return `${seconds.toFixed(1)}\u00a0s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)}\u00a0min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)}\u00a0h` : `${Math.round(seconds / 86400)}\u00a0days`;
}

const GOOD = new Set(["working", "idle", "up"]);
const BAD = new Set(["dead", "refused", "unhealthy", "not connected"]);
const CAUSES = {
  died: "it died", named: "it died of it", beside: "it died", cut: "it fell silent", moved: "it was stopping",
  preempted: "a higher class came",
};
const GROUPS = {
  receive: "other", render: "compute", routing: "waiting", replica_queue: "waiting", engine_queue: "waiting",
  prefill: "compute", compile: "trouble", cpu_wait: "trouble",
  transfer: "other", decode: "decode", neighbour_prefill: "trouble", preemption: "trouble",
  migration: "trouble", unanswered: "trouble", delivery: "other",
};

// ---- parts of the page ----------------------------------------------------------------------------------------------

const shown = new Map();

/** Replaces a part's content when what it shows has changed, and nobody is marking text in it. */
function render(id, facts, build) {
  const part = byId(id), state = JSON.stringify(facts);
  const selection = document.getSelection();
  if (shown.get(id) === state || (selection && !selection.isCollapsed && part.contains(selection.anchorNode))) return;
  shown.set(id, state);
  part.replaceChildren(...[build(facts)].flat());
}

const empty = (text) => make("p", { class: "empty" }, text);

/** A table; a column is [title, text of a row, class]. On a phone each row is a block, with the titles in it. */
function table(rows, columns, none) {
  if (!rows.length) return empty(none);
  const cell = (row, [title, text, kind = ""]) => make("td", { class: kind, "data-label": title }, make("span", {}, text(row)));
  return make("table", {},
    make("thead", {}, make("tr", {}, ...columns.map(([title, , kind = ""]) => make("th", { scope: "col", class: kind }, title)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...columns.map((column) => cell(row, column))))));
}

function fill(ratio, kind = "") {
  const bar = make("i", { class: kind });
  bar.style.width = `${Math.min(Math.max(ratio, 0), 1) * 100}%`;
  return bar;
}

function meter(name, ratio, value) {
  return make("div", { class: "meter" }, make("span", {}, name),
    make("span", { class: "track", "aria-hidden": "true" }, fill(ratio, ratio > 0.9 ? "high" : "")),
    make("span", { class: "value" }, value));
}

const facts = (pairs) => make("dl", { class: "facts" },
  ...pairs.filter(([, value]) => value !== null).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));

/** How long a start took, and its longest phase. */
function started(phases) {
  const [phase, longest] = Object.entries(phases).reduce((most, one) => (one[1] > most[1] ? one : most));
  const total = Object.values(phases).reduce((sum, seconds) => sum + seconds, 0);
  return `${duration(total)} (${phase.replaceAll("_", " ")} ${duration(longest)})`;
}

function replica(one, nowS) {
  const kind = GOOD.has(one.state) ? "good" : BAD.has(one.state) ? "bad" : one.state === "connecting" || one.slots === 0 ? "" : "warn";
  const head = make("div", { class: "head" }, make("span", { class: "id" }, one.replica_id), make("span", { class: `badge ${kind}` }, one.state));
  const age = one.started_unix_s ? duration(Math.max(nowS - one.started_unix_s, 0)) : null;
  if (!one.slots) {
    const text = one.note || [one.under_way, age ? `for ${age}` : ""].filter(Boolean).join(", ");
    return make("article", { class: "card replica" }, head, text ? make("p", { class: "muted" }, text) : null);
  }
  const running = one.unfinished - one.queued;
  return make("article", { class: "card replica" }, head,
    meter("Requests", running / one.slots, `${running} of ${one.slots}`),
    meter("KV cache", one.kv_usage_ratio, percent(one.kv_usage_ratio)),
    facts([
      ["waiting", one.queued ? number.format(one.queued) : null],
      ["prompts to compute", one.queued_prefill_tokens ? `${short.format(one.queued_prefill_tokens)} tokens` : null],
      ["prefill", one.prefill_tokens_per_s ? `${short.format(one.prefill_tokens_per_s)} tokens/s` : null],
      ["tokens a step", one.tokens_per_step ? one.tokens_per_step.toFixed(2) : null],
      ["acceptance", one.acceptance_ratio !== null ? percent(one.acceptance_ratio) : null],
      ["cache", one.kv_cache_tokens ? `${short.format(one.kv_cache_tokens)} tokens` : null],
      ["start", Object.keys(one.start_phases).length ? started(one.start_phases) : null],
      ["pool", one.pool || null], ["up", age], ["version", one.version || null],
    ]),
    one.unfinished && one.under_way ? make("p", { class: "muted" }, one.under_way) : null,
    one.note ? make("p", { class: "failed" }, one.note) : null);
}

function replicas({ list, nowS }) {
  if (!list.length) return empty("No replica is known.");
  const nodes = Map.groupBy ? Map.groupBy(list, (one) => one.node) : grouped(list);
  return [...nodes].map(([node, here]) => make("div", {},
    make("h3", {}, node ? `Node ${node}` : "Node not known yet"),
    make("div", { class: "cards" }, ...here.map((one) => replica(one, nowS)))));
}

function grouped(list) {
  const groups = new Map();
  for (const one of list) groups.set(one.node, [...(groups.get(one.node) || []), one]);
  return groups;
}

function request({ sentence, record }) {
  const phases = record.phases.filter(([, seconds]) => seconds > 0.02 * record.total_s);
  const bar = make("span", { class: "track", "aria-hidden": "true" },
    ...record.phases.map(([phase, seconds]) => fill(seconds / record.total_s, GROUPS[phase] || "other")));
  const who = [clock(record.received_unix_s), record.key, record.session ? `session ${record.session}` : null, `${number.format(record.prompt_tokens)} tokens in, ${number.format(record.output_tokens)} out`];
  return make("li", { class: "card" },
    make("div", { class: "head" }, make("span", { class: "id" }, record.request_id), make("strong", {}, duration(record.total_s))),
    make("p", {}, sentence), bar,
    make("p", { class: "muted" }, phases.map(([phase, seconds]) => `${phase.replaceAll("_", " ")} ${duration(seconds)}`).join(" · ")),
    make("p", { class: "muted" }, who.filter(Boolean).join(" · ")));
}

const requests = (all) => make("ol", { class: "requests" }, ...all.map(request));

function summary(fleet) {
  const up = fleet.replicas.filter((one) => one.takes_work);
  const sum = (pick) => up.reduce((total, one) => total + pick(one), 0);
  const tile = (name, value, of = "") => make("div", {}, make("dt", {}, name), make("dd", {}, value, of ? make("small", {}, ` ${of}`) : null));
  const kv = up.length ? percent(sum((one) => one.kv_usage_ratio) / up.length) : "–";
  return [
    tile("Replicas up", number.format(up.length), up.length ? `of ${fleet.replicas.length}` : fleet.state_text),
    tile("Running", number.format(sum((one) => one.unfinished - one.queued)), `of ${number.format(sum((one) => one.slots))} slots`),
    tile("Waiting", number.format(fleet.queued + fleet.waiting)),
    tile("KV cache", kv, "on average"),
    tile("Ingresses", number.format(fleet.ingresses.length), fleet.silent_ingresses ? `${fleet.silent_ingresses} silent` : ""),
    tile("HTTP requests", number.format(fleet.in_flight), "in flight"),
  ];
}

function scaleRows(fleet) {
  const targets = fleet.deployments.map((one) => ({
    name: one.name, text: `${one.status}: ${one.replicas.filter((r) => r.state === "RUNNING").length} running, target ${one.target}${one.message ? `. ${one.message}` : ""}`,
  }));
  const now = targets.length ? [make("p", { class: "muted" }, ...targets.flatMap(({ name, text }, i) => [i ? make("br") : "", `${name}: ${text}`])), make("br")] : [];
  return [...now, table(fleet.scale, [
    ["Time", (one) => clock(one.at_unix_s), "time"], ["What", (one) => `${one.deployment}: ${one.before} → ${one.after}`],
    ["Why", (one) => one.reason]], "No target has changed since the ingresses started.")];
}

function show(fleet) {
  document.title = `${fleet.model}: status`;
  byId("model").textContent = fleet.model;
  byId("engine").textContent = fleet.engine;
  byId("freshness").textContent = `as of ${clock(fleet.now_unix_s)}`;
  const tried = fleet.canary ? `Canary (${percent(fleet.canary.share)} of the sessions): ${fleet.canary.state.replaceAll("_", " ")}: ${fleet.canary.reason}.` : "";
  const note = [fleet.problem, tried, fleet.only_key ? "Your key sees its own requests and tokens; an operator's sees all." : ""];
  byId("note").textContent = note.filter(Boolean).join(" ");
  byId("note").hidden = !byId("note").textContent;
  byId("summary").replaceChildren(...summary(fleet));
  render("replicas", { list: fleet.replicas, nowS: Math.floor(fleet.now_unix_s / 10) * 10 }, replicas);
  render("slowest", fleet.slowest.slice(0, SHOWN_FIRST), (all) => (all.length ? requests(all) : empty("No request yet.")));
  render("slower", fleet.slowest.slice(SHOWN_FIRST), requests);
  byId("further").hidden = fleet.slowest.length <= SHOWN_FIRST;
  render("migrations", fleet.migrations, (all) => table(all, [
    ["Time", (one) => clock(one.at_unix_s), "time"], ["Request", (one) => make("span", { class: "id" }, one.request_id)],
    ["From → to", (one) => `${one.from_replica} → ${one.to_replica}`], ["Why", (one) => CAUSES[one.cause] || one.cause]], "No request has moved."));
  render("scale", { deployments: fleet.deployments, scale: fleet.scale }, scaleRows);
  render("ingresses", fleet.ingresses, (all) => table(all, [
    ["Ingress", (one) => make("span", { class: "id" }, one.ingress_id)], ["Node", (one) => one.node],
    ["Requests", (one) => number.format(one.in_flight), "number"],
    ["Loop busy", (one) => (one.busy_ratio === null ? "–" : percent(one.busy_ratio)), "number"],
    ["Lag", (one) => (one.lag_s === null ? "–" : duration(one.lag_s)), "number"]], "No ingress has answered."));
  render("keys", fleet.keys, (all) => table(all, [
    ["Key", (one) => one.key ?? "(no key)"], ["Requests", (one) => number.format(one.requests), "number"],
    ["Prompt", (one) => number.format(one.prompt_tokens), "number"], ["Cached", (one) => number.format(one.cached_tokens), "number"],
    ["Answer", (one) => number.format(one.output_tokens), "number"]], "No tokens yet."));
}

// ---- polling --------------------------------------------------------------------------------------------------------

let timer = null;
let polling = false;
const isSeen = () => !document.hidden && (!byId("status").hidden || !shown.size); // the heading is for both views

function showProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

async function poll() {
  clearTimeout(timer);
  if (polling || !isSeen()) return;
  polling = true;
  try {
    const answer = await fetch("/status/fleet", { headers: headers(), signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
    if (answer.status === 401) {
      askForKey(apiKey() ? "The service does not know this key." : "This service asks for a key.");
      polling = false;
      return; // until a key is given
    }
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
    showProblem("");
  } catch (error) {
    showProblem(`The service does not answer (${error.message}). What stands here may be old.`);
  }
  polling = false;
  timer = setTimeout(poll, POLL_MS);
}

function select(tab) {
  for (const one of document.querySelectorAll("[role=tab]")) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", chosen);
    one.tabIndex = chosen ? 0 : -1;
    byId(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  history.replaceState(null, "", tab.id === "tab-status" ? "#" : "#playground");
  poll();
}

for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = [...document.querySelectorAll("[role=tab]")].find((one) => one !== tab);
    other.focus();
    select(other);
  });
}
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  poll();
});
document.addEventListener("visibilitychange", poll);

const selectByAddress = () => select(byId(location.hash === "#playground" ? "tab-playground" : "tab-status"));
window.addEventListener("hashchange", selectByAddress);
selectByAddress();
