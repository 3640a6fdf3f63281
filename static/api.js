// Requests to the service. What was read before is requested with its ETag: the answer 304, not modified, gives the
// same object as before, so that the code that draws it sees with `===` that nothing has changed.

import {clock} from "./words.js";

const KEY = "task-manager-token", TIME_LIMIT = {GET: 8, POST: 20, DELETE: 20}, KNOWN = 20;        // TIME_LIMIT is in seconds

// The page's address may contain user:password@. fetch refuses that, and nobody should copy it.
const home = new URL(".", location.href);
home.username = home.password = "";
export const whole = path => new URL(path, home).href;

export class Problem extends Error {        // the service refused a request; `document` is its problem document (RFC 9457)
  constructor(status, document) {
    super(document.detail);
    Object.assign(this, {status, document});
  }
}

export class Unreachable extends Error {    // no answer, or not from the service; `reason` names the text of words.js
  constructor(reason, values) {
    super(reason);
    Object.assign(this, {reason, values});
  }
}

// What a proxy may answer instead of the service. A redirect has status 0: a page can't see more of it.
const PROXY_ANSWERS = {0: "redirected", 401: "proxyLogin", 403: "proxyRefuses", 413: "proxyTooLarge", 502: "proxyAlone", 503: "proxyAlone", 504: "proxyAlone"};

export function session(act) {         // a browser that blocks site data throws at the very name
  try {
    return act(sessionStorage);
  } catch {
    return undefined;
  }
}

const found = session(data => data.getItem(KEY));
let current = found ?? null;

export const token = {
  lasts: found !== undefined,       // beyond a reload
  get: () => current,
  set(value) {
    current = value;
    session(data => data.setItem(KEY, value));
  },
  drop() {
    current = null;
    session(data => data.removeItem(KEY));
  },
};

// `wait`: seconds for which the service may hold the answer back; `signal` aborts the request.
export async function ask(method, path, {body, headers = {}, accept = "application/json", credentials, wait = 0, signal} = {}) {
  const used = token.get(), seconds = TIME_LIMIT[method] + wait, limit = new AbortController();
  signal?.addEventListener("abort", () => limit.abort());
  if (wait) headers.Prefer = `wait=${wait}`;
  if (used) headers.Authorization = `Bearer ${used}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const timer = setTimeout(() => limit.abort(), seconds * 1000);
  let answer, text;
  try {
    answer = await fetch(whole(path), {method, body, headers, credentials, cache: "no-store", redirect: "manual", signal: limit.signal});
    text = await answer.text();
  } catch {
    throw limit.signal.aborted ? new Unreachable("slow", {seconds}) : new Unreachable("silent");
  } finally {
    clearTimeout(timer);
  }
  const {status, ok} = answer, [type] = (answer.headers.get("Content-Type") ?? "").split(";"), bodiless = status === 204 || status === 304;
  if (!bodiless && type !== (ok ? accept : "application/problem+json")) {
    const login = answer.headers.has("WWW-Authenticate");
    throw new Unreachable(login && used ? "oneLogin" : PROXY_ANSWERS[status] ?? "stranger", {status, answer: `HTTP ${status}${type && `, ${type}`}`});
  }
  // To the second, as the tasks' times; a little more is only the way to us.
  const skew = Date.parse(answer.headers.get("Date")) - Date.now();
  clock.skew = Math.abs(skew) > 5000 ? skew : 0;
  if (ok || status === 304) return {status, headers: answer.headers, text};
  const problem = new Problem(status, JSON.parse(text));
  if (problem.document.code === "read-only-token") permission = undefined;      // it may have been another one before
  throw problem;
}

let permission;

// Whether the token in use, or none, may do more than read.
export async function mayWrite() {
  const used = token.get();
  if (permission?.used !== used) permission = {used, ...JSON.parse((await ask("GET", "token")).text)};
  return permission.write;
}

// The counts of GET /finished: {since, seconds, completed: [1, …], failed: [0, …]}, a number for each part of the time.
export async function finished(seconds, parts) {
  return JSON.parse((await ask("GET", `finished?seconds=${seconds}&bins=${parts}`)).text);
}

const known = new Map();
export const recall = path => known.get(path);      // what was read last, if it is still known

// The answer: its `value`; `next`, the id after which the next page of a list begins; and `waited`, whether the service
// does hold answers back.
export async function read(path, {wait, signal} = {}) {
  const before = known.get(path);
  const {status, headers, text} = await ask("GET", path, {wait, signal, headers: before ? {"If-None-Match": before.tag} : {}});
  const waited = headers.has("Preference-Applied");
  if (status === 304) return Object.assign(before, {waited});
  const answer = {tag: headers.get("ETag"), value: parse(text), next: nextOf(headers), waited};
  known.delete(path);
  known.set(path, answer);
  if (known.size > KNOWN) known.delete(known.keys().next().value);
  return answer;
}

// The id after which the next page begins, as text, for it may be larger than JavaScript's exact numbers.
export function nextOf(headers) {
  const [, query] = /<[^>]*\?([^>]*)>; *rel="next"/.exec(headers.get("Link")) ?? [];
  return new URLSearchParams(query).get("after");
}

// JSON.parse, but a number that JavaScript would change (17 digits and more) stays as it is written.
const exact = (_, value, context) =>
  typeof value === "number" && context && JSON.rawJSON && String(value) !== context.source ? JSON.rawJSON(context.source) : value;

function parse(text) {
  const tidy = ({payload, result, ...task}) => {
    for (const name in task) task[name] = task[name]?.rawJSON ?? task[name];
    return {...task, ...payload !== undefined && {payload}, ...result !== undefined && {result}};
  };
  const value = JSON.parse(text, exact);
  return Array.isArray(value) ? value.map(tidy) : tidy(value);
}

// The figures of /metrics that have at most one label: {tasks: {New: 1, …}, database_up: {"": 1}, …}
export async function figures() {
  const found = {}, {text} = await ask("GET", "metrics", {accept: "text/plain"});
  for (const [, name, label = "", value] of text.matchAll(/^taskmanager_(\w+)(?:\{\w+="([^"]*)"\})? (\S+)$/gm)) {
    (found[name] ??= {})[label] = Number(value);
  }
  return found;
}
