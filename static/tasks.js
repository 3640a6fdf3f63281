// Draws tasks: a page of the list, and one task with all its fields. Elements that exist are changed in place, so that
// focus, selection and scroll position stay.

import {$, icon, make, text} from "./dom.js";
import {ago, dateTime, language, number, parseTime, percent, span, t} from "./words.js";

const PREVIEW = 160;

function moment(time) {
  return make("time", {datetime: new Date(time).toISOString(), title: dateTime(time)}, ago(time));
}

export function drawTimes() {
  for (const element of document.querySelectorAll("time")) text(element, ago(Date.parse(element.dateTime)));
}

function badge({status, canceled, run_at, progress}) {
  const words = canceled && status === "Failed" ? "canceled" : canceled && status === "In Progress" ? "canceling" : `one ${status}`;
  const pill = make("span", {class: "badge", "data-status": status}, icon(status), t(words));
  if (status === "New" && run_at) return [pill, " ", moment(parseTime(run_at))];
  return status === "In Progress" && progress ? [pill, ` ${percent(progress)}`] : [pill];
}

// --- the list

const drawn = new Map();        // by id: the row, and the task as it was drawn

function drawRow(row, task, address) {
  const about = make("td", {role: "cell", class: "about"}, task.payload === undefined ? make("span", {class: "hint"}, t("nothing")) : make("code", {}, JSON.stringify(task.payload).slice(0, PREVIEW)));
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

export function titleList(statuses) {
  text($("list-title"), statuses.length ? t("listSome", {statuses: statuses.map(status => t(status)).join(", ")}) : t("listAll"));
}

// `address` gives a task's link; `statuses` are those that the list is limited to. Returns whether all is drawn: with
// `hold` the rows that are there are brought up to date, but none comes, goes or moves.
export function drawList(tasks, statuses, after, address, hold) {
  titleList(statuses);
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
  $("first").hidden = Boolean(after || statuses.length);
  text($("empty-text"), t(after ? "emptyPage" : statuses.length ? "emptySome" : "emptyAll"));
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

const actions = {
  cancel: ({status, canceled}) => status === "New" || status === "In Progress" && !canceled,
  retry: ({status}) => status === "Failed",
  delete: ({status}) => status !== "In Progress",
};

export function drawTask(id, task) {        // without `task`: it is not loaded yet, or does not exist
  text($("task-title"), t("task", {id}));
  for (const [name, possible] of Object.entries(actions)) {
    const button = $(name), hide = !task || !possible(task);
    if (hide && button === document.activeElement) $("task-title").focus();
    button.hidden = hide;
  }
  $("task-body").hidden = !task;
  $("task-status").replaceChildren(...task ? badge({...task, progress: 0, run_at: null}) : []);
  if (!task) return $("texts").replaceChildren();

  const {progress, status} = task, bar = $("task-progress");
  bar.hidden = !progress || status !== "In Progress";
  bar.firstElementChild.value = progress ?? 0;
  text(bar.lastElementChild, percent(progress ?? 0));

  const facts = {created: moment(parseTime(task.created_at)), updated: moment(parseTime(task.updated_at))};
  if (task.run_at) facts.run_at = moment(parseTime(task.run_at));
  if (task.attempts || task.max_attempts) {
    facts.attempts = task.max_attempts ? t("attemptsOf", {n: number(task.attempts ?? 0), most: number(task.max_attempts)}) : number(task.attempts);
  }
  if (task.priority) facts.priority = new Intl.NumberFormat(language).format(task.priority);
  if (task.timeout) facts.timeout = span(task.timeout);
  if (task.idempotency_key) facts.idempotency_key = task.idempotency_key;
  const known = JSON.stringify([id, ...Object.keys(facts).map(name => task[name] ?? task[`${name}_at`])]);
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
