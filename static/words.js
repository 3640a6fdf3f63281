// The texts of the page, in English and Russian, by the browser's language; and how times, numbers and durations are shown.

export const language = navigator.language.toLowerCase().startsWith("ru") ? "ru" : "en";

const WORDS = {
  title: ["Task Manager", "Task Manager"],
  skip: ["Skip to the tasks", "К задачам"],
  new: ["New task", "Новая задача"],
  filter: ["Tasks by status", "Задачи по статусам"],
  All: ["All", "Все"],
  New: ["New", "Новые"],
  "In Progress": ["In Progress", "В работе"],
  Completed: ["Completed", "Выполненные"],
  Failed: ["Failed", "С ошибкой"],
  "one New": ["New", "Новая"],
  "one In Progress": ["In Progress", "В работе"],
  "one Completed": ["Completed", "Выполнена"],
  "one Failed": ["Failed", "Ошибка"],
  canceling: ["In Progress, to be canceled", "В работе, отменяется"],
  canceled: ["Failed: canceled", "Отменена"],

  chart: ["Finished per second", "Завершено в секунду"],
  rate: ["{rate} per second", "{rate} в секунду"],
  peak: ["peak {rate}", "пик {rate}"],
  ago5: ["5 minutes ago", "5 минут назад"],
  now: ["now", "сейчас"],
  chartSum: ["Since {since}: {completed} completed (above the line), {failed} failed (below it).", "С {since}: выполнено {completed} (над чертой), с ошибкой {failed} (под ней)."],
  chartNone: ["Nothing has finished since this page was opened at {since}.", "С открытия страницы в {since} ничего не завершилось."],
  states: ["Service status", "Состояние сервиса"],
  oldest: ["Oldest waiting task", "Самое долгое ожидание"],
  database: ["Database", "База данных"],
  rabbitmq: ["RabbitMQ", "RabbitMQ"],
  workers: ["Workers", "Воркеры"],
  nobodyWaits: ["no task is waiting", "ожидающих задач нет"],
  answers: ["connected", "подключена"],
  connected: ["connected", "подключён"],
  away: ["not connected", "нет соединения"],
  unused: ["not used", "не используется"],
  unknown: ["unknown", "неизвестно"],
  working: ["running, {n} in progress", "работают, {n} в работе"],
  idle: ["no tasks to run", "свободны, задач нет"],
  watching: ["tasks are waiting, checking…", "задачи ждут, проверяем…"],
  nobody: ["no worker takes tasks", "ни один воркер не берёт задачи"],
  busy: ["all busy: {n} in progress, other tasks are waiting", "все заняты: {n} в работе, другие задачи ждут"],

  listAll: ["All tasks, newest first", "Все задачи, сначала новые"],
  listSome: ["{statuses}, newest first", "{statuses}, сначала новые"],
  fresh: ["New tasks appear when you leave the list.", "Новые задачи появятся, когда вы покинете список."],
  pause: ["Pause", "Пауза"],
  find: ["Go to task", "Перейти к задаче"],
  id: ["Id", "Номер"],
  status: ["Status", "Статус"],
  about: ["Payload", "Данные"],
  created: ["Created", "Создана"],
  updated: ["Status changed", "Статус изменён"],
  nothing: ["no payload", "без данных"],
  emptyAll: ["There are no tasks yet.", "Задач пока нет."],
  emptySome: ["There are no such tasks now.", "Таких задач сейчас нет."],
  emptyPage: ["There are no older tasks.", "Более старых задач нет."],
  firstCurl: ["Create one from a terminal, or press New task:", "Создайте первую в терминале или кнопкой «Новая задача»:"],
  copy: ["Copy", "Копировать"],
  copied: ["Copied.", "Скопировано."],
  selected: ["Selected: copy it with Ctrl+C.", "Выделено: нажмите Ctrl+C, чтобы скопировать."],
  pages: ["Pages", "Страницы"],
  newest: ["« Newest", "« Самые новые"],
  newer: ["‹ Newer", "‹ Более новые"],
  older: ["Older ›", "Более старые ›"],

  task: ["Task {id}", "Задача {id}"],
  back: ["‹ All tasks", "‹ Все задачи"],
  backTo: ["‹ Back to the list", "‹ Назад к списку"],
  actions: ["Actions", "Действия"],
  cancel: ["Cancel", "Отменить"],
  retry: ["Retry", "Повторить"],
  delete: ["Delete…", "Удалить…"],
  progress: ["Progress", "Выполнение"],
  payload: ["Payload", "Данные"],
  result: ["Result", "Результат"],
  error: ["Error", "Ошибка"],
  lastError: ["Error of the last attempt", "Ошибка последней попытки"],
  attempts: ["Attempts", "Попытки"],
  attemptsOf: ["{n} of at most {most}", "{n} из {most}"],
  priority: ["Priority", "Приоритет"],
  run_at: ["Not before", "Не раньше"],
  timeout: ["Time limit of an attempt", "Лимит времени на попытку"],
  idempotency_key: ["Idempotency key", "Ключ идемпотентности"],
  missing: ["There is no task {id}. It may have been deleted.", "Задачи {id} нет. Возможно, её удалили."],
  doneCreate: ["Task {id} was created.", "Задача {id} создана."],
  doneCancel: ["Task {id} was canceled.", "Задача {id} отменена."],
  doneCancelSoon: ["Task {id} will be canceled: its worker was asked to stop.", "Задача {id} будет отменена: воркера попросили остановиться."],
  doneRetry: ["Task {id} will be run again.", "Задача {id} будет выполнена снова."],
  doneDelete: ["Task {id} was deleted.", "Задача {id} удалена."],
  confirm: ["Delete task {id}?", "Удалить задачу {id}?"],
  confirmText: ["This permanently deletes the task, its payload and its result.", "Задача, её данные и результат будут удалены безвозвратно."],
  keep: ["Keep task", "Оставить"],
  deleteIt: ["Delete", "Удалить"],

  payloadHint: ["any JSON, or nothing", "любой JSON или пусто"],
  priorityHint: ["higher runs first", "больше — раньше"],
  delay: ["Delay", "Отсрочка"],
  delayHint: ["seconds from now", "в секундах"],
  close: ["Close", "Закрыть"],
  create: ["Create", "Создать"],
  notJsonAt: ["This is not valid JSON: see line {line}, column {column}. Strings and keys need double quotes.", "Это не JSON: смотрите строку {line}, столбец {column}. Строки и ключи пишутся в двойных кавычках."],

  tokenTitle: ["This service needs a token", "Сервису нужен токен"],
  tokenHint: ["The value of the setting API_TOKEN. The browser keeps it until you close this tab.", "Значение его настройки API_TOKEN. Оно хранится в этой вкладке, пока вы её не закроете."],
  tokenHintBlocked: ["The value of the setting API_TOKEN. This browser stores no site data, so you will need it again after a reload.", "Значение его настройки API_TOKEN. Браузер не хранит данные сайтов, поэтому после обновления страницы токен понадобится снова."],
  token: ["Token", "Токен"],
  enter: ["Continue", "Продолжить"],
  tokenWrong: ["The service does not accept this token.", "Сервис не принимает этот токен."],

  stale: ["No answer from the service since {since}: the page shows the data of that time, and keeps trying.", "Ответа сервиса нет с {since}: показаны данные на тот момент. Страница продолжает попытки."],
  silent: ["The server can't be reached.", "Сервер недоступен."],
  slow: ["The server has not answered within {seconds} seconds.", "Сервер не ответил за {seconds} с."],
  redirected: ["A proxy in front of the service redirects the requests of this page, probably to its login: reload the page to sign in.", "Прокси перед сервисом перенаправляет запросы страницы — вероятно, на свою форму входа: обновите страницу, чтобы войти."],
  proxyLogin: ["A proxy in front of the service needs its own login (HTTP {status}): reload the page to sign in.", "Прокси перед сервисом требует своего входа (HTTP {status}): обновите страницу, чтобы войти."],
  oneLogin: ["A proxy in front of the service needs its own login (HTTP {status}). A browser sends that or this token, never both: the proxy has to add the token itself. README says how, under “A login in front of the service”.", "Прокси перед сервисом требует своего входа (HTTP {status}). Браузер передаёт либо его, либо этот токен, но не то и другое сразу: токен должен добавлять сам прокси. Как это сделать, сказано в README, раздел «A login in front of the service»."],
  proxyRefuses: ["A proxy in front of the service refuses this (HTTP {status}). If it has a login, reload the page to sign in again.", "Прокси перед сервисом запрещает это (HTTP {status}). Если у него есть вход, обновите страницу и войдите снова."],
  proxyTooLarge: ["This request is too large for a proxy in front of the service (HTTP {status}). The service itself accepts 1 MiB: configure the proxy to allow that.", "Для прокси перед сервисом этот запрос слишком велик (HTTP {status}). Сам сервис принимает до 1 МиБ: разрешите столько же в прокси."],
  proxyAlone: ["A proxy answers, but can't reach the service (HTTP {status}).", "Прокси отвечает, но сам сервис ему недоступен (HTTP {status})."],
  stranger: ["Something other than the service answers ({answer}). If it is a login page, reload this page to sign in.", "Вместо сервиса отвечает что-то другое ({answer}). Если это форма входа, обновите страницу, чтобы войти."],
  broken: ["Something went wrong in this page, not in the service ({error}): reload it.", "Ошибка на самой странице, а не в сервисе ({error}): обновите её."],
  unavailable: ["The server answers, but can't process the request: {detail}. This page keeps trying.", "Сервер отвечает, но не может выполнить запрос: {detail}. Страница продолжает попытки."],
  recovered: ["The server answers again.", "Сервер снова отвечает."],

  documents: ["The API", "API"],
  swagger: ["Try the API", "Попробовать API"],
  metrics: ["Metrics", "Метрики"],
};

