// The page's words, in English and Russian, after the browser's language; and times, numbers and spans in words.

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
  states: ["State", "Состояние сервиса"],
  oldest: ["Longest wait", "Самое долгое ожидание"],
  database: ["Database", "База данных"],
  rabbitmq: ["RabbitMQ", "RabbitMQ"],
  workers: ["Workers", "Воркеры"],
  nobodyWaits: ["no task is due", "никто не ждёт"],
  answers: ["answers", "отвечает"],
  connected: ["connected", "подключён"],
  away: ["does not answer", "не отвечает"],
  unused: ["not used", "не используется"],
  unknown: ["unknown", "неизвестно"],
  working: ["at work: {n} in progress", "заняты: {n} в работе"],
  idle: ["nothing to do", "свободны, задач нет"],
  watching: ["tasks wait; watching…", "задачи ждут; наблюдаем…"],
  nobody: ["nobody takes tasks", "никто не берёт задачи"],
  busy: ["all busy: {n} in progress, others wait", "все заняты: {n} в работе, другие ждут"],

  listAll: ["All tasks, newest first", "Все задачи, сначала новые"],
  listSome: ["{statuses}, newest first", "{statuses}, сначала новые"],
  fresh: ["Newer ones wait until you leave the list.", "Новые ждут, пока вы не уйдёте со списка."],
  pause: ["Pause", "Пауза"],
  find: ["Go to task", "Перейти к задаче"],
  id: ["Id", "Номер"],
  status: ["Status", "Статус"],
  about: ["What it holds", "Данные"],
  created: ["Created", "Создана"],
  updated: ["Changed", "Изменена"],
  nothing: ["no payload", "без данных"],
  emptyAll: ["There are no tasks yet.", "Задач пока нет."],
  emptySome: ["There is none of these now.", "Таких задач сейчас нет."],
  emptyPage: ["There are no older tasks.", "Более старых задач нет."],
  firstCurl: ["Hand one over from a terminal, or press New task:", "Создайте первую в терминале или кнопкой «Новая задача»:"],
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
  saidCreated: ["Task {id} was created.", "Задача {id} создана."],
  saidCancel: ["Task {id} was canceled.", "Задача {id} отменена."],
  saidCancelSoon: ["Task {id} will be canceled: its worker was asked to stop.", "Задача {id} будет отменена: воркера попросили остановиться."],
  saidRetry: ["Task {id} will be run again.", "Задача {id} будет выполнена снова."],
  saidDelete: ["Task {id} was deleted.", "Задача {id} удалена."],
  sure: ["Delete task {id}?", "Удалить задачу {id}?"],
  sureText: ["It is gone then, with all that it holds. This can't be undone.", "Она исчезнет вместе со всем содержимым. Вернуть её будет нельзя."],
  keep: ["Keep it", "Оставить"],
  deleteIt: ["Delete it", "Удалить"],

  payloadHint: ["any JSON, or nothing", "любой JSON или пусто"],
  priorityHint: ["higher is sooner", "больше — раньше"],
  delay: ["Delay", "Отсрочка"],
  delayHint: ["seconds from now", "в секундах"],
  close: ["Close", "Закрыть"],
  create: ["Create", "Создать"],
  notJsonAt: ["This is not JSON: look at line {line}, column {column}. Texts and names stand in double quotes.", "Это не JSON: смотрите строку {line}, столбец {column}. Строки и имена полей пишутся в двойных кавычках."],

  tokenTitle: ["This service wants a token", "Сервису нужен токен"],
  tokenHint: ["The value of its setting API_TOKEN. It is kept in this tab until you close it.", "Значение его настройки API_TOKEN. Оно хранится в этой вкладке, пока вы её не закроете."],
  tokenHintBlocked: ["The value of its setting API_TOKEN. This browser keeps no site data, so it is asked for again after a reload.", "Значение его настройки API_TOKEN. Браузер не хранит данные сайтов, поэтому после обновления страницы токен понадобится снова."],
  token: ["Token", "Токен"],
  enter: ["Go on", "Продолжить"],
  tokenWrong: ["The service does not accept this token.", "Сервис не принимает этот токен."],

  stale: ["No answer of the service since {since}: what you see is from then. This page keeps trying.", "Ответа сервиса нет с {since}: показаны данные на тот момент. Страница продолжает попытки."],
  silent: ["The server can't be reached.", "Сервер недоступен."],
  slow: ["The server has not answered within {seconds} seconds.", "Сервер не ответил за {seconds} с."],
  redirected: ["A proxy in front of the service redirects the requests of this page, probably to its login: reload the page to sign in.", "Прокси перед сервисом перенаправляет запросы страницы — вероятно, на свою форму входа: обновите страницу, чтобы войти."],
  proxyLogin: ["A proxy in front of the service wants its own login (HTTP {status}): reload the page to sign in.", "Прокси перед сервисом требует своего входа (HTTP {status}): обновите страницу, чтобы войти."],
  oneLogin: ["A proxy in front of the service wants its own login (HTTP {status}). A browser sends that or this token, never both: the proxy has to add the token itself. README says how, under “A login in front of the service”.", "Прокси перед сервисом требует своего входа (HTTP {status}). Браузер передаёт либо его, либо этот токен, но не то и другое сразу: токен должен добавлять сам прокси. Как это сделать, сказано в README, раздел «A login in front of the service»."],
  proxyRefuses: ["A proxy in front of the service refuses this (HTTP {status}). If it has a login, reload the page to sign in again.", "Прокси перед сервисом запрещает это (HTTP {status}). Если у него есть вход, обновите страницу и войдите снова."],
  proxyTooLarge: ["A proxy in front of the service takes no request as large as this one (HTTP {status}). The service itself takes 1 MiB: let the proxy allow that.", "Для прокси перед сервисом этот запрос слишком велик (HTTP {status}). Сам сервис принимает до 1 МиБ: разрешите столько же в прокси."],
  proxyAlone: ["A proxy answers, but it can't reach the service (HTTP {status}).", "Прокси отвечает, но сам сервис ему недоступен (HTTP {status})."],
  stranger: ["Something else answers in place of the service ({answer}). If that is a login, reload the page to sign in.", "Вместо сервиса отвечает что-то другое ({answer}). Если это форма входа, обновите страницу, чтобы войти."],
  broken: ["Something went wrong in this page, not in the service ({error}): reload it.", "Ошибка на самой странице, а не в сервисе ({error}): обновите её."],
  unavailable: ["The server answers, but can't help: {detail}. This page keeps trying.", "Сервер отвечает, но не может выполнить запрос: {detail}. Страница продолжает попытки."],
  recovered: ["The server answers again.", "Сервер снова отвечает."],

  documents: ["The API", "API"],
  swagger: ["Try the API", "Попробовать API"],
  metrics: ["Metrics", "Метрики"],
};

