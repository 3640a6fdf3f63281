// The overview: counts, the chart, and the status of the service. All of it comes from /metrics.

import {$, draw, icon, make, text} from "./dom.js";
import {number, rate, span, t, timeOfDay} from "./words.js";

export const STATUSES = ["New", "In Progress", "Completed", "Failed"];

// --- the tiles: counts that are also the filter

const tiles = new Map();

// `selected`: none for all tasks, null where no list is shown at all.
export function drawTiles(selected, address) {
  for (const status of ["All", ...STATUSES]) {
    if (!tiles.has(status)) {
      const count = make("strong", {}, "–");
      const link = make("a", {class: "tile", "data-go": "", "data-status": status}, make("span", {}, icon(status), t(status)), count);
      $("tiles").append(link);
      tiles.set(status, {link, count});
    }
    const {link} = tiles.get(status), chosen = selected && (status === "All" ? !selected.length : selected.includes(status));
    link.href = address(status === "All" || chosen ? [] : [status]);
    chosen ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  }
}

function drawCounts(tasks) {
  const total = tasks && Object.values(tasks).reduce((sum, count) => sum + count, 0);
  for (const [status, {count}] of tiles) text(count, tasks ? number(status === "All" ? total : tasks[status]) : "–");
}

// --- the chart: tasks finished per second. The service counts them over its last seconds, so the chart is right even
// where a huge table is counted as a whole only now and then.

const BIN = 5000, BINS = 60, WIDTH = 10, HEIGHT = 96, WINDOW = 10_000;
const opened = Date.now(), bins = new Map(), total = {Completed: 0, Failed: 0};
let counted, looked = 0;

function count(tasks) {         // deleting and retrying lower the counts, so `total` is what finished at least
  for (const status in total) total[status] += counted ? Math.max(tasks[status] - counted[status], 0) : 0;
  counted = tasks;
}

function note(rates, now) {     // of this bin, and of those before it that nobody looked at and that the rates tell of as well
  const bin = Math.floor(now / BIN);
  for (let n = Math.max(Math.floor(looked / BIN) + 1, bin - WINDOW / BIN + 1); n < bin; n++) bins.set(n, rates);
  bins.set(bin, rates);
  looked = now;
}

function drawChart(rates, now) {
  note(rates, now);
  const first = Math.floor(now / BIN) - BINS + 1;
  for (const bin of bins.keys()) if (bin < first) bins.delete(bin);
  const most = status => Math.max(...Array.from(bins.values(), each => each[status]), 0);
  const up = most("Completed"), unit = (HEIGHT - 2) / Math.max(up + most("Failed"), 0.001), line = up || most("Failed") ? 1 + up * unit : HEIGHT - 1;
  const bars = [draw("path", {class: "axis", d: `M0 ${line}H${BINS * WIDTH}`})];
  for (const [bin, {Completed, Failed}] of bins) {
    const x = (bin - first) * WIDTH + 1;
    for (const [kind, y, height] of [["Completed", line - Completed * unit, Completed * unit], ["Failed", line, Failed * unit]]) {
      if (height > 0) bars.push(draw("rect", {class: kind, x, y: height < 1 && kind === "Completed" ? line - 1 : y, width: WIDTH - 2, height: Math.max(height, 1)}));
    }
  }
  $("chart").replaceChildren(...bars);
  text($("rate"), t("rate", {rate: rate(rates.Completed + rates.Failed)}));
  const peak = Math.max(...Array.from(bins.values(), each => each.Completed + each.Failed), 0);
  text($("peak"), peak ? t("peak", {rate: rate(peak)}) : "");
  const since = timeOfDay(opened);
  text($("chart-sum"), total.Completed + total.Failed ? t("chartSum", {since, completed: number(total.Completed), failed: number(total.Failed)}) : peak ? "" : t("chartNone", {since}));
}

// --- the status of the service. There is no list of workers, so their state is inferred: a worker with a free slot
// takes a ready task within a moment.

const PATIENCE = 10;        // seconds
const moved = {key: "", at: Date.now()};

function workers({tasks, oldest_ready_seconds, task_events_total, finished_per_second: rates}, now) {
  const busy = tasks["In Progress"], key = [busy, tasks.Completed, tasks.Failed, task_events_total?.claimed].join();
  if (key !== moved.key || rates?.Completed + rates?.Failed > 0) Object.assign(moved, {key, at: now});
  const waits = oldest_ready_seconds[""] > PATIENCE;
  if (waits && now - moved.at > PATIENCE * 1000) return busy ? ["none", t("busy", {n: number(busy)})] : ["bad", t("nobody")];
  if (busy) return ["ok", t("working", {n: number(busy)})];
  return ["none", waits ? t("watching") : t("idle")];
}

function drawStates(figures, now) {
  const {tasks, database_up, rabbitmq_up, oldest_ready_seconds, info} = figures, unknown = ["none", t("unknown")];
  const oldest = oldest_ready_seconds?.[""];
  const states = {
    oldest: oldest === undefined ? unknown : oldest ? ["none", span(oldest)] : ["none", t("nobodyWaits")],
    database: database_up ? database_up[""] ? ["ok", t("answers")] : ["bad", t("away")] : unknown,
    rabbitmq: !database_up ? unknown : !rabbitmq_up ? ["none", t("unused")] : rabbitmq_up[""] ? ["ok", t("connected")] : ["bad", t("away")],
    workers: tasks ? workers(figures, now) : unknown,
  };
  for (const [name, [kind, words]] of Object.entries(states)) {
    let row = $(`state-${name}`);
    if (!row) {
      row = make("div", {id: `state-${name}`}, make("dt", {}, t(name)), make("dd"));
      $("states").append(row);
    }
    if (row.dataset.kind !== kind || row.lastChild.textContent !== words) {
      row.dataset.kind = kind;
      row.lastChild.replaceChildren(icon(kind), words);
    }
  }
  if (info) text($("version"), `${t("title")} ${Object.keys(info)[0]}`);
}

// `figures` are those of api.js; {} when they could not be had. Returns whether anything has changed.
export function drawFigures(figures, now = Date.now()) {
  const {tasks = {}, finished_per_second: rates = {}} = figures, before = JSON.stringify(counted);
  if (STATUSES.every(status => status in tasks)) {       // one that takes too long to count is left out
    count(tasks);
    drawCounts(tasks);
  }
  if (Object.keys(total).every(status => status in rates)) drawChart(rates, now);
  drawStates(figures, now);
  return JSON.stringify(counted) !== before || rates.Completed + rates.Failed > 0;
}
