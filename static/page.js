// The page: it shows what its address names, and refreshes it. `?task=17` is a task, anything else a page of the list:
// `?status=New&after=950`. A refresh is two requests: the metrics, and, with its ETag, what is shown. The next one comes
// soon when something has changed, later and later when not, and not at all while the page is hidden.

import {ask, figures, Problem, read, recall, token, Unreachable, whole} from "./api.js";
import {$, text} from "./dom.js";
import {drawFigures, drawTiles, STATUSES} from "./figures.js";
import {askToken, confirmDelete, createForm, refusal, tokenAccepted, tokenForm, words} from "./forms.js";
import {drawList, drawTask, drawTimes, titleList} from "./tasks.js";
import {errorText, t, timeOfDay, translate} from "./words.js";

const PAGE = 50, SOON = 1000, LATE = 10_000, DOWN = 4000;      // milliseconds

// --- the address

let here;

function parse(search) {
  const query = new URLSearchParams(search), id = name => /^[1-9]\d{0,18}$/.test(query.get(name)) && BigInt(query.get(name)) < 1n << 63n ? query.get(name) : null;
  return {status: STATUSES.filter(status => query.getAll("status").includes(status)), after: id("after"), task: id("task")};
}

function address({status = [], after, task}) {
  const query = new URLSearchParams(status.map(each => ["status", each]));
  if (after) query.set("after", after);
  if (task) query.set("task", task);
  return `${query}` ? `?${query}` : ".";
}

function listPath({status, after}, order = "desc") {
  const query = new URLSearchParams([...status.map(each => ["status", each]), ["order", order], ["limit", PAGE]]);
  if (after) query.set("after", after);
  return `tasks?${query}`;
}

function go(href) {
  if (new URL(href, location.href).href !== location.href) history.pushState(null, "", href);
  arrive(true);
}

function arrive(focus) {
  const from = here?.task;
  here = parse(location.search);
  const {status, task} = here;
  drawTiles(task ? null : status, status => address({status}));
  for (const id of ["overview", "list"]) $(id).hidden = Boolean(task);
  $("shown").dataset.view = task ? "task" : status.length ? "some" : "all";
  $("task").hidden = !task;
  text($("task-error"), "");
  text($("list-error"), "");
  drawn = null;
  pending = false;
  const before = recall(task ? `tasks/${task}` : listPath(here));
  if (task) {
    drawTask(task);
    $("back").href = address({...here, task: null});
    text($("back"), t(status.length || here.after ? "backTo" : "back"));
    document.title = `${t("task", {id: task})} · ${t("title")}`;
    if (focus) scrollTo(0, 0);
    if (focus) $("task-title").focus({preventScroll: true});
  } else {
    $("list").setAttribute("aria-busy", "true");
    titleList(status);
    drawPager({});
    // While the server does not answer, an empty list is better than tasks that were not asked for.
    if (trouble && !before) for (const id of ["table", "empty"]) $(id).hidden = true;
    document.title = [...status.map(each => t(each)), t("title")].join(" · ");
    const row = from && $("rows").querySelector(`[data-id="${from}"]`), {activeElement} = document;
    if (row) row.focus();
    else if (focus && (here.after || activeElement === document.body || !activeElement.getClientRects().length)) $("list-title").focus();
  }
  if (before) draw(before);
  say("");
  look();
}

// --- refreshing

let timer, turn = 0, pause = SOON, paused = false, drawn, pending, answered = Date.now(), trouble = null;

async function look() {
  clearTimeout(timer);
  const mine = ++turn, used = token.get(), {task} = here;
  if (document.hidden) return;
  const [counts, view] = await Promise.allSettled([figures(), read(task ? `tasks/${task}` : listPath(here))]);
  if (mine !== turn) return;
  const errors = [counts.reason, view.reason].filter(Boolean), status = view.reason?.status;
  for (const error of errors) if (!(error instanceof Problem || error instanceof Unreachable)) console.error(error);
  const locked = errors.find(refusal);
  if (locked) {
    tell();
    if (used === token.get()) askToken(used ? refusal(locked) : "");
    return;
  }
  const down = errors.find(error => !error.status || error.status >= 500);
  if (!(down instanceof Unreachable)) answered = Date.now();
  if (!(down instanceof Unreachable)) tokenAccepted();
  tell(down);
  const moved = drawFigures(counts.value ?? {});
  const changed = view.value && view.value !== drawn;
  if (changed) draw(view.value, !here.after && drawn && inHand());
  else release();
  if (status === 404 && task) gone(t("missing", {id: task}));
  else if (status < 500) {
    text($("list-error"), words(view.reason));
    $("list").removeAttribute("aria-busy");
  }
  drawTimes();
  if (paused) return;
  pause = down ? Math.min(pause * 1.5, DOWN) : moved || changed ? SOON : Math.min(pause * 1.5, LATE);
  timer = setTimeout(look, pause);
}

function lookNow() {
  pause = SOON;
  return look();
}

// While the user points at a row, has the focus there or selects text, no row may move.
let pointed = false;

function inHand() {
  const rows = $("rows"), selection = getSelection();
  return pointed || rows.querySelector(":focus-visible") || !selection.isCollapsed && rows.contains(selection.anchorNode);
}

function release() {
  if (pending && !inHand()) draw(drawn);
}

