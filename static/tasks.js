// Draws tasks: a page of the list, and one task with all its fields. Elements that exist are changed in place, so that
// focus, selection and scroll position stay.

import {$, draw, icon, make, text} from "./dom.js";
import {ago, clock, dateTime, duration, every, language, number, parseTime, percent, span, t} from "./words.js";

const PREVIEW = 160;

function moment(time) {
  return make("time", {datetime: new Date(time).toISOString(), title: dateTime(time)}, ago(time));
}

export function drawTimes() {
  for (const element of document.querySelectorAll("time")) text(element, ago(Date.parse(element.dateTime)));
  for (const element of document.querySelectorAll("[data-since]")) text(element, duration(secondsSince(Number(element.dataset.since))));
}

const secondsSince = time => Math.max((Date.now() + clock.skew - time) / 1000, 0);

// How a task repeats, in words; a cron expression stays as it is written.
function repetition({repeat, timezone}) {
  return Number.isNaN(Number(repeat)) ? t("everyAt", {cron: repeat, zone: timezone ?? "UTC"}) : every(Number(repeat));
}

const repeats = ({repeat, canceled}) => repeat !== undefined && !canceled;
const isFinished = ({status}) => status === "Completed" || status === "Failed";

function badge(task) {
  const {status, canceled, error, run_at, progress} = task;
  const words = canceled && status === "Failed" && error === "canceled" ? "canceled" : canceled && status === "In Progress" ? "canceling" : `one ${status}`;
  const pill = make("span", {class: "badge", "data-status": status}, icon(status), t(words));
  const more = status === "In Progress" ? progress ? [percent(progress)] : [] : run_at ? [moment(parseTime(run_at))] : [];
  if (repeats(task)) {
    const what = isFinished(task) && run_at ? `${t("next_run")} · ${repetition(task)}` : repetition(task);
    more.unshift(make("span", {class: "repeats", title: what}, icon("repeat"), make("span", {class: "unseen"}, what)), " ");
  }
  return more.length ? [pill, " ", make("span", {class: "when"}, ...more)] : [pill];
}

// --- the list

const drawn = new Map();        // by id: the row, and the task as it was drawn

function drawRow(row, task, address) {
  const about = make("td", {role: "cell", class: "about"}, task.payload === undefined ? make("span", {class: "hint"}, t("nothing")) : make("code", {}, JSON.stringify(task.payload).slice(0, PREVIEW)));
  if (task.kind) about.prepend(make("span", {class: "kind"}, make("span", {class: "unseen"}, `${t("kind")} `), task.kind));
  if (task.error && task.error !== "canceled") about.append(make("span", {class: "why"}, task.error.trim().split("\n").at(-1).slice(0, PREVIEW)));
  const cells = [
    make("td", {role: "cell", class: "status"}, ...badge(task)), about,
    make("td", {role: "cell", class: "time"}, moment(parseTime(task.created_at))),
    make("td", {role: "cell", class: "time late"}, moment(parseTime(task.updated_at)))];
  if (!row.firstChild) row.append(make("td", {role: "cell", class: "id"}, make("a", {"data-go": "", "data-id": task.id}, `${task.id}`)));
  row.firstChild.firstChild.href = address(task.id);
  while (row.children.length > 1) row.lastChild.remove();
  row.append(...cells);
}

// What the list is limited to, in words.
export function describe({status, kind, q, created_after, created_before}) {
  return [
    status.map(each => t(each)).join(", ") || t("All"), ...kind.map(each => t("ofKind", {kind: each})), ...q ? [t("withText", {q})] : [],
    ...created_after ? [t("createdFrom", {time: dateTime(Date.parse(created_after))})] : [],
    ...created_before ? [t("createdUntil", {time: dateTime(Date.parse(created_before))})] : []].join(", ");
}

export function titleList(list, isLimited) {
  text($("list-title"), isLimited ? t("listSome", {statuses: describe(list)}) : t("listAll"));
}