// Errors of the API in Russian, by their code. In English, and for any other code, the service's own text is shown.
const ERRORS = {
  "not-in-state": "сейчас это невозможно: статус задачи — «{task_status}»",
  "task-not-found": "такой задачи нет",
  "unavailable": "база данных недоступна",
  "locked": "задачу или таблицу занимает другая транзакция",
  "overloaded": "сервис перегружен, попробуйте позже",
  "too-large": "слишком много данных",
  "wrong-type": "ожидается число от {minimum} до {maximum}",
  "out-of-range": "ожидается число от {minimum} до {maximum}",
  "too-deep": "вложенность больше {maximum} уровней",
  "not-json": "это не JSON",
  "duplicate-key": "один и тот же ключ встречается в объекте дважды",
  "lone-surrogate": "содержит половину суррогатной пары, а это не текст",
  "nul-character": "содержит символ NUL, который PostgreSQL не хранит",
  "refused-by-database": "база данных не принимает эти данные",
};

const fill = (template, values) => template.replace(/\{(\w+)\}/g, (_, key) => values[key]);

export function t(name, values = {}) {
  return fill(WORDS[name][language === "ru" ? 1 : 0], values);
}

// The text of an error of the API: {code, detail, …}, a problem document or an entry of its `errors`.
export function errorText({code, detail, ...values}) {
  const template = language === "ru" ? ERRORS[code] : undefined;
  const known = Array.from(template?.matchAll(/\{(\w+)\}/g) ?? [], ([, key]) => key);
  if (!template || known.some(key => !(key in values))) return detail;
  if (values.task_status) values.task_status = t(`one ${values.task_status}`);
  return fill(template, values);
}

