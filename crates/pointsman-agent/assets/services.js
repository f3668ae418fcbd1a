// All services: one line each, with its instances as lamps.

import { attribute, count, h, plural, svg, term, text } from "./dom.js";
import { matching, parse } from "./filter.js";
import { compare, fleet, needsAttention, ordered } from "./store.js";
import { Table } from "./table.js";

// More lamps than this are only counted.
const LAMPS = 24;

const COLUMNS = [
  { name: "Service", class: "c-name" },
  { name: "Instances", class: "c-board" },
  { name: "Master", class: "c-master" },
  { name: "In flight", class: "c-load num" },
];

export const link = (service, query = "") =>
  `#/services/${encodeURIComponent(service)}${query ? `?q=${encodeURIComponent(query)}` : ""}`;

export class Services {
  constructor() {
    this.query = "";
    this.table = new Table({
      label: "Services", columns: COLUMNS, kind: "services",
      key: ({ entry }) => entry.name,
      make: () => new Row(() => this.query),
    });
    this.count = h("span", { class: "count" });
    this.nothing = h("div", { class: "nothing", hidden: true });
    this.element = h("section", { class: "panel", "aria-labelledby": "view-title" },
      h("div", { class: "panel-head" }, h("h1", { id: "view-title" }, "Services"), this.count),
      this.table.element, this.nothing);
  }

  update(query) {
    this.query = query;
    const filter = parse(query);
    const found = [];
    let instances = 0;
    for (const entry of fleet.services.values()) {
      const matched = matching(filter, entry, ordered(entry));
      if (!matched) continue;
      instances += matched.length;
      found.push({ entry, matched, isWhole: filter.ofInstance.length === 0 });
    }
    found.sort((a, b) => needsAttention(b.entry) - needsAttention(a.entry) || compare(a.entry.name, b.entry.name));
    text(this.count, filter.isEmpty
      ? plural(found.length, "service")
      : `${count(found.length)} of ${plural(fleet.services.size, "service")}, ${plural(instances, "instance")}`);
    this.table.element.hidden = found.length === 0;
    this.table.show(found);
    if (found.length && !performance.getEntriesByName("fleet-shown").length) performance.mark("fleet-shown");
    this.say(found.length === 0);
  }

  /** Nothing registered is an invitation; nothing found is an answer; nothing known yet is neither. */
  say(isEmpty) {
    this.nothing.hidden = !isEmpty;
    const state = !fleet.isKnown ? "waiting" : fleet.services.size ? "unfound" : "empty";
    if (!isEmpty || this.said === state + this.query) return;
    this.said = state + this.query;
    const saying = { waiting, empty, unfound: () => unfound(this.query) };
    this.nothing.replaceChildren(...saying[state]());
  }

  tick() {
    for (const row of this.table.rows.values()) row.tick();
  }
  move(by) { this.table.move(by); }
  close() { this.table.close(); }
}

const waiting = () => [h("p", { class: "lead" }, "Waiting for the agent…")];

const unfound = (query) => [
  h("p", { class: "lead" }, "Nothing fits “", h("b", {}, query), "”"),
  h("p", {}, "Names, codes, addresses and tags are searched. ", h("kbd", {}, "Esc"), " clears the search."),
];

function empty() {
  const command = `curl -N -X POST ${new URL("v1/services/hello", location)}/instances/hello-1/hold \\
  -H 'content-type: application/json' \\
  -d '{"address": "127.0.0.1:8080", "tags": {"zone": "here"}}'`;
  const copy = h("button", { type: "button", class: "primary" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command).then(() => text(copy, "Copied"), () => text(copy, "Select it, please"));
  });
  return [
    h("p", { class: "lead" }, "No services yet"),
    h("p", {}, "A service is there as soon as one instance has registered. Try it from a shell; it stays registered while the " +
      "command runs:"),
    h("div", { class: "command" }, h("pre", { tabindex: 0 }, h("code", {}, command)), copy),
    h("p", {}, "This page shows it the moment it comes, and the moment it goes."),
  ];
}

