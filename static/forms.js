// The forms: a new task, the token, and the question before something that can't be undone. An error is shown at its field.

import {ask, Problem, token} from "./api.js";
import {$, make} from "./dom.js";
import {errorText, t} from "./words.js";

export function words(error) {
  if (!(error instanceof Problem)) return t(error.reason ?? "broken", error.values ?? {error});
  const {errors, ...problem} = error.document;
  return errors?.length ? errors.map(errorText).join("; ") : errorText(problem);
}

// Why the token is refused; undefined when the error has another cause.
export const refusal = error => error.status === 401 ? t("tokenWrong") : error.reason === "oneLogin" ? words(error) : undefined;

function mark(field, error = "") {
  error ? field.setAttribute("aria-invalid", "true") : field.removeAttribute("aria-invalid");
  $(`${field.id}-error`).textContent = error;
}

// --- a new task

const FIELDS = ["payload", "priority", "delay", "kind", "repeat", "timezone"], TEXTS = ["kind", "timezone"];
let key;        // so that a second press, after an answer that was lost, makes no second task

function newKey() {
  key = Array.from(crypto.getRandomValues(new Uint8Array(12)), byte => byte.toString(16).padStart(2, "0")).join("");
}

// The position of the first error in a JSON text. Browsers report it in different words, and some do not.
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

// Why a text is not JSON; "" when it is, or is empty.
function jsonError(json) {
  try {
    if (json.trim()) JSON.parse(json);
    return "";
  } catch {
    const before = json.slice(0, fault(json)).split("\n");
    return t("notJsonAt", {line: before.length, column: before.at(-1).length + 1});
  }
}

function suggestZones() {        // this browser's own first
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone, all = Intl.supportedValuesOf?.("timeZone") ?? [];
  $("known-zones").replaceChildren(...Array.from(new Set([own, "UTC", ...all].filter(Boolean)), value => make("option", {value})));
}

// The payload is sent as it was typed, for JavaScript would round long numbers. The service checks the numbers.
function body() {
  const parts = [];
  for (const name of FIELDS) {
    const value = $(name).value.trim();
    if (value) parts.push(`"${name}": ${name === "payload" || !TEXTS.includes(name) && /^-?(0|[1-9]\d*)(\.\d+)?$/.test(value) ? value : JSON.stringify(value)}`);
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
  $("more").addEventListener("toggle", () => $("known-zones").children.length || suggestZones());
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
    if (refusal(error)) return askToken(refusal(error));        // what was typed stays
    const rest = [];
    const errors = error.document?.errors ?? [];
    for (const each of errors) {
      // When the body as a whole is wrong, the payload is the cause: the page writes the rest itself.
      const name = each.pointer === "" ? "payload" : FIELDS.find(name => each.pointer === `/${name}`);
      name ? mark($(name), errorText(each)) : rest.push(errorText(each));
    }
    $("create-error").textContent = errors.length ? rest.join("; ") : words(error);
    if ($("more").querySelector("[aria-invalid]")) $("more").open = true;
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
    try {       // without credentials: else the browser would ask for the proxy's login again and again
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

// --- a question

// Returns whether the answer is yes. What can't be undone is `dangerous`.
export function confirm({title, text, no, yes, dangerous}) {
  const dialog = $("confirm"), [refuse, agree] = dialog.querySelectorAll("button");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  refuse.textContent = no;
  Object.assign(agree, {textContent: yes, className: dangerous ? "danger" : "primary"});
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise(resolve => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), {once: true}));
}
