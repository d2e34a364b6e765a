/** Format times and days in the chosen language and with the conventions of the browser's region. */
import { now } from "./clock.js";
import { language, t } from "./texts.js";

const DAY = 86_400_000;
const formatters = new Map();

/** The time of day. */
export function clock(time) {
  return format(time, { hour: twelveHours() ? "numeric" : "2-digit", minute: "2-digit" });
}

/** The day, for a heading. */
export function day(time) {
  return nearDay(time, "long") ?? date(time, "long");
}

/** Short form for the list: the time of day if it is today, otherwise the day. */
export function moment(time) {
  return midnight(time) === midnight(now()) ? clock(time) : (nearDay(time, "short") ?? date(time, "short"));
}

/** Day and time in full. */
export function instant(time) {
  return format(time, { dateStyle: "long", timeStyle: "short" });
}

/** The start of the day of `time`. */
export function midnight(time) {
  return new Date(time).setHours(0, 0, 0, 0);
}

function nearDay(time, weekday) {
  const days = Math.round((midnight(now()) - midnight(time)) / DAY);
  if (days <= 0) return t.today;
  if (days === 1) return t.yesterday;
  return days < 7 ? format(time, { weekday }) : null;
}

function date(time, month) {
  const year = new Date(time).getFullYear() === new Date(now()).getFullYear() ? undefined : "numeric";
  return format(time, { day: "numeric", month, year });
}

function twelveHours() {
  return formatter({ hour: "numeric" }).resolvedOptions().hour12;
}

function format(time, options) {
  return formatter(options).format(time);
}

/** Uses the browser's locale (12 or 24 hours, for example) if its language is the chosen one. */
function formatter(options) {
  const locale = navigator.languages.find((tag) => tag.split("-")[0] === language) ?? language;
  const key = locale + JSON.stringify(options);
  if (!formatters.has(key)) formatters.set(key, new Intl.DateTimeFormat(locale, options));
  return formatters.get(key);
}
