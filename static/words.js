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
  mean: ["on average {rate} per second", "в среднем {rate} в секунду"],
  range: ["Time range", "За какое время"],
  range300: ["5 minutes", "5 минут"],
  range3600: ["1 hour", "1 час"],
  range86400: ["1 day", "1 день"],
  ago300: ["5 minutes ago", "5 минут назад"],
  ago3600: ["1 hour ago", "1 час назад"],
  ago86400: ["1 day ago", "1 день назад"],
  now: ["now", "сейчас"],
  chartSum: ["Since {since}: {completed} completed (above the line), {failed} failed (below it).", "С {since}: выполнено {completed} (над чертой), с ошибкой {failed} (под ней)."],
  chartNone: ["Nothing has finished since {since}.", "С {since} ничего не завершилось."],
  chartCounted: ["{completed} completed (above the line), {failed} failed (below it).", "Выполнено {completed} (над чертой), с ошибкой {failed} (под ней)."],
  chartGaps: ["There are too many tasks to count them all: some parts are left out.", "Задач слишком много, чтобы сосчитать все: часть времени пропущена."],
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

  search: ["Search", "Найти"],
  q: ["Text", "Текст"],
  qHint: ["in payload or error", "в данных или ошибке"],
  kind: ["Kind", "Вид"],
  kindsHint: ["one or more", "один или несколько"],
  createdRange: ["Created between…", "Время создания…"],
  from: ["From", "С"],
  until: ["Until", "До"],
  clear: ["Clear", "Сбросить"],
  searching: ["Searching… nothing found yet, now at task {id}.", "Поиск… пока ничего, сейчас у задачи {id}."],
  stop: ["Stop", "Остановить"],
  ofKind: ["kind {kind}", "вид {kind}"],
  withText: ["with “{q}”", "с «{q}»"],
  createdFrom: ["created from {time}", "созданные с {time}"],
  createdUntil: ["created before {time}", "созданные до {time}"],
  bulkActions: ["All tasks of this list", "Все задачи этого списка"],
  retryAll: ["Retry all failed…", "Повторить все с ошибкой…"],
  cancelAll: ["Cancel all…", "Отменить все…"],
  deleteAll: ["Delete all…", "Удалить все…"],
  atLeast: ["at least {n}", "не меньше {n}"],
  notCounted: ["not counted yet", "пока не сосчитаны"],
  whichTasks: ["Tasks: {tasks}.", "Задачи: {tasks}."],
  goBack: ["Go back", "Назад"],
  retryAllTitle: ["Retry all that failed ({n})?", "Повторить все с ошибкой ({n})?"],
  retryAllText: ["They become New and run again, with all their attempts before them.", "Они станут новыми и будут выполнены снова, со всеми попытками."],
  retryAllYes: ["Retry all", "Повторить все"],
  retryAllRuns: ["Retrying… tasks so far: {n}", "Повторяем… задач: {n}"],
  retryAllDone: ["Tasks to be run again: {n}.", "Будут выполнены снова: {n}."],
  cancelAllTitle: ["Cancel all ({n})?", "Отменить все ({n})?"],
  cancelAllText: ["New ones end at once, as Failed. The workers of those in progress are asked to stop. Those that repeat are not run again.", "Новые сразу завершатся с ошибкой. Воркеров тех, что в работе, попросят остановиться. Повторяющиеся больше не запустятся."],
  cancelAllYes: ["Cancel all", "Отменить все"],
  cancelAllRuns: ["Canceling… tasks so far: {n}", "Отменяем… задач: {n}"],
  cancelAllDone: ["Canceled tasks: {n}.", "Отменено задач: {n}."],
  deleteAllTitle: ["Delete all ({n})?", "Удалить все ({n})?"],
  deleteAllText: ["This permanently deletes them, their payloads and results. Those in progress stay.", "Они, их данные и результаты будут удалены безвозвратно. Те, что в работе, останутся."],
  deleteAllYes: ["Delete all", "Удалить все"],
  deleteAllRuns: ["Deleting… tasks so far: {n}", "Удаляем… задач: {n}"],
  deleteAllDone: ["Deleted tasks: {n}.", "Удалено задач: {n}."],
  bulkStopped: ["Stopped before the end.", "Остановлено, не все."],
  bulkFailed: ["Then it stopped: {error}", "Дальше не вышло: {error}"],
  bulkRefused: ["The database refused {n} of them.", "База данных отказала в {n} из них."],
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
  emptyStopped: ["Stopped at task {id}: nothing found so far.", "Остановлено на задаче {id}: пока ничего не найдено."],
  found: ["Tasks shown: {n}", "Показано задач: {n}"],
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
  attemptsTitle: ["How the attempts went", "Как прошли попытки"],
  attempt: ["No.", "№"],
  outcome: ["Outcome", "Итог"],
  began: ["Started", "Начало"],
  took: ["Duration", "Длилась"],
  worker: ["Worker", "Воркер"],
  running: ["running", "идёт"],
  completed: ["completed", "выполнена"],
  failed: ["failed", "ошибка"],
  retried: ["failed, tried again", "ошибка, повторена"],
  released: ["given back", "возвращена"],
  reclaimed: ["worker lost", "воркер пропал"],
  "one canceled": ["canceled", "отменена"],
  timed_out: ["timed out", "вышло время"],
  instant: ["under 1 sec", "меньше 1 с"],
  priority: ["Priority", "Приоритет"],
  repeat: ["Repeats", "Повторяется"],
  every: ["every {span}", "каждые {span}"],
  everyAt: ["{cron} ({zone})", "{cron} ({zone})"],
  next_run: ["Next run", "Следующий запуск"],
  stopRepeating: ["Stop repeating", "Больше не повторять"],
  runNow: ["Run now", "Запустить сейчас"],
  doneStopRepeating: ["Task {id} will not be repeated.", "Задача {id} больше не будет повторяться."],
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
  more: ["More: kind, repeating", "Ещё: вид, повторение"],
  kindHint: ["what sort of work it is", "какая это работа"],
  repeatHint: ["every so many seconds, or a cron expression", "через сколько секунд или выражение cron"],
  timezone: ["Time zone", "Часовой пояс"],
  timezoneHint: ["of the cron expression", "для выражения cron"],
  close: ["Close", "Закрыть"],
  create: ["Create", "Создать"],
  notJsonAt: ["This is not valid JSON: see line {line}, column {column}. Strings and keys need double quotes.", "Это не JSON: смотрите строку {line}, столбец {column}. Строки и ключи пишутся в двойных кавычках."],

  tokenTitle: ["This service needs a token", "Сервису нужен токен"],
  tokenHint: ["The value of the setting API_TOKEN, or of READ_TOKEN to look only. The browser keeps it until you close this tab.", "Значение его настройки API_TOKEN или, чтобы только смотреть, READ_TOKEN. Оно хранится в этой вкладке, пока вы её не закроете."],
  tokenHintBlocked: ["The value of the setting API_TOKEN, or of READ_TOKEN to look only. This browser stores no site data, so you will need it again after a reload.", "Значение его настройки API_TOKEN или, чтобы только смотреть, READ_TOKEN. Браузер не хранит данные сайтов, поэтому после обновления страницы токен понадобится снова."],
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
  "not-a-time": "ожидается время, например 2030-01-31T12:00:00Z",
  "not-a-schedule": "ожидается число секунд или выражение cron, которому подходит хоть одна дата, например «0 9 * * mon-fri»",
  "unknown-time-zone": "такой часовой пояс сервису неизвестен; ожидается, например, Europe/Berlin",
  "not-a-kind": "ожидается до 63 строчных латинских букв, цифр, _ и -, первой — буква или цифра",
  "conflicting-fields": "не сочетается с другими полями: часовой пояс бывает только у выражения cron",
  "read-only-token": "этот токен позволяет только смотреть",
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
export const rate = value => new Intl.NumberFormat(language, {...value < 10 ? {maximumSignificantDigits: 2} : {maximumFractionDigits: 0}}).format(value);
export const percent = value => new Intl.NumberFormat(language, {style: "percent"}).format(Math.floor(value * 100) / 100);      // not 100% before it is

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const unitOf = seconds => UNITS.find(([, size]) => seconds >= 2 * size) ?? UNITS[3];

export function span(seconds) {
  const [unit, size] = unitOf(seconds);
  return new Intl.NumberFormat(language, {style: "unit", unit, unitDisplay: "short", maximumFractionDigits: 0}).format(Math.floor(seconds / size));
}

// How long it took, in seconds: times are to the second.
export const duration = seconds => seconds < 1 ? t("instant") : span(seconds);

// Of an interval in seconds, in the largest unit in which it is exact.
export function every(seconds) {
  const [unit, size] = UNITS.find(([, size]) => seconds % size === 0) ?? UNITS[3];
  const format = new Intl.NumberFormat(language, {style: "unit", unit, unitDisplay: "short", maximumFractionDigits: 3});
  return t("every", {span: format.format(seconds / size)});
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