// `address` gives a task's link; `none` is what to say where there is no task; `first` whether the table is empty.
// Returns whether all is drawn: with `hold` the rows that are there are brought up to date, but none comes, goes or moves.
export function drawList(tasks, {address, hold, none, first}) {
  $("list").removeAttribute("aria-busy");
  const ids = new Set(tasks.map(task => task.id));
  if (hold && (tasks.length !== drawn.size || tasks.some(({id}) => !drawn.has(id)))) {
    for (const task of tasks) if (drawn.has(task.id)) renew(task, address);
    return false;
  }
  for (const [id, {row}] of drawn) {
    if (!ids.has(id)) {
      if (row.contains(document.activeElement)) $("list-title").focus({preventScroll: true});
      row.remove();
      drawn.delete(id);
    }
  }
  let place = $("rows").firstChild;
  for (const task of tasks) {
    const row = renew(task, address);
    row === place ? place = place.nextSibling : $("rows").insertBefore(row, place);
  }
  $("table").hidden = !tasks.length;
  $("empty").hidden = Boolean(tasks.length);
  $("first").hidden = !first;
  text($("empty-text"), none);
  return true;
}

function renew(task, address) {
  const now = JSON.stringify(task) + address(task.id);
  const {row, as} = drawn.get(task.id) ?? {row: make("tr", {role: "row"})};
  if (now !== as) {
    drawRow(row, task, address);
    drawn.set(task.id, {row, as: now});
  }
  return row;
}

// --- one task

// Between two runs a task can be run at once, or never again.
export const waitsToRepeat = task => isFinished(task) && repeats(task);

const actions = {
  cancel: task => task.status === "New" || task.status === "In Progress" && !task.canceled || waitsToRepeat(task),
  retry: ({status, repeat}) => status === "Failed" || status === "Completed" && repeat !== undefined,
  delete: ({status}) => status !== "In Progress",
};

export function drawTask(id, task) {        // without `task`: it is not loaded yet, or does not exist
  text($("task-title"), t("task", {id}));
  for (const [name, possible] of Object.entries(actions)) {
    const button = $(name), hide = !task || !possible(task);
    if (hide && button === document.activeElement) $("task-title").focus();
    button.hidden = hide;
  }
  text($("cancel"), t(task && waitsToRepeat(task) ? "stopRepeating" : "cancel"));
  text($("retry"), t(task && waitsToRepeat(task) ? "runNow" : "retry"));
  $("task-body").hidden = !task;
  $("task-status").replaceChildren(...task ? badge({...task, progress: 0, run_at: null, repeat: undefined}) : []);
  if (!task) {
    drawAttempts([]);
    return $("texts").replaceChildren();
  }

  const {progress, status} = task, bar = $("task-progress");
  bar.hidden = !progress || status !== "In Progress";
  bar.firstElementChild.value = progress ?? 0;
  text(bar.lastElementChild, percent(progress ?? 0));

  const facts = {created: moment(parseTime(task.created_at)), updated: moment(parseTime(task.updated_at))};
  if (task.kind) facts.kind = make("a", {href: `?kind=${task.kind}`, "data-go": ""}, task.kind);
  if (repeats(task)) facts.repeat = repetition(task);
  if (task.run_at) facts[waitsToRepeat(task) ? "next_run" : "run_at"] = moment(parseTime(task.run_at));
  if (task.attempts || task.max_attempts) {
    facts.attempts = task.max_attempts ? t("attemptsOf", {n: number(task.attempts ?? 0), most: number(task.max_attempts)}) : number(task.attempts);
  }
  if (task.priority) facts.priority = new Intl.NumberFormat(language).format(task.priority);
  if (task.timeout) facts.timeout = span(task.timeout);
  if (task.idempotency_key) facts.idempotency_key = task.idempotency_key;
  const known = JSON.stringify(Object.entries(facts).map(([name, value]) => [id, name, value.dateTime ?? value.textContent ?? value]));
  if ($("facts").dataset.known !== known) $("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const shown = value.dateTime ? [value, make("span", {class: "hint"}, value.title)] : [value];
    return make("div", {}, make("dt", {}, t(name)), make("dd", {}, ...shown));
  }));
  $("facts").dataset.known = known;

  const texts = {};
  if (task.error) texts[status === "Failed" ? "error" : "lastError"] = task.error;
  for (const name of ["result", "payload"]) if (task[name] !== undefined) texts[name] = JSON.stringify(task[name], null, 2);
  for (const old of [...$("texts").children]) if (!(old.dataset.name in texts)) old.remove();
  let place = $("texts").firstChild;
  for (const [name, value] of Object.entries(texts)) {
    let part = $("texts").querySelector(`[data-name=${name}]`);
    if (!part) {
      part = make("div", {"data-name": name}, make("h3", {}, t(name)), make("pre", {tabindex: "0", role: "region", "aria-label": t(name)}));
    }
    part === place ? place = place.nextSibling : $("texts").insertBefore(part, place);
    text(part.lastChild, value);
  }
}

