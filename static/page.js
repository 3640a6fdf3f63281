// The page: it shows what its address names, and refreshes it. `?task=17` is a task, anything else a page of the list:
// `?status=New&kind=mail&q=ann&after=950`. A refresh is two requests: the metrics, and, with its ETag, what is shown. The
// next one comes soon when something has changed, later and later when not, and not at all while the page is hidden. The
// open task is followed instead: a request for it is held back until the task has changed.

import {ask, figures, mayWrite, Problem, read, recall, token, Unreachable, whole} from "./api.js";
import {bulkForm, drawBulkActions} from "./bulk.js";
import {$, make, text} from "./dom.js";
import {drawFigures, drawTiles, rangeForm, readFinished, STATUSES} from "./figures.js";
import {askToken, confirm, createForm, refusal, tokenAccepted, tokenForm, words} from "./forms.js";
import {describe, drawAttempts, drawList, drawTask, drawTimes, titleList, waitsToRepeat} from "./tasks.js";
import {errorText, number, t, timeOfDay, translate} from "./words.js";

const PAGE = 50, SOON = 1000, LATE = 10_000, DOWN = 4000, POLLED = 60_000;      // milliseconds
const WAIT = 20;        // seconds; proxies usually cut a request after 30 or 60

// --- the address

let here;

function parse(search) {
  const query = new URLSearchParams(search), id = name => /^[1-9]\d{0,18}$/.test(query.get(name)) && BigInt(query.get(name)) < 1n << 63n ? query.get(name) : null;
  const time = name => Number.isNaN(Date.parse(query.get(name) ?? "")) ? null : query.get(name);
  return {
    status: STATUSES.filter(status => query.getAll("status").includes(status)), kind: query.getAll("kind").filter(Boolean), q: query.get("q") || null,
    created_after: time("created_after"), created_before: time("created_before"), after: id("after"), task: id("task")};
}

// The parameters that limit a list, and say where to go on: the same in the page's address and in requests.
function listQuery({status = [], kind = [], q, created_after, created_before, after}) {
  const one = Object.entries({q, created_after, created_before, after}).filter(([, value]) => value);
  return new URLSearchParams([...status.map(each => ["status", each]), ...kind.map(each => ["kind", each]), ...one]);
}

const isLimited = ({status, kind, q, created_after, created_before}) => Boolean(status.length || kind.length || q || created_after || created_before);

function address(place) {
  const query = listQuery(place);
  if (place.task) query.set("task", place.task);
  return `${query}` ? `?${query}` : ".";
}

