// Talking to the service. What was read before is asked for with its ETag: "304, nothing has changed" gives the very
// object that was there before, so whoever draws it sees by `===` that there is nothing to draw.

import {clock} from "./words.js";

const KEY = "task-manager-token", PATIENCE = {GET: 8000, POST: 20_000, DELETE: 20_000}, KNOWN = 20;

export class Problem extends Error {        // the server says no; `errors` say where
  constructor(status, {detail, errors = []}) {
    super(detail ?? `HTTP ${status}`);
    Object.assign(this, {status, errors});
  }
}

export class Unreachable extends Error {}   // nobody answers, or somebody else does

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: value => sessionStorage.setItem(KEY, value),
  drop: () => sessionStorage.removeItem(KEY),
};

export async function ask(method, path, {body, headers = {}} = {}) {
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer, text;
  try {
    answer = await fetch(path, {method, body, headers, cache: "no-store", redirect: "error", signal: AbortSignal.timeout(PATIENCE[method])});
    text = await answer.text();
  } catch (error) {
    throw new Unreachable(String(error));
  }
  // To the second, as the tasks' times; a little more is only the way to us.
  const skew = Date.parse(answer.headers.get("Date")) - Date.now();
  clock.skew = Math.abs(skew) > 5000 ? skew : 0;
  if (answer.ok || answer.status === 304) return {status: answer.status, headers: answer.headers, text};
  if (!answer.headers.get("Content-Type")?.startsWith("application/problem+json")) throw new Unreachable(`HTTP ${answer.status}`);
  throw new Problem(answer.status, JSON.parse(text));
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
  const found = {}, {text} = await ask("GET", "metrics");
  for (const [, name, label = "", value] of text.matchAll(/^taskmanager_(\w+)(?:\{\w+="([^"]*)"\})? (\S+)$/gm)) {
    (found[name] ??= {})[label] = Number(value);
  }
  return found;
}
