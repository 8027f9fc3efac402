// The live page: takes the server's events and puts them on the page. All text goes in as text, never as markup.

const SILENCE_MS = 8000; // without an event for this long the page says that it is not live
const RETRY_MS = 3000;
const HOUR = 3600;
const LEAST_SPAN = 300; // seconds that a chart shows at least

const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const number = (value) => (value && value < 100 ? tenths : whole).format(value);
const figure = (value) => (value === null ? "–" : number(value));
const perRound = (value) => (value ? value.toFixed(2) : "–");
const count = (number, noun) => `${whole.format(number)} ${noun}${number === 1 ? "" : "s"}`;
const hours = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const time = (seconds) => hours.format(seconds * 1000);

let account = {};
let now = 0; // the server's clock, Unix seconds

// ---- words

function clock(seconds) {
  const rest = [Math.floor(seconds / 60) % 60, seconds % 60].map((part) => String(part).padStart(2, "0"));
  const hours = Math.floor(seconds / 3600);
  return hours ? `${hours}:${rest.join(":")}` : `${Number(rest[0])}:${rest[1]}`;
}

function ago(seconds) {
  if (seconds < 2) return "now";
  if (seconds < 120) return `${Math.round(seconds)} s ago`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

const size = (bytes) => (bytes ? `${whole.format(Math.round(bytes / 2 ** 30))} GB` : "");
const joined = (...parts) => parts.filter(Boolean).join(" · ");

// ---- elements

function make(tag, className = "", attributes = {}) {
  const element = document.createElement(tag);
  element.className = className;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function writeState(element, state) {
  write(element, state);
  element.dataset.state = state;
}

// Makes the children of `parent` those of `items`, in their order; children that stay keep focus and selection.
function list(parent, items, key, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = known.get(name);
    known.delete(name);
    if (!child) {
      child = create(item);
      child.dataset.key = name;
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

// The same, or a line that says that there is nothing.
function listOr(nothing, parent, items, key, create, update) {
  if (items.length) return list(parent, items, (item) => item[key], create, update);
  list(parent, [nothing], () => "", () => make("li", "empty"), write);
}

// A child of `element` by its class.
const part = (element, name) => element.getElementsByClassName(name)[0];

// ---- what stands at the top

function showTotals(totals) {
  const tiles = [
    { label: "tokens/s", value: figure(totals.tokens_per_second) },
    {
      label: totals.workers === 1 ? "worker" : "workers",
      value: whole.format(totals.workers),
      more: totals.gone ? `${totals.gone} gone` : "",
      wrong: true,
    },
    {
      label: "batches open",
      value: whole.format(totals.running_batches + totals.queued_batches),
      more: `of ${whole.format(totals.batches)}`,
    },
    { label: "running", value: whole.format(totals.running) },
    { label: "queued", value: whole.format(totals.queued) },
  ];
  if (totals.watt_hours_per_million !== null)
    tiles.push({ label: "Wh per million tokens", value: figure(totals.watt_hours_per_million) });
  const create = () => {
    const tile = make("div");
    const value = make("dd");
    value.append(make("span", "value"), " ", make("small"));
    tile.append(make("dt"), value);
    return tile;
  };
  list($("totals"), tiles, (tile) => tile.label.replace(/s$/, ""), create, (element, tile) => {
    write(element.querySelector("dt"), tile.label);
    write(part(element, "value"), tile.value);
    const more = element.querySelector("small");
    write(more, tile.more ?? "");
    more.className = tile.wrong ? "wrong" : "";
  });
  note("batches-note", totals.batches_listed, totals.batches);
  note("workers-note", totals.workers_listed, totals.workers + totals.gone);
  document.title = `${figure(totals.tokens_per_second)} tokens/s · draftmill`;
}

// ---- batches

function createBatch() {
  const row = make("li");
  const what = make("div", "what");
  what.append(make("div", "name"), make("div", "about"));
  const progress = make("div", "progress");
  const figures = make("div", "figures");
  figures.append(make("span", "done"), make("span", "running"), make("a", "failed"), make("span", "left"));
  progress.append(make("progress"), figures);
  const end = make("div", "end");
  end.append(make("span", "state"));
  row.append(what, progress, end);
  return row;
}

function timeOf(batch, open) {
  if (batch.complete) return `submitted ${ago(now - batch.created)}`;
  return open && batch.seconds_left !== null ? `${clock(batch.seconds_left)} left` : "";
}

function updateBatch(row, batch) {
  const name = batch.source || batch.batch;
  const open = !batch.complete && batch.state !== "cancelled";
  write(part(row, "name"), name);
  const priority = batch.priority !== "normal" && `${batch.priority} priority`;
  write(part(row, "about"), joined(batch.batch, batch.pair, batch.user, priority));
  const bar = row.querySelector("progress");
  bar.max = Math.max(1, batch.lines);
  bar.value = batch.ended;
  bar.setAttribute("aria-label", `Progress of ${name}`);
  write(part(row, "done"), `${whole.format(batch.ended)} of ${whole.format(batch.lines)}`);
  write(part(row, "running"), batch.running ? `${whole.format(batch.running)} running` : "");
  const failed = part(row, "failed");
  write(failed, batch.failed ? `${whole.format(batch.failed)} failed` : "");
  failed.hidden = !batch.failed;
  failed.href = failuresOf(batch.batch);
  write(part(row, "left"), timeOf(batch, open));
  writeState(part(row, "state"), batch.state);
  let button = row.querySelector("button");
  if (open && account.token && !button) {
    button = make("button", "danger");
    button.textContent = "Cancel";
    button.addEventListener("click", () => askToCancel(row.batch));
    part(row, "end").append(button);
  }
  if (button) {
    button.hidden = !open;
    button.setAttribute("aria-label", `Cancel ${name}`);
  }
  row.batch = batch;
}

function showBatches(batches) {
  const nothing = "No batches. Make one: draftmill submit prompts.jsonl";
  listOr(nothing, $("batches"), batches, "batch", createBatch, updateBatch);
}

// Of how many batches or workers only the first are listed.
function note(id, shown, all) {
  write($(id), all > shown ? `${shown} of ${whole.format(all)}` : "");
}

function askToCancel(batch) {
  const left = batch.lines - batch.ended;
  const loss = `${count(left, "line")} without a result will not run. What has a result keeps it.`;
  write($("confirm-text"), `${batch.source || batch.batch}: ${loss} This cannot be undone.`);
  write($("confirm-error"), "");
  $("confirm").dataset.batch = batch.batch;
  $("confirm").showModal();
}

async function cancel() {
  const path = `batches/${encodeURIComponent($("confirm").dataset.batch)}/cancel`;
  $("confirm-yes").disabled = true;
  try {
    const answer = await fetch(path, { method: "POST", headers: { "X-Draftmill-Token": account.token } });
    if (answer.ok) $("confirm").close();
    else write($("confirm-error"), (await answer.json()).error);
  } catch {
    write($("confirm-error"), "The dashboard does not answer; try again.");
  }
  $("confirm-yes").disabled = false;
}

// ---- workers

const FIGURES = [
  ["In flight", (worker) => whole.format(worker.in_flight)],
  ["Tokens/s", (worker) => figure(worker.tokens_per_second)],
  ["Tokens/round", (worker) => perRound(worker.tokens_per_round)],
  ["Heartbeat", (worker) => ago(worker.age)],
  ["Power", (worker) => power(worker)],
];

function power(worker) {
  if (worker.power_watts === null) return "–";
  const cost = worker.watt_hours_per_million;
  return joined(`${figure(worker.power_watts)} W`, cost !== null && `${figure(cost)} Wh/M`);
}

function createWorker() {
  const row = make("tr", "", { role: "row" });
  const head = make("th", "", { role: "rowheader", scope: "row" });
  head.append(make("div", "name"), make("div", "about"));
  const state = make("td", "", { role: "cell" });
  state.append(make("span", "state"), make("div", "about reason"));
  row.append(head, state, make("td", "pair", { role: "cell" }));
  for (const [label] of FIGURES) row.append(make("td", "number", { role: "cell", "data-label": label }));
  return row;
}

function updateWorker(row, worker) {
  const heat = ["serious", "critical"].includes(worker.thermal) && `thermal ${worker.thermal}`;
  write(part(row, "name"), worker.name);
  const version = worker.version && `v${worker.version}`;
  write(part(row, "about"), joined(worker.chip, size(worker.memory), worker.os, version));
  writeState(part(row, "state"), worker.state);
  write(part(row, "reason"), joined(worker.reason, heat));
  write(part(row, "pair"), worker.pair);
  FIGURES.forEach(([, text], index) => write(row.getElementsByClassName("number")[index], text(worker)));
}

function showWorkers(workers) {
  list(document.querySelector("#workers tbody"), workers, (worker) => worker.name, createWorker, updateWorker);
}

// ---- failures

const failuresOf = (batch) => `failures?batch=${encodeURIComponent(batch)}`;

function createFailure() {
  const row = make("li");
  const about = make("div", "about");
  about.append(make("span", "where"), " · ", make("a", "all"));
  row.append(make("div", "reason"), about);
  return row;
}

function updateFailure(row, failure) {
  write(part(row, "reason"), failure.reason);
  write(part(row, "where"), joined(time(failure.at), failure.custom_id, failure.worker));
  write(part(row, "all"), failure.batch);
  part(row, "all").href = failuresOf(failure.batch);
}

function showFailures(failures) {
  listOr("None within a day.", $("failures"), failures, "id", createFailure, updateFailure);
}

// ---- charts

const upTo = (most) => [0, Math.max(1, most * 1.1)];
const CHARTS = [
  { title: "Tokens per second", colour: "--tokens", text: figure, range: upTo },
  { title: "Tokens per round", colour: "--rounds", text: perRound, range: (most) => [1, Math.max(2, most * 1.05)] },
  { title: "Jobs queued", colour: "--queue", text: whole.format, range: upTo },
];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (value) => (value >= 10000 ? `${whole.format(value / 1000)}k` : whole.format(value));
let columns = [[], [], [], []];
let charts = [];

// One chart of a column, with a caption that tells the latest value, or the one below the pointer.
function drawChart({ title, colour: line, text, range }, column) {
  const frame = make("figure");
  const caption = make("figcaption");
  const name = make("span");
  const value = make("output");
  const place = make("div", "chart", { role: "img" });
  name.textContent = title;
  caption.append(name, value);
  frame.append(caption, place);
  $("charts").append(frame);

  function tell(pointed) {
    const last = columns[0].length - 1;
    if (last < 0) return;
    const at = Math.min(pointed ?? last, last);
    write(value, joined(at < last && time(columns[0][at]), text(columns[column][at])));
    place.setAttribute("aria-label", `${title} over the last hour, now ${text(columns[column][last])}`);
  }

  const axis = {
    stroke: () => colour("--muted"),
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
  };
  const options = {
    width: place.clientWidth,
    height: place.clientHeight,
    padding: [6, 8, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: "hour" } },
    scales: {
      x: { range: (_, first, last) => [Math.min(first ?? now, (last ?? now) - LEAST_SPAN), last ?? now] },
      y: { range: (_, __, most) => range(most ?? 0) },
    },
    axes: [
      { ...axis, space: 70, size: 24, values: (_, ticks) => ticks.map(time) },
      { ...axis, space: 28, size: 44, values: (_, ticks) => ticks.map(short) },
    ],
    series: [{}, { stroke: () => colour(line), width: 2, points: { show: false } }],
    hooks: { setCursor: [(plot) => tell(plot.cursor.idx)] },
  };
  const plot = new uPlot(options, [columns[0], columns[column]], place);
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: place.clientHeight })).observe(place);
  const show = () => {
    plot.setData([columns[0], columns[column]]);
    tell(plot.cursor.idx);
  };
  return { plot, show };
}