function draw(answer, hold = false) {
  drawn = answer;
  text($("curl"), `curl -X POST ${token.get() ? '-H "Authorization: Bearer $API_TOKEN" ' : ""}${whole("tasks")}`);
  if (here.task) return drawTask(here.task, answer.value);
  const tasks = answer.value, {status, after} = here;
  text($("list-error"), "");
  pending = !drawList(tasks, status, after, task => address({...here, task}), hold);
  $("fresh").hidden = !pending;
  if (!pending) drawPager(answer);
}

function drawPager({value, more}) {
  const {status, after} = here;
  $("fresh").hidden = true;
  $("pages").hidden = !after && !more;
  $("newest").hidden = $("newer").hidden = !after;
  $("newest").href = address({status});
  $("older").hidden = !more;
  if (more) $("older").href = address({status, after: value.at(-1).id});
}

function gone(why) {
  drawn = null;
  drawTask(here.task);
  text($("task-error"), why);
}

// Shows the state of an outage, and when it is over.
function tell(error) {
  if (error) {
    trouble ??= answered;
    const unreachable = !(error instanceof Problem);
    text($("trouble"), unreachable ? `${words(error)} ${t("stale", {since: timeOfDay(trouble)})}` : t("unavailable", {detail: errorText(error.document)}));
    if (unreachable && $("token").hidden) $("shown").hidden = false;
  } else if (trouble) {
    trouble = null;
    text($("trouble"), "");
    say(t("recovered"));
  }
  document.body.classList.toggle("stale", Boolean(error));
}

let quiet;

function say(words, href) {
  clearTimeout(quiet);
  $("message").replaceChildren(words);
  if (href) {
    const link = Object.assign(document.createElement("a"), {href, textContent: words});
    link.dataset.go = "";
    $("message").replaceChildren(link);
  }
  if (words) quiet = setTimeout(() => $("message").matches(":hover, :focus-within") || $("message").replaceChildren(), 10_000);
}

// --- actions

const underWay = new Set();

async function act(method, path, done) {
  const {task} = here, what = `${method} ${path}`;
  if (underWay.has(what)) return;      // a double click
  underWay.add(what);
  try {
    const answer = await ask(method, path);
    text($("task-error"), "");
    done(answer, task);
  } catch (error) {
    if (refusal(error)) return askToken(refusal(error));
    if (here.task === task) text($("task-error"), words(error));
  } finally {
    underWay.delete(what);
  }
  lookNow();
}

function buttons() {
  $("cancel").addEventListener("click", () => act("POST", `tasks/${here.task}/cancel`, ({status}, id) => say(t(status === 202 ? "doneCancelSoon" : "doneCancel", {id}))));
  $("retry").addEventListener("click", () => act("POST", `tasks/${here.task}/retry`, (_, id) => say(t("doneRetry", {id}))));
  $("delete").addEventListener("click", async () => {
    const {task} = here;
    if (await confirmDelete(task)) {
      act("DELETE", `tasks/${task}`, () => {
        if (here.task === task) go(address({...here, task: null}));
        $("list-title").focus({preventScroll: true});
        say(t("doneDelete", {id: task}));
      });
    }
  });
  $("rows").addEventListener("pointerenter", ({pointerType}) => pointed = pointerType === "mouse");      // a finger does not stay
  $("rows").addEventListener("pointerleave", () => pointed = false);
  for (const type of ["pointerleave", "focusout"]) $("rows").addEventListener(type, () => setTimeout(release));
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", paused);
    paused ? clearTimeout(timer) : lookNow();
  });
  $("find").addEventListener("submit", event => {
    event.preventDefault();
    const task = $("find-id").value.trim();
    event.target.reset();
    go(address({...here, task}));
  });
  $("newer").addEventListener("click", async () => {
    const from = {...here, after: drawn?.value[0]?.id ?? BigInt(here.after) - 1n};
    try {
      const {value, more} = await read(listPath(from, "asc"));      // the page before this one ends where this one begins
      go(address({...here, after: more ? BigInt(value.at(-1).id) + 1n : null}));
    } catch (error) {
      text($("list-error"), words(error));
    }
  });
  $("copy-curl").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("curl").textContent);
      say(t("copied"));
    } catch {       // no clipboard without https
      getSelection().selectAllChildren($("curl"));
      say(t("selected"));
    }
  });
  $("metrics").addEventListener("click", async event => {
    if (!token.get() || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();     // a plain link would go without the token
    try {
      const answer = await ask("GET", "metrics", {accept: "text/plain"});
      location.href = URL.createObjectURL(new Blob([answer.text], {type: "text/plain;charset=utf-8"}));
    } catch (error) {
      say(words(error));
    }
  });
}

// --- the start

translate(document);
createForm(id => {
  say(t("doneCreate", {id}), address({...here, task: id}));
  lookNow();
});
tokenForm(lookNow);
buttons();
document.addEventListener("click", event => {
  const link = event.target.closest("a[data-go]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(link.href);
});
addEventListener("popstate", () => arrive(true));
addEventListener("online", lookNow);
document.addEventListener("visibilitychange", lookNow);
setInterval(() => document.hidden || paused || drawTimes(), 1000);
arrive(false);
$("start").hidden = true;
$("new").hidden = false;