// --- the attempts of a task

// Of each outcome the icon and the words; without one the attempt runs.
const OUTCOMES = {
  completed: ["ok", "completed"], failed: ["bad", "failed"], retried: ["bad", "retried"], released: ["none", "released"],
  reclaimed: ["bad", "reclaimed"], canceled: ["none", "one canceled"], timed_out: ["bad", "timed_out"],
};
const attemptRows = new Map();      // by number: the row, and the attempt as it was drawn

// Shows in a bar which part of the whole time an attempt took.
function scale(row, start, end, first, last) {
  const whole = Math.max(last - first, 1), width = Math.max((end - start) / whole * 100, 1), bar = row.querySelector(".bar rect + rect");
  bar?.setAttribute("width", width);
  bar?.setAttribute("x", Math.min((start - first) / whole * 100, 100 - width));
}

function drawAttempt(row, {attempt, worker, started_at, ended_at, outcome, error}) {
  const cell = (name, ...children) => make("td", {role: "cell", class: name}, ...children);
  const [sign, words] = OUTCOMES[outcome] ?? ["In Progress", "running"], start = parseTime(started_at), end = ended_at && parseTime(ended_at);
  const long = ended_at ? duration((end - start) / 1000) : outcome ? "" : make("span", {"data-since": start}, duration(secondsSince(start)));
  const how = cell("outcome", make("span", {class: "how", "data-kind": sign}, icon(sign), t(words)));
  if (error) {
    const last = error.trim().split("\n").at(-1), isLong = error.trim() !== last || last.length > PREVIEW;
    how.append(isLong ? make("details", {class: "why"}, make("summary", {}, last.slice(0, PREVIEW)), make("pre", {tabindex: "0"}, error)) : make("span", {class: "why"}, error));
  }
  const bar = draw("svg", {class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true"},
    draw("rect", {class: "track", width: 100, height: 6}), draw("rect", {height: 6}));
  row.replaceChildren(
    cell("number", number(attempt)), how, cell("time", ...started_at ? [moment(start)] : []),
    cell("took", ...started_at ? [long, bar] : []), cell("by", worker ?? ""));
}

export function drawAttempts(attempts) {
  $("attempts").hidden = !attempts.length;
  const times = attempts.flatMap(({started_at, ended_at}) => [started_at, ended_at]).filter(Boolean).map(parseTime);
  if (attempts.some(({outcome}) => !outcome)) times.push(Date.now() + clock.skew);
  const [first, last] = [Math.min(...times), Math.max(...times)];
  for (const [key, {row}] of attemptRows) {
    if (attempts.some(({attempt}) => attempt === key)) continue;
    row.remove();
    attemptRows.delete(key);
  }
  for (const attempt of attempts) {
    const {row, as} = attemptRows.get(attempt.attempt) ?? {row: make("tr", {role: "row"})}, now = JSON.stringify(attempt);
    if (now !== as) drawAttempt(row, attempt);
    scale(row, parseTime(attempt.started_at), attempt.ended_at ? parseTime(attempt.ended_at) : last, first, last);
    attemptRows.set(attempt.attempt, {row, as: now});
    if (!row.parentNode) $("attempt-rows").append(row);
  }
}
