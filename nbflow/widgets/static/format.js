// Numbers and times as people read them. Times come as UTC seconds and are shown in the reader's zone.

/** 0.42 s · 3 s · 2 min 5 s · 3 h 4 min · 2 d 1 h */
export function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const all = Math.max(0, value);
  if (all < 0.001) return "< 1 ms";
  if (all < 1) return `${Math.round(all * 1000)} ms`;
  if (all < 10) return `${all.toFixed(1)} s`;
  const whole = Math.round(all);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return two(Math.floor(whole / 60), "min", whole % 60, "s");
  const minutes = Math.round(all / 60);
  if (minutes < 1440) return two(Math.floor(minutes / 60), "h", minutes % 60, "min");
  const hours = Math.round(all / 3600);
  return two(Math.floor(hours / 24), "d", hours % 24, "h");
}

function two(large, one, small, other) {
  return small ? `${large} ${one} ${small} ${other}` : `${large} ${one}`;
}

/** 512 B · 3.4 MB */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let size = value;
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (size < 1000 || unit === "TB") return `${unit === "B" || size >= 100 ? Math.round(size) : size.toFixed(1)} ${unit}`;
    size /= 1000;
  }
  return "";
}

/** 12,345 */
export function count(value) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString("en-GB");
}

/** "1 step", "3 steps" */
export function plural(number, word, many = `${word}s`) {
  return `${count(number)} ${number === 1 ? word : many}`;
}

const DAY = new Intl.DateTimeFormat("en-GB", {day: "numeric", month: "short", hour: "2-digit", minute: "2-digit"});
const YEAR = new Intl.DateTimeFormat("en-GB", {day: "numeric", month: "short", year: "numeric"});
const FULL = new Intl.DateTimeFormat("en-GB", {dateStyle: "full", timeStyle: "long"});
const CLOCK = new Intl.DateTimeFormat("en-GB", {hour: "2-digit", minute: "2-digit", second: "2-digit"});

/** "21 Nov, 14:02", or with the year where it is another one. */
export function when(at, now = Date.now() / 1000) {
  if (at === null || at === undefined) return "–";
  const date = new Date(at * 1000);
  return (date.getFullYear() === new Date(now * 1000).getFullYear() ? DAY : YEAR).format(date);
}

/** The whole date and time, for titles. */
export function exactly(at) {
  return at === null || at === undefined ? "" : FULL.format(new Date(at * 1000));
}

/** "14:02:11" */
export function clock(at) {
  return at === null || at === undefined ? "–" : CLOCK.format(new Date(at * 1000));
}

/** "3 min ago", "in 2 h", "now" */
export function ago(at, now = Date.now() / 1000) {
  if (at === null || at === undefined) return "–";
  const distance = now - at;
  const size = Math.abs(distance);
  if (size < 5) return "now";
  const step = size < 60 ? 1 : size < 3600 ? 60 : size < 86400 ? 3600 : 86400;
  const unit = {1: "s", 60: "min", 3600: "h", 86400: "d"}[step];
  const words = `${Math.floor(size / step)} ${unit}`;
  return distance > 0 ? `${words} ago` : `in ${words}`;
}

/** The short id of a run, as the commands take it: the end tells runs of one moment apart. */
export function shortId(run) {
  const id = String(run ?? "");
  return id.length > 13 ? `${id.slice(0, 8)}…${id.slice(-4)}` : id;
}

/** A value as short text: texts as they are, the rest as JSON. */
export function plain(value) {
  if (typeof value === "string") return value;
  const said = JSON.stringify(value);
  return said === undefined ? "" : said;
}

/** Cut a text for a narrow place. */
export function cut(value, size) {
  const words = plain(value);
  return words.length > size ? `${words.slice(0, size - 1)}…` : words;
}
