// Who was master, drawn as a track: a lane for each instance, and points where the line changes over.

import { clock, h, now, span, svg, term, text } from "./dom.js";

const TERMS = 8;
const LANES = 5;
const LANE = 30;
const TOP = 18;
const FOOT = 26;
const CURVE = 26;

/** The latest terms, the oldest first, as far back as they fit. */
function shown(history) {
  const terms = [];
  const lanes = new Set();
  for (const one of history.slice(0, TERMS)) {
    if (!lanes.has(one.code) && lanes.size === LANES) break;
    lanes.add(one.code);
    terms.unshift(one);
  }
  return { terms, lanes: [...lanes] };
}

/** Where each term begins and ends. Not to scale: a second among hours would not be seen, and it is what one looks for. */
function places(terms, from, width) {
  const least = Math.min(64, width / terms.length);
  const weights = terms.map(({ since_ms, until_ms }) => Math.sqrt(Math.max(1, (until_ms ?? now()) - since_ms)));
  const sum = weights.reduce((a, b) => a + b, 0);
  const spare = width - least * terms.length;
  let x = from;
  return weights.map((weight) => {
    const begin = x;
    x += least + (spare * weight) / sum;
    return [begin, x];
  });
}

const short = (code, most) => (code.length > most ? `${code.slice(0, most - 1)}…` : code);

function draw(history, width) {
  const { terms, lanes } = shown(history);
  const labels = width < 480 ? 84 : 150;
  const height = TOP + lanes.length * LANE + FOOT;
  const y = (code) => TOP + lanes.indexOf(code) * LANE + 6;
  const at = places(terms, labels, width - labels - 10);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "track", "aria-hidden": "true" });
  const current = terms.at(-1)?.until_ms === null ? terms.at(-1).code : null;
  for (const code of lanes) {
    const name = svg("text", { x: 0, y: y(code) + 4, class: code === current ? "lane now" : "lane" });
    text(name, short(code, width < 480 ? 10 : 18));
    picture.append(name, svg("line", { x1: labels, x2: width - 10, y1: y(code), y2: y(code), class: "rail-line" }));
  }
  let free = 0;
  terms.forEach(({ code, since_ms, until_ms }, index) => {
    const [begin, end] = at[index];
    const isNow = until_ms === null;
    const next = terms[index + 1];
    // Without anybody in between the line is broken: nobody was master.
    const isGap = next && until_ms !== null && next.since_ms - until_ms > 50;
    const from = index > 0 && !at[index].isAfterGap ? begin + CURVE / 2 : begin;
    const to = next ? (isGap ? end - 12 : end - CURVE / 2) : isNow ? end : end - 12;
    picture.append(svg("line", { x1: from, x2: to, y1: y(code), y2: y(code), class: isNow ? "held now" : "held" }));
    if (next && !isGap) {
      const [a, b, x, z] = [y(code), y(next.code), end - CURVE / 2, end + CURVE / 2];
      const path = `M${x} ${a}C${end} ${a} ${end} ${b} ${z} ${b}`;
      picture.append(svg("path", { d: path, class: next.until_ms === null ? "held now" : "held" }));
    }
    if (isGap) {
      at[index + 1].isAfterGap = true;
      picture.append(svg("path", { d: `M${end - 8} ${TOP - 8}V${height - FOOT + 4}`, class: "gap" }));
    }
    const when = svg("text", { x: begin, y: height - 6, class: "tick", "text-anchor": index ? "middle" : "start" });
    // Where it would lie upon the one before it is left out.
    if (begin > free) {
      when.textContent = clock(since_ms);
      free = begin + (index ? 64 : 94);
    }
    picture.append(when, svg("line", { x1: begin, x2: begin, y1: height - FOOT + 4, y2: height - FOOT + 9, class: "tick-line" }));
  });
  if (current) picture.append(svg("circle", { cx: width - 10, cy: y(current), r: 5, class: "head" }));
  return picture;
}

/** The picture and, for everybody, the table of the same. */
export class Track {
  constructor() {
    this.history = [];
    this.picture = h("div", { class: "track-box" });
    this.body = h("tbody");
    this.table = h("table", { class: "masters", "aria-label": "Masters, the newest first" },
      h("thead", {}, h("tr", {}, ...["Master", "Term", "Since", "For"].map((name) => h("th", { scope: "col" }, name)))), this.body);
    this.more = h("details", { class: "more" }, h("summary", {}, "Every master, with times"), this.table);
    this.nothing = h("p", { class: "dim", hidden: true }, "Nobody has been master since this agent began.");
    this.element = h("div", {}, this.picture, this.nothing, this.more);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.picture);
  }

  show(history) {
    this.history = history;
    this.nothing.hidden = history.length > 0;
    this.more.hidden = history.length === 0;
    this.body.replaceChildren(...history.map(row));
    this.draw();
  }

  draw() {
    const width = Math.floor(this.picture.clientWidth);
    if (!width || !this.history.length) return this.picture.replaceChildren();
    this.picture.replaceChildren(draw(this.history, width));
  }

  /** Time goes by for who is master now. */
  tick() {
    const held = this.body.querySelector("[data-since]");
    if (held) text(held, span(now() - Number(held.dataset.since)));
  }

  close() {
    this.observer.disconnect();
  }
}

function row({ code, address, term: number, since_ms, until_ms }) {
  const isNow = until_ms === null;
  return h("tr", { class: isNow ? "now" : null },
    h("td", {}, h("b", {}, code), " ", h("span", { class: "dim" }, address ?? "")),
    h("td", { title: `term ${number}`, class: "num" }, term(number)),
    h("td", { class: "num" }, clock(since_ms)),
    h("td", { class: "num", "data-since": isNow ? since_ms : null }, span((until_ms ?? now()) - since_ms)));
}
