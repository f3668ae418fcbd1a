// Elements, and how things are written. Text only ever becomes a text node: names come from strangers.

export const $ = (id) => document.getElementById(id);

// Characters that change the order of others, or that nobody can see: a name from a stranger must not pass for another one.
const HIDDEN = /[\p{Cf}\u034f\u115f\u1160\u17b4\u17b5\u2028\u2029\u3164\uffa0]|(?![\t\n\r])\p{Cc}/gu;

/** The text with what cannot be seen escaped, as `\u{202e}`. */
export const visible = (text) =>
  String(text).replace(HIDDEN, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);

// What people read or hear of an element's attributes; the others are for programs.
const READ = new Set(["title", "aria-label", "placeholder"]);
const written = (name, value) => (READ.has(name) ? visible(value) : String(value));

/** An element with properties (`class`, `data-…`, `aria-…`, `onclick`, …) and children (nodes or text). */
export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : written(name, value));
  }
  const shown = children.filter((child) => child !== null && child !== undefined && child !== false);
  element.append(...shown.map((child) => (child instanceof Node ? child : visible(child))));
  return element;
}

/** An SVG element: attributes only. */
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Writes only what is different: most of what is drawn again is as it was. */
export function text(element, value) {
  const wanted = visible(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

export function attribute(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== written(name, value)) element.setAttribute(name, written(name, value));
}

// How far the agent's clock is ahead of this one's; what is less than two seconds is not worth correcting.
let ahead = 0;
export function learnClock(date) {
  const server = Date.parse(date ?? "");
  if (Number.isNaN(server)) return;
  const difference = server - Date.now();
  ahead = Math.abs(difference) > 2000 ? difference : 0;
}
export const now = () => Date.now() + ahead;

const two = (number) => String(number).padStart(2, "0");

/** `08:41:07` of today, `Mar 4 08:41` of another day. */
export function clock(ms) {
  const date = new Date(ms - ahead);
  const time = `${two(date.getHours())}:${two(date.getMinutes())}`;
  if (date.toDateString() === new Date().toDateString()) return `${time}:${two(date.getSeconds())}`;
  return `${date.toLocaleDateString("en", { month: "short", day: "numeric" })} ${time}`;
}

/** `4 s`, `3 min 20 s`, `2 h 5 min`, `9 d 4 h`: two parts say enough. */
export function span(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return minutes < 10 ? `${minutes} min ${seconds % 60} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export const count = (number) => number.toLocaleString("en").replaceAll(",", "\u202f");

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A term is a long number of which the end tells them apart. */
export const term = (number) => {
  const digits = String(number);
  return digits.length > 9 ? `…${digits.slice(-6)}` : digits;
};

const waiting = new Set();
let frame = 0;
/** Draws with the next frame, however often it is asked for before. */
export function draw(what) {
  waiting.add(what);
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const now = [...waiting];
    waiting.clear();
    for (const what of now) what();
  });
}
