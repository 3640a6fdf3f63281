// Retries, cancels or deletes all tasks of a list: first a question, with the number as far as it is known, then one
// request after the other, for each changes a bounded number of tasks, and the sum at the end.

import {ask, nextOf} from "./api.js";
import {$, text} from "./dom.js";
import {countOf} from "./figures.js";
import {askToken, confirm, refusal, words} from "./forms.js";
import {describe} from "./tasks.js";
import {number, t} from "./words.js";

const ACTIONS = {
  retry: {method: "POST", path: "tasks/retry", from: ["Failed"]},
  cancel: {method: "POST", path: "tasks/cancel", from: ["New", "In Progress"]},
  delete: {method: "DELETE", path: "tasks", from: ["New", "Completed", "Failed"]},
};

let running = false, stopped = false;

// Of the statuses that the list is limited to, those that an action is for.
function statusesOf(action, {status}) {
  return ACTIONS[action].from.filter(each => !status.length || status.includes(each));
}

// Without a limit nothing is offered: nobody deletes everything by pressing the wrong button.
export function drawBulkActions(list, isLimited) {
  const possible = Object.keys(ACTIONS).filter(action => isLimited && statusesOf(action, list).length);
  $("bulk-actions").hidden = !possible.length;
  for (const action in ACTIONS) $(`${action}-all`).hidden = !possible.includes(action);
}

// How many tasks it will be: exactly where the service counts them, or the list shows all; else as many as are shown.
function countKnown(statuses, {kind, q, created_after, created_before, after}, shown) {
  const all = kind.length || q || created_after || created_before ? undefined : countOf(statuses);
  if (all !== undefined) return number(all);
  const here = shown?.value.filter(({status}) => statuses.includes(status)).length ?? 0;
  if (shown && !after && !shown.next) return number(here);
  return here ? t("atLeast", {n: number(here)}) : t("notCounted");
}

// `look` returns the list as the address names it, and what is shown of it; `query` the parameters that limit a request
// to it; `changed` is called at the end.
export function bulkForm({look, query, changed}) {
  for (const action in ACTIONS) {
    $(`${action}-all`).addEventListener("click", async () => {
      if (running) return $("bulk-stop").focus();
      const {list, shown} = look(), status = statusesOf(action, list);
      const sure = await confirm({
        title: t(`${action}AllTitle`, {n: countKnown(status, list, shown)}), text: `${t("whichTasks", {tasks: describe({...list, status})})} ${t(`${action}AllText`)}`,
        no: t("goBack"), yes: t(`${action}AllYes`), dangerous: action === "delete"});
      if (!sure) return;
      await run(action, after => query({...list, status: list.status.length ? status : [], after}));
      changed();
    });
  }
  $("bulk-stop").addEventListener("click", () => {
    stopped = true;
    if (running) return;
    $("bulk").hidden = true;
    $("list-title").focus();
  });
}

async function run(action, query) {
  const {method, path} = ACTIONS[action];
  let sum = 0, refused = 0, next = null, failure;
  [running, stopped] = [true, false];
  $("bulk").hidden = false;
  text($("bulk-stop"), t("stop"));
  try {
    do {
      text($("bulk-text"), t(`${action}AllRuns`, {n: number(sum)}));
      const answer = await ask(method, `${path}?${query(next)}`);
      const counts = JSON.parse(answer.text);
      sum += counts.count;
      refused += counts.refused ?? 0;
      next = nextOf(answer.headers);
    } while (next && !stopped);
  } catch (error) {
    failure = refusal(error) ?? words(error);
    if (refusal(error)) askToken(failure);
  }
  running = false;
  const done = t(`${action}AllDone`, {n: number(sum)}), result = refused ? `${done} ${t("bulkRefused", {n: number(refused)})}` : done;
  text($("bulk-text"), failure ? `${result} ${t("bulkFailed", {error: failure})}` : next ? `${result} ${t("bulkStopped")}` : result);
  text($("bulk-stop"), t("close"));
}
