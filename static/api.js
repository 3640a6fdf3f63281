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

function session(act) {         // a browser that blocks site data throws at the very name
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

export async function ask(method, path, {body, headers = {}, accept = "application/json", credentials} = {}) {
  const used = token.get(), seconds = TIME_LIMIT[method], limit = new AbortController();
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
  throw new Problem(status, JSON.parse(text));
}

const known = new Map();
export const recall = path => known.get(path);      // what was read last, if it is still known

export async function read(path) {
  const before = known.get(path);
  const {status, headers, text} = await ask("GET", path, {headers: before ? {"If-None-Match": before.tag} : {}});
  if (status === 304) return before;
  const answer = {tag: headers.get("ETag"), value: parse(text), more: /rel="next"/.test(headers.get("Link"))};
  known.delete(path);
  known.set(path, answer);
  if (known.size > KNOWN) known.delete(known.keys().next().value);
  return answer;
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