function addSample(sample) {
  columns.forEach((column, index) => column.push(sample[index]));
  while (columns[0][0] < sample[0] - HOUR) columns.forEach((column) => column.shift());
  for (const chart of charts) chart.show();
}

// ---- the server's events

const HANDLERS = {
  history: (history) => {
    columns = history;
    for (const chart of charts) chart.show();
  },
  sample: addSample,
  totals: showTotals,
  batches: showBatches,
  workers: showWorkers,
  failures: showFailures,
  trouble: (text) => {
    $("trouble").hidden = !text;
    write($("trouble"), text ?? "");
  },
  now: (seconds) => {
    now = seconds;
  },
};

let heard = 0; // when the last event came, 0 before the first
let broken = false;

function listen() {
  const source = new EventSource("events");
  for (const [name, handle] of Object.entries(HANDLERS))
    source.addEventListener(name, (event) => {
      heard = performance.now();
      broken = false;
      handle(JSON.parse(event.data));
      showConnection();
    });
  source.onerror = async () => {
    broken = true;
    showConnection();
    if (source.readyState !== EventSource.CLOSED) return; // else the browser tries again by itself
    const answer = await fetch("session").catch(() => null);
    if (answer?.status === 401) location.reload();
    else setTimeout(listen, RETRY_MS);
  };
}

function showConnection() {
  const live = heard && !broken && performance.now() - heard < SILENCE_MS;
  const element = $("connection");
  element.dataset.state = live ? "live" : heard ? "lost" : "waiting";
  write(element, live ? "live" : heard ? `no news since ${time(now)}` : "connecting");
}

async function start() {
  account = await (await fetch("session")).json();
  document.body.classList.toggle("may-cancel", Boolean(account.token));
  $("account").hidden = !account.token;
  write($("user"), account.user ?? "");
  const readOnly = "Read-only. Started with --key-file, the dashboard lets those who sign in cancel batches.";
  write($("footer"), account.token ? "" : readOnly);
  $("confirm-yes").addEventListener("click", cancel);
  charts = CHARTS.map((chart, index) => drawChart(chart, index + 1));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => charts.forEach(({ plot }) => plot.redraw()));
  listen();
  setInterval(showConnection, 1000);
}

start();