// What the server may say of a request of this page, in Russian; anything else stays as it was said.
const SAID = [
  [/^expected a whole number from (\S+) to (\S+)$/, "ожидалось целое число от $1 до $2"],
  [/^expected a number of seconds from (\S+) to (\S+)$/, "ожидалось число секунд от $1 до $2"],
  [/^nested deeper than (\d+) levels$/, "вложенность больше $1 уровней"],
  [/^contains a lone surrogate, which is not text$/, "содержит половину суррогатной пары, а это не текст"],
  [/^contains the character NUL.*$/, "содержит символ NUL, который PostgreSQL не хранит"],
  [/^an object has a duplicate key$/, "одно и то же имя встречается в объекте дважды"],
  [/^(\d+) bytes are too many: expected at most (\d+)$/, "$1 байт — слишком много: можно не больше $2"],
  [/^expected a body of at most (\d+) bytes$/, "слишком много: можно не больше $1 байт"],
  [/^there is no task (\d+)$/, "задачи $1 нет"],
  [/^task (\d+) is New: only .* retried$/, "задача $1 ещё новая: повторить можно только задачу с ошибкой"],
  [/^task (\d+) is In Progress: only .* retried$/, "задача $1 в работе: повторить можно только задачу с ошибкой"],
  [/^task (\d+) is Completed: only .* retried$/, "задача $1 выполнена: повторить можно только задачу с ошибкой"],
  [/^task (\d+) is \w+: only .* canceled$/, "задача $1 уже завершена: отменять нечего"],
  [/^task (\d+) is In Progress: only .* deleted$/, "задача $1 в работе: сначала отмените её"],
  [/^the table is not there.*$/, "в базе данных нет нужной таблицы"],
  [/^the database can't be (reached|used)$/, "база данных недоступна"],
];

export function t(name, values = {}) {
  return WORDS[name][language === "ru" ? 1 : 0].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

export function said(detail) {
  const [pattern, russian] = language === "ru" && SAID.find(([pattern]) => pattern.test(detail)) || [];
  return pattern ? detail.replace(pattern, russian) : detail;
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
