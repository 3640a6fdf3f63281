// What is asked of the user: a new task, the token, and whether it is meant. What is wrong stands at its field.

import {ask, Problem, token} from "./api.js";
import {$} from "./dom.js";
import {said, t} from "./words.js";

export const words = error => error instanceof Problem ? said(error.message) : t(error.reason ?? "broken", error.values ?? {error});

// Why the token does not open; undefined when that is not what an error is about.
export const refusal = error => error.status === 401 ? t("tokenWrong") : error.reason === "oneLogin" ? words(error) : undefined;

function mark(field, error = "") {
  error ? field.setAttribute("aria-invalid", "true") : field.removeAttribute("aria-invalid");
  $(`${field.id}-error`).textContent = error;
}

// --- a new task

const FIELDS = ["payload", "priority", "delay"];
let key;        // so that a second press, after an answer that was lost, makes no second task

function newKey() {
  key = Array.from(crypto.getRandomValues(new Uint8Array(12)), byte => byte.toString(16).padStart(2, "0")).join("");
}

// Where it stops being JSON; each browser has other words for that, and some do not say where.
const TOKEN = /[ \t\n\r]*(?:("(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[\da-fA-F]{4}))*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)|([{}[\],:]))?/y;

function fault(json) {
  const open = [];
  let expected = "value";
  for (TOKEN.lastIndex = 0; ;) {
    const [all, string, scalar, sign] = TOKEN.exec(json), token = string ?? scalar ?? sign ?? "";
    const at = TOKEN.lastIndex - token.length, inside = open.at(-1);
    if ((string || scalar) && /value/.test(expected) || string && /key/.test(expected)) {
      expected = /key/.test(expected) ? "colon" : inside ? "comma or end" : "nothing";
    } else if (/^[{[]$/.test(token) && /value/.test(expected)) {
      open.push(token);
      expected = token === "{" ? "key or end" : "value or end";
    } else if (token && token === {"{": "}", "[": "]"}[inside] && /end/.test(expected)) {
      open.pop();
      expected = open.length ? "comma or end" : "nothing";
    } else if (token === ":" && expected === "colon") {
      expected = "value";
    } else if (token === "," && /comma/.test(expected)) {
      expected = inside === "{" ? "key" : "value";
    } else {
      return at;
    }
  }
}

// What is wrong with it as JSON, in words; "" when nothing is, or nothing is there.
function jsonError(json) {
  try {
    if (json.trim()) JSON.parse(json);
    return "";
  } catch {
    const before = json.slice(0, fault(json)).split("\n");
    return t("notJsonAt", {line: before.length, column: before.at(-1).length + 1});
  }
}

// The payload goes as it was typed: JavaScript would round its long numbers. What is no number the server shall judge.
function body() {
  const parts = [];
  for (const name of FIELDS) {
    const value = $(name).value.trim();
    if (value) parts.push(`"${name}": ${name === "payload" || /^-?(0|[1-9]\d*)(\.\d+)?$/.test(value) ? value : JSON.stringify(value)}`);
  }
  return `{${parts.join(", ")}}`;
}

export function createForm(created) {
  const dialog = $("create"), form = dialog.querySelector("form");
  let busy = false;
  $("new").addEventListener("click", () => {
    unmark();
    dialog.showModal();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  form.addEventListener("input", newKey);
  newKey();
  form.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.querySelector(".primary").click();
  });
  form.addEventListener("submit", async event => {
    event.preventDefault();
    if (busy) return;
    unmark();
    mark($("payload"), jsonError($("payload").value));
    if ($("payload-error").textContent) return $("payload").focus();
    busy = true;
    try {
      const {text} = await ask("POST", "tasks", {body: body(), headers: {"Idempotency-Key": key}});
      form.reset();
      newKey();
      dialog.close();
      created(JSON.parse(text).id);
    } catch (error) {
      refused(error);
    } finally {
      busy = false;
    }
  });

  function unmark() {
    $("create-error").textContent = "";
    for (const name of FIELDS) mark($(name));
  }

  function refused(error) {
    if (refusal(error)) return askToken(refusal(error));        // what was typed is kept
    const rest = [];
    for (const {pointer, detail} of error.errors ?? []) {
      // What is wrong with the body as a whole can only be the payload's doing.
      const name = pointer === "" ? "payload" : FIELDS.find(name => pointer === `/${name}`);
      name ? mark($(name), said(detail)) : rest.push(said(detail));
    }
    $("create-error").textContent = error.errors?.length ? rest.join("; ") : words(error);
    (FIELDS.map($).find(field => field.hasAttribute("aria-invalid")) ?? $("payload")).focus();
  }
}

// --- the token

export function tokenForm(entered) {
  if (!token.lasts) $("token-hint").textContent = t("tokenHintBlocked");
  $("token").addEventListener("submit", async event => {
    event.preventDefault();
    const value = $("token-value").value.trim();
    if (!/^[\x21-\x7e]+$/.test(value)) return askToken(t("tokenWrong"));
    token.set(value);
    try {       // without credentials, or the browser would ask its user for the login that a proxy wants, again and again
      await ask("GET", "metrics", {accept: "text/plain", credentials: "omit"});
    } catch (error) {
      if (error.reason === "oneLogin") return askToken(words(error));
    }
    entered();
  });
}

export function askToken(error = "") {
  token.drop();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  for (const id of ["shown", "new"]) $(id).hidden = true;
  $("token").hidden = false;
  mark($("token-value"), error);
  $("token-value").select();
  $("token-value").focus();
}

export function tokenAccepted() {
  if ($("token").hidden && !$("shown").hidden) return;
  const focused = $("token").contains(document.activeElement);
  $("token-value").value = "";
  $("token").hidden = true;
  for (const id of ["shown", "new"]) $(id).hidden = false;
  if (focused) ($("task").hidden ? $("list-title") : $("task-title")).focus();
}

// --- is it meant?

export function sure(id) {
  const dialog = $("sure");
  $("sure-title").textContent = t("sure", {id});
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise(resolve => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), {once: true}));
}
