// A table of which only the rows in sight exist. Rows are of one height, which the style sheet says.

import { attribute, draw, h } from "./dom.js";

const MORE = 6;

export class Table {
  /**
   * `columns`: `[{name, class}]`; `make(item)` gives a row with `.update(item)`; `key(item)` tells rows apart.
   */
  constructor({ label, columns, make, key, kind }) {
    this.make = make;
    this.key = key;
    this.items = [];
    this.rows = new Map();
    this.height = 0;
    this.width = columns.length;
    this.above = h("tr", { class: "spacer", "aria-hidden": "true" }, h("td", { colspan: this.width }));
    this.below = h("tr", { class: "spacer", "aria-hidden": "true" }, h("td", { colspan: this.width }));
    this.body = h("tbody", { role: "rowgroup" }, this.above, this.below);
    const heads = columns.map(({ name, class: of }) => h("th", { scope: "col", role: "columnheader", class: of }, name));
    // The roles are said although they are a table's own: on a phone rows are no longer displayed as such.
    this.element = h("table", { class: `table ${kind}`, role: "table", "aria-label": label },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row", "aria-rowindex": 1 }, ...heads)), this.body);
    this.draw = () => this.render();
    this.onScroll = () => draw(this.draw);
    addEventListener("scroll", this.onScroll, { passive: true });
    addEventListener("resize", this.onScroll, { passive: true });
  }

  close() {
    removeEventListener("scroll", this.onScroll);
    removeEventListener("resize", this.onScroll);
  }

  show(items) {
    this.items = items;
    attribute(this.element, "aria-rowcount", items.length + 1);
    this.render();
  }

  measure() {
    return Number.parseFloat(getComputedStyle(this.element).getPropertyValue("--row")) || 48;
  }

  /** Which rows are in sight. */
  range() {
    const top = this.body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(-top / this.height) - MORE);
    const last = Math.min(this.items.length, Math.ceil((innerHeight - top) / this.height) + MORE);
    return [Math.min(first, this.items.length), Math.max(first, last)];
  }

  render() {
    if (!this.element.isConnected) return;
    this.height = this.measure();
    const [first, last] = this.range();
    this.above.firstChild.style.height = `${first * this.height}px`;
    this.below.firstChild.style.height = `${Math.max(0, this.items.length - last) * this.height}px`;
    this.above.hidden = first === 0;
    this.below.hidden = last >= this.items.length;
    const wanted = new Map();
    for (let index = first; index < last; index++) {
      const key = this.key(this.items[index]);
      const row = this.rows.get(key) ?? this.make(this.items[index]);
      row.update(this.items[index]);
      attribute(row.element, "aria-rowindex", index + 2);
      wanted.set(key, row);
    }
    for (const [key, row] of this.rows) if (!wanted.has(key)) row.element.remove();
    let after = this.above;
    for (const row of wanted.values()) {
      if (after.nextSibling !== row.element) after.after(row.element);
      after = row.element;
    }
    this.rows = wanted;
  }

  /** The place of the row that has the focus, or -1. */
  focused() {
    const row = document.activeElement?.closest("tr");
    for (const [key, { element }] of this.rows) if (element === row) this.last = key;
    // A row that was scrolled out of sight has lost the focus, but is where to go on from.
    return this.items.findIndex((item) => this.key(item) === this.last);
  }

  /** Moves the focus by so many rows. */
  move(by) {
    if (!this.items.length) return;
    const from = this.focused();
    const to = from < 0 ? (by > 0 ? 0 : this.items.length - 1) : from + by;
    const index = Math.max(0, Math.min(this.items.length - 1, to));
    const top = this.body.getBoundingClientRect().top + index * this.height;
    const head = document.querySelector(".top").offsetHeight + 40;
    if (top < head) scrollBy(0, top - head);
    else if (top + this.height > innerHeight) scrollBy(0, top + this.height - innerHeight + 16);
    this.render();
    this.rows.get(this.key(this.items[index]))?.element.querySelector("[data-focus]")?.focus({ preventScroll: true });
  }
}
