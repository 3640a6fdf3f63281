// The overview: counts, the chart, and the status of the service. It comes from /metrics; what finished before this page
// was opened, from /finished.

import {finished, session} from "./api.js";
import {$, draw, icon, make, text} from "./dom.js";
import {clock, number, parseTime, rate, span, t, timeOfDay} from "./words.js";

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

// How many tasks have one of the statuses, undefined where the service has not counted them.
export const countOf = statuses => counted && statuses.reduce((sum, status) => sum + counted[status], 0);

// --- the chart: tasks finished per second. Of the last minutes the service tells the rate with each look, so the chart is
// right even where a huge table is counted as a whole only now and then. An hour and a day are counted in the table.

const BIN = 5000, BINS = 60, WIDTH = 600, HEIGHT = 96, WINDOW = 10_000;
const PARTS = {300: BINS, 3600: 60, 86400: 96};        // of a time range in seconds
const KEY = "task-manager-range", REFRESH = {3600: 15_000, 86400: 60_000};
const bins = new Map(), total = {Completed: 0, Failed: 0};
const counts = new Map();       // of each time range: the answer of /finished, and when it came
let opened = Date.now(), counted, looked = 0, range = session(data => data.getItem(KEY));
let filled = false;
if (!(range in PARTS)) range = "300";

function count(tasks) {         // deleting and retrying lower the counts, so `total` is what finished at least
  for (const status in total) total[status] += counted ? Math.max(tasks[status] - counted[status], 0) : 0;
  counted = tasks;
}

function note(rates, now) {     // of this bin, and of those before it that nobody looked at and that the rates tell of as well
  const bin = Math.floor(now / BIN);
  if (now - looked > 2 * WINDOW) counts.delete("300");      // it was hidden: the service is asked what finished meanwhile
  for (let n = Math.max(Math.floor(looked / BIN) + 1, bin - WINDOW / BIN + 1); n < bin; n++) bins.set(n, rates);
  bins.set(bin, rates);
  for (const old of bins.keys()) if (old <= bin - BINS) bins.delete(old);
  looked = now;
}

// `parts`: the rates in each part of the time, oldest first; undefined where they are not known.
function drawBars(parts) {
  const width = WIDTH / parts.length, most = status => Math.max(...parts.map(rates => rates?.[status] ?? 0));
  const up = most("Completed"), unit = (HEIGHT - 2) / Math.max(up + most("Failed"), 0.00001), line = up || most("Failed") ? 1 + up * unit : HEIGHT - 1;
  const bars = [draw("path", {class: "axis", d: `M0 ${line}H${WIDTH}`})];
  for (const [part, rates] of parts.entries()) {
    for (const status of rates ? ["Completed", "Failed"] : []) {
      const height = rates[status] * unit, bar = Math.max(height, 1);
      if (height > 0) bars.push(draw("rect", {class: status, x: part * width + 1, y: status === "Completed" ? line - bar : line, width: width - 2, height: bar}));
    }
  }
  $("chart").replaceChildren(...bars);
  const peak = Math.max(...parts.map(rates => rates ? rates.Completed + rates.Failed : 0));
  text($("peak"), peak ? t("peak", {rate: rate(peak)}) : "");
  return peak;
}

function drawLive(now) {
  const last = Math.floor(now / BIN), peak = drawBars(Array.from({length: BINS}, (_, part) => bins.get(last - BINS + 1 + part)));
  const rates = bins.get(last), since = timeOfDay(opened);
  text($("rate"), rates ? t("rate", {rate: rate(rates.Completed + rates.Failed)}) : "");
  text($("chart-sum"), total.Completed + total.Failed ? t("chartSum", {since, completed: number(total.Completed), failed: number(total.Failed)}) : peak ? "" : t("chartNone", {since}));
}

// --- a longer time than the page has been open

// The rates in each part of the time of an answer. A part that would cost too much to count is null in there.
function ratesOf({seconds, completed, failed}) {
  const span = seconds / completed.length;
  return completed.map((count, part) => count === null || failed[part] === null ? undefined : {Completed: count / span, Failed: failed[part] / span});
}

const sum = list => list.reduce((all, count) => all + count, 0);

function drawCounted() {
  const {answer} = counts.get(range) ?? {};
  text($("rate"), "");
  if (!answer) {
    drawBars(Array.from({length: BINS}));
    return text($("chart-sum"), "");
  }
  const [completed, failed] = [sum(answer.completed), sum(answer.failed)];
  drawBars(ratesOf(answer));
  text($("rate"), t("mean", {rate: rate((completed + failed) / answer.seconds)}));
  const gap = answer.completed.includes(null) || answer.failed.includes(null) ? ` ${t("chartGaps")}` : "";
  text($("chart-sum"), t("chartCounted", {completed: number(completed), failed: number(failed)}) + gap);
}

// What finished in the last minutes, in which this page was not open yet, or hidden.
function fillBins(answer) {
  const since = parseTime(answer.since) - clock.skew;
  if (!filled) {
    opened = since;
    total.Completed += sum(answer.completed);
    total.Failed += sum(answer.failed);
  }
  filled = true;
  for (const [part, rates] of ratesOf(answer).entries()) {
    const bin = Math.floor(since / BIN) + part;
    if (rates && !bins.has(bin)) bins.set(bin, rates);
  }
}

// What finished within the chosen time, unless it was read a moment ago; of the last minutes once.
export async function readFinished() {
  const chosen = range, {at} = counts.get(chosen) ?? {};
  if (at && !(Date.now() - at > REFRESH[chosen])) return;
  counts.set(chosen, {...counts.get(chosen), at: Date.now()});
  try {
    const answer = await finished(chosen, PARTS[chosen]);
    counts.set(chosen, {answer, at: Date.now()});
    if (chosen === "300") fillBins(answer);
    if (chosen === range) chosen === "300" ? drawLive(Date.now()) : drawCounted();
  } catch {         // the page says what is wrong by its other requests, and this one is made again
    counts.delete(chosen);
  }
}

export function rangeForm() {
  const field = [...$("ranges").querySelectorAll("input")].find(({value}) => value === range);
  field.checked = true;
  const choose = ({target}) => {
    range = target.value;
    session(data => data.setItem(KEY, range));
    text($("chart-from"), t(`ago${range}`));
    range === "300" ? drawLive(Date.now()) : drawCounted();
    readFinished();
  };
  $("ranges").addEventListener("change", choose);
  text($("chart-from"), t(`ago${range}`));
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
  if (Object.keys(total).every(status => status in rates)) {
    note(rates, now);
    if (range === "300") drawLive(now);
  }
  drawStates(figures, now);
  return JSON.stringify(counted) !== before || rates.Completed + rates.Failed > 0;
}