class Row {
  constructor(query) {
    this.query = query;
    this.link = h("a", { "data-focus": true });
    this.flags = h("span", { class: "flags" });
    this.board = h("span", { class: "board", "aria-hidden": "true" });
    this.count = h("span", { class: "board-count" });
    this.master = h("span", { class: "code" });
    this.term = h("span", { class: "term" });
    this.load = h("span");
    this.line = svg("polyline");
    const spark = svg("svg", { class: "spark", viewBox: "0 0 92 22", preserveAspectRatio: "none", "aria-hidden": "true" }, this.line);
    this.element = h("tr", { role: "row" },
      cell("c-name", this.link, this.flags),
      cell("c-board", h("span", { class: "lamps" }, this.board, this.count)),
      cell("c-master", this.master, " ", this.term),
      cell("c-load num", spark, this.load));
    // Wherever on the line one points: the link is for the keyboard, and for opening it in another tab.
    this.element.addEventListener("click", (event) => {
      if (!event.target.closest("a") && !getSelection().toString()) this.link.click();
    });
  }

  update({ entry, matched, isWhole }) {
    const { name, instances, load } = entry;
    text(this.link, name);
    attribute(this.link, "title", name.length > 24 ? name : null);
    attribute(this.link, "href", link(name, this.query()));
    flags(this.flags, entry);
    lamps(this.board, ordered(entry), isWhole ? null : new Set(matched));
    text(this.count, isWhole ? count(instances.size) : `${count(matched.length)} of ${count(instances.size)}`);
    const master = entry.master && instances.get(entry.master);
    text(this.master, entry.master ?? "no master");
    attribute(this.master, "title", entry.master);
    this.master.classList.toggle("missing", !entry.master);
    text(this.term, master?.term === undefined ? "" : term(master.term));
    attribute(this.term, "title", master?.term === undefined ? null : `term ${master.term}`);
    text(this.load, load ? count(load) : "·");
    this.load.classList.toggle("dim", !load);
    this.element.classList.toggle("attention", needsAttention(entry));
    this.flash(entry);
    const isNew = this.entry !== entry;
    this.entry = entry;
    if (isNew) this.tick();
  }

  /** What was in flight during the last minute, on a scale of its own. */
  tick() {
    const past = this.entry.past ?? [];
    const most = Math.max(4, ...past);
    const points = past.map((load, index) => `${(92 - (past.length - 1 - index) * 1.55).toFixed(1)},${(20.5 - (load / most) * 19).toFixed(1)}`);
    attribute(this.line, "points", points.join(" "));
  }

  /** Lights up once when something has changed that was on the page before. */
  flash({ name, changedAt }) {
    if (this.name === name && this.changedAt !== changedAt) {
      this.element.classList.remove("flash");
      requestAnimationFrame(() => this.element.classList.add("flash"));
    }
    this.name = name;
    this.changedAt = changedAt;
  }
}

export const cell = (of, ...children) => h("td", { class: of, role: "cell" }, ...children);

function flags(element, entry) {
  const wanted = [];
  if (entry.guarded) wanted.push(["guarded", "warn"]);
  if (entry.problems.length) wanted.push([plural(entry.problems.length, "problem"), "bad"]);
  if (entry.drained) wanted.push([`${count(entry.drained)} drained`, ""]);
  const key = wanted.join();
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.replaceChildren(...wanted.map(([words, of]) => h("span", { class: `flag ${of}` }, words)));
}

function lamps(board, instances, lit) {
  const shown = Math.min(LAMPS, instances.length);
  while (board.childElementCount > shown) board.lastChild.remove();
  while (board.childElementCount < shown) board.append(h("i"));
  for (let index = 0; index < shown; index++) {
    const instance = instances[index];
    const of = instance.status === "drained" ? "drained" : "passing";
    const wanted = `${instance.role} ${of}${lit && !lit.has(instance) ? " off" : ""}`;
    const lamp = board.children[index];
    if (lamp.className !== wanted) lamp.className = wanted;
  }
}