function listPath(place, order = "desc") {
  const query = listQuery(place);
  query.set("order", order);
  query.set("limit", PAGE);
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
  drawTiles(task ? null : status, status => address({...here, status, after: null, task: null}));
  fillSearch();
  unfollow();
  reached = stopped = listed = null;
  searched = false;
  for (const id of ["overview", "list"]) $(id).hidden = Boolean(task);
  $("shown").dataset.view = task ? "task" : isLimited(here) ? "some" : "all";
  $("task").hidden = !task;
  text($("task-error"), "");
  text($("list-error"), "");
  drawn = null;
  pending = false;
  let before = recall(task ? `tasks/${task}` : listPath(here));
  if (before?.next && !before.value.length) before = null;      // the search goes on from there
  if (task) {
    drawTask(task);
    $("back").href = address({...here, task: null});
    text($("back"), t(isLimited(here) || here.after ? "backTo" : "back"));
    document.title = `${t("task", {id: task})} · ${t("title")}`;
    if (focus) scrollTo(0, 0);
    if (focus) $("task-title").focus({preventScroll: true});
  } else {
    $("list").setAttribute("aria-busy", "true");
    titleList(here, isLimited(here));
    drawBulkActions(here, isLimited(here));
    drawPager({});
    // While the server does not answer, an empty list is better than tasks that were not asked for.
    if (trouble && !before) for (const id of ["table", "empty"]) $(id).hidden = true;
    document.title = [...isLimited(here) ? [describe(here)] : [], t("title")].join(" · ");
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
  const mine = ++turn, used = token.get(), {task} = here, path = `tasks/${task}`, began = Date.now();
  if (document.hidden) return unfollow();
  let moved = false;
  const counts = figures().then(found => {
    if (mine !== turn) return;
    moved = drawFigures(found);
    suggestKinds(Object.keys(found.ready_tasks ?? {}));
  });
  const asked = await Promise.allSettled([counts, task ? followed ? null : read(path) : search(here, () => mine === turn), mayWrite()]);
  if (mine !== turn) return;
  $("searching").hidden = true;
  const [{reason: uncounted}, view, {value: writes}] = asked;
  const errors = asked.map(({reason}) => reason).filter(Boolean), status = view.reason?.status;
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
  if (writes !== undefined) document.body.classList.toggle("reading", !writes);
  if (uncounted) drawFigures({});
  const changed = view.value && view.value !== drawn;
  if (changed) draw(view.value, !here.after && drawn && !acted && inHand());
  else release();
  if (status === 404 && task) gone(t("missing", {id: task}));
  else if (status < 500) refuseList(view.reason);
  drawTimes();
  if (!task) readFinished();
  if (task && drawn) readAttempts(drawn);
  if (paused) return;
  if (task && view.value && Date.now() > polled) follow(path);
  pause = down ? Math.min(pause * 1.5, DOWN) : moved || changed ? SOON : Math.min(pause * 1.5, LATE);
  // A search through millions of tasks is not made again and again.
  timer = setTimeout(look, Math.max(pause, searched ? 20 * (Date.now() - began) : 0));
}

function lookNow() {
  pause = SOON;
  return look();
}

// --- a list that is limited. Of each request the service looks at a bounded number of rows, so a page may be empty and
// still have a next one: then the search goes on, until something is found or the user stops it.

let searched = false, reached = null, stopped = null;

async function search(from, isWanted, order) {
  if (stopped) return stopped;
  let answer = await read(listPath(from, order));
  for (searched = false; !answer.value.length && answer.next && isWanted() && !stopped; searched = true) {
    text($("searching-text"), t("searching", {id: answer.next}));
    if (!drawn) {       // what is refreshed stays
      $("searching").hidden = false;
      for (const id of ["table", "empty"]) $(id).hidden = true;
    }
    reached = answer;
    answer = await read(listPath({...from, after: answer.next}, order));
  }
  return stopped && !answer.value.length ? stopped : answer;
}

function fillSearch() {
  const local = time => new Date(Date.parse(time) - new Date(time).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
  $("q").value = here.q ?? "";
  $("kinds").value = here.kind.join(" ");
  for (const name of ["created_after", "created_before"]) $(name).value = here[name] ? local(here[name]) : "";
  const {status, ...limits} = here;
  if (here.created_after || here.created_before) $("range").open = true;
  $("clear").hidden = !isLimited({...limits, status: []});
  $("clear").href = address({status});
}

function searchForm() {
  const utc = local => local && `${new Date(local).toISOString().slice(0, 19)}Z`;
  $("search").addEventListener("submit", event => {
    event.preventDefault();
    go(address({
      status: here.status, q: $("q").value.trim(), kind: $("kinds").value.split(/[\s,]+/).filter(Boolean),
      created_after: utc($("created_after").value), created_before: utc($("created_before").value)}));
  });
  $("stop").addEventListener("click", () => {
    stopped = reached;
    $("list-title").focus();
    lookNow();
  });
}

const kinds = new Set();

// The kinds that were seen are suggested where one is typed.
function suggestKinds(names) {
  const before = kinds.size;
  for (const name of names) if (name) kinds.add(name);
  if (kinds.size > before) $("known-kinds").replaceChildren(...Array.from(kinds, value => make("option", {value})));
}

// What can't be listed: a kind, say, that is none.
function refuseList(error) {
  text($("list-error"), words(error));
  $("list").removeAttribute("aria-busy");
  for (const id of ["table", "empty"]) $(id).hidden = true;
}

// --- the open task. Where its answers can't be held back, for a proxy cuts long requests or too many of them wait
// already, it is polled like the list, and followed again a minute later.

let followed = null, polled = 0, listed;

async function follow(path) {
  if (followed) return;
  const mine = followed = new AbortController();
  try {
    for (let waited = true; waited; ) {
      const answer = await read(path, {wait: WAIT, signal: mine.signal});
      if (mine !== followed) return;
      ({waited} = answer);
      if (answer !== drawn) {
        draw(answer);
        lookNow();      // for the counts
      }
    }
  } catch (error) {     // look() comes upon it, too, if it lasts, and tells it
    if (mine !== followed) return;
  }
  polled = Date.now() + POLLED;
  followed = null;
  lookNow();
}

function unfollow() {
  followed?.abort();
  followed = null;
}

// How the attempts of the task went. That changes only when the task itself does.
async function readAttempts(of) {
  if (listed === of) return;
  listed = of;
  try {
    const {value} = await read(`tasks/${of.value.id}/attempts`);
    if (drawn === of) drawAttempts(value);
  } catch {
    listed = null;      // tried again with the next look
  }
}

// --- drawing

// While the user points at a row, has the focus there or selects text, no row may move.
let pointed = false, acted = false;

function inHand() {
  const rows = $("rows"), selection = getSelection();
  return pointed || rows.querySelector(":focus-visible") || !selection.isCollapsed && rows.contains(selection.anchorNode);
}

function release() {
  if (pending && !inHand()) draw(drawn);
}

function draw(answer, hold = false) {
  if (!here.task) text($("found"), drawn ? "" : t("found", {n: number(answer.value.length)}));       // once said is enough
  drawn = answer;
  acted = false;
  text($("curl"), `curl -X POST ${token.get() ? '-H "Authorization: Bearer $API_TOKEN" ' : ""}${whole("tasks")}`);
  if (here.task) return drawTask(here.task, answer.value);
  const tasks = answer.value, {after} = here, limited = isLimited(here);
  text($("list-error"), "");
  suggestKinds(tasks.map(({kind}) => kind));
  const none = answer === stopped ? t("emptyStopped", {id: answer.next}) : t(after ? "emptyPage" : limited ? "emptySome" : "emptyAll");
  pending = !drawList(tasks, {address: task => address({...here, task}), hold, none, first: !after && !limited});
  $("fresh").hidden = !pending;
  if (!pending) drawPager(answer);
}

function drawPager({next}) {
  const {after} = here;
  $("fresh").hidden = true;
  $("pages").hidden = !after && !next;
  $("newest").hidden = $("newer").hidden = !after;
  $("newest").href = address({...here, after: null});
  $("older").hidden = !next;
  if (next) $("older").href = address({...here, after: next});
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
  unfollow();       // so that what was done is seen at once
  lookNow();
}

function buttons() {
  $("cancel").addEventListener("click", () => {
    const done = waitsToRepeat(drawn.value) ? "doneStopRepeating" : "doneCancel";
    act("POST", `tasks/${here.task}/cancel`, ({status}, id) => say(t(status === 202 ? "doneCancelSoon" : done, {id})));
  });
  $("retry").addEventListener("click", () => act("POST", `tasks/${here.task}/retry`, (_, id) => say(t("doneRetry", {id}))));
  $("delete").addEventListener("click", async () => {
    const {task} = here;
    if (await confirm({title: t("confirm", {id: task}), text: t("confirmText"), no: t("keep"), yes: t("deleteIt"), dangerous: true})) {
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
      const place = here;
      stopped = null;
      const {value, next} = await search(from, () => here === place, "asc");      // the page before this one ends where this one begins
      if (here === place) go(address({...here, after: next && value.length ? BigInt(value.at(-1).id) + 1n : null}));
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
  acted = true;     // so that it comes into the list at once, wherever the pointer is
  say(t("doneCreate", {id}), address({...here, task: id}));
  lookNow();
});
tokenForm(lookNow);
rangeForm();
searchForm();
bulkForm({look: () => ({list: here, shown: drawn}), query: listQuery, changed: () => {
  acted = true;
  lookNow();
}});
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
