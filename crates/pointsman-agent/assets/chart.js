// A chart of the last ten minutes: lines, or areas one upon the other. Where samples are missing there is nothing.

import { attribute, h, svg, text } from "./dom.js";
import { GAP, P, PAST } from "./metrics.js";

const TOP = 18;
const FLOOR = 112;

/** The least of 1, 2, 2.5, 5, 10, … that is not less. */
function round(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].find((step) => step * unit >= value * 0.999) * unit;
}

const end = (past) => past.at(-1)?.[P.at] ?? 0;

/** A path through `y(point)`, or the area from there to `floor(point)`; a second is 1 wide, and the last point is at 600. */
export function path(past, y, floor) {
  const runs = [];
  let last = 0;
  for (const point of past.filter((point) => Number.isFinite(y(point)))) {
    if (point[P.at] - last > GAP) runs.push([]);
    last = point[P.at];
    runs.at(-1).push(point);
  }
  const along = (run, y) => run.map((point) => `${((PAST + point[P.at] - end(past)) / 1000).toFixed(1)} ${y(point).toFixed(1)}`).join("L");
  return runs.map((run) => `M${along(run, y)}${floor ? `L${along(run.reverse(), floor)}Z` : "h.1"}`).join("");
}

export class Chart {
  /** `series`: names in points; `least`: what there is room for; `look(at)`: somebody points at a moment, or null. */
  constructor({ title, series, isStacked, least, format, look }) {
    Object.assign(this, { title, isStacked, least, format, past: [] });
    this.series = series.map((name) => {
      const value = h("b");
      const item = h("span", { class: `of-${name}` }, h("i"), `${name} `, value);
      return { name, place: P[name], value, item, line: svg("path", { class: `${isStacked ? "area" : "line"} of-${name}` }) };
    });
    const label = (x, y, anchor, ...words) => svg("text", { x, y, "text-anchor": anchor }, ...words);
    this.most = label(0, TOP - 5, "start");
    this.cursor = svg("path", { class: "cursor" });
    this.box = h("div", {
      role: "img", tabindex: 0, onblur: () => look(null), onpointerleave: () => look(null),
      onpointermove: ({ offsetX }) => look(end(this.past) - (1 - offsetX / this.box.clientWidth) * PAST),
      onkeydown: ({ key }) => {
        const next = this.past[this.past.indexOf(this.point) + ({ ArrowLeft: -1, ArrowRight: 1 }[key] ?? NaN)];
        if (next) look(next[P.at]);
      },
    }, svg("svg", { "aria-hidden": "true" },
      svg("svg", { viewBox: "0 0 600 132", preserveAspectRatio: "none" },
        svg("path", { class: "grid", d: `M0 ${TOP}h600M0 ${FLOOR}h600` }),
        ...this.series.map(({ line }) => line), this.cursor),
      this.most, label(0, 128, "start", "10 min ago"), label("50%", 128, "middle", "5 min"), label("100%", 128, "end", "now")));
    this.element = h("figure", { class: "chart" }, h("figcaption", {}, h("h2", {}, title), ...this.series.map(({ item }) => item)), this.box);
  }

  /** Shows points; the figures are those of a moment, or the last. */
  draw(past, at) {
    this.past = past;
    this.point = at ? past.findLast((point) => point[P.at] <= at + 1000 && point[P.at] > at - GAP) : past.at(-1);
    // A kind of which there is none would only be a second line upon another.
    const shown = this.series.filter(({ place }, index) => !index || !this.isStacked || past.some((point) => point[place] > 0));
    const upTo = (index) => (point) => shown.slice(0, index).reduce((sum, { place }) => sum + point[place], 0);
    const of = (index) => (this.isStacked ? upTo(index + 1) : (point) => point[shown[index].place]);
    const values = shown.flatMap((_, index) => past.map(of(index))).filter(Number.isFinite);
    const most = round(values.reduce((most, value) => Math.max(most, value), this.least));
    const y = (value) => (point) => FLOOR - (value(point) / most) * (FLOOR - TOP);
    for (const { item, line } of this.series) (item.hidden = true), attribute(line, "d", "");
    const told = shown.map(({ name, place, value, item, line }, index) => {
      attribute(line, "d", path(past, y(of(index)), this.isStacked && y(upTo(index))));
      item.hidden = false;
      text(value, this.point?.[place] === 0 ? "0" : this.format(this.point?.[place]));
      return `${name} ${value.textContent}`;
    });
    text(this.most, this.format(most));
    attribute(this.cursor, "d", at ? `M${(PAST + at - end(past)) / 1000} ${TOP}V${FLOOR}` : "");
    attribute(this.box, "aria-label", `${this.title}, the last 10 minutes. ${at ? "Then" : "Now"}: ${told.join(", ")}.`);
  }
}