export function translate(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-label]")) element.setAttribute("aria-label", t(element.dataset.label));
}

const whole = new Intl.NumberFormat(language, {maximumFractionDigits: 0});
export const number = value => whole.format(value);
export const rate = value => new Intl.NumberFormat(language, {maximumFractionDigits: value < 10 ? 1 : 0}).format(value);
export const percent = value => new Intl.NumberFormat(language, {style: "percent"}).format(Math.floor(value * 100) / 100);      // not 100% before it is

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const unitOf = seconds => UNITS.find(([, size]) => seconds >= 2 * size) ?? UNITS[3];

export function span(seconds) {
  const [unit, size] = unitOf(seconds);
  return new Intl.NumberFormat(language, {style: "unit", unit, unitDisplay: "short", maximumFractionDigits: 0}).format(Math.floor(seconds / size));
}

// The server's clock counts, not this machine's: `skew` is how far it is ahead, in milliseconds.
export const clock = {skew: 0};
const relative = new Intl.RelativeTimeFormat(language, {numeric: "auto", style: "short"});

export function ago(time) {
  const seconds = (Date.now() + clock.skew - time) / 1000;
  if (Math.abs(seconds) < 2) return t("now");
  const [unit, size] = unitOf(Math.abs(seconds));
  return relative.format(-Math.trunc(seconds / size), unit);
}

export const parseTime = text => Date.parse(`${text}Z`);        // the API's times are UTC, without a zone
export const dateTime = time => new Intl.DateTimeFormat(language, {dateStyle: "medium", timeStyle: "medium"}).format(time);
export const timeOfDay = time => new Intl.DateTimeFormat(language, {timeStyle: "medium"}).format(time);
