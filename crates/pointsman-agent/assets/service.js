// One service: its masters, its instances, what is broken, and what can be done about it.

import { history, Refused } from "./api.js";
import { attribute, count, draw, h, now, plural, span, term, text } from "./dom.js";
import { askDrain, askUndrain, askWeight } from "./dialogs.js";
import { matching, parse } from "./filter.js";
import { cell } from "./services.js";
import { fleet, on, ordered } from "./store.js";
import { Table } from "./table.js";
import { Track } from "./track.js";

const COLUMNS = [
  { name: "Instance", class: "c-name" },
  { name: "Role", class: "c-role" },
  { name: "Weight", class: "c-weight num" },
  { name: "In flight", class: "c-load num" },
  { name: "Age", class: "c-age num" },
  { name: "Tags", class: "c-tags" },
  { name: "Actions", class: "c-do" },
];

export class Service {
  constructor(name) {
    this.name = name;
    this.up = "#/";
    this.track = new Track();
    this.table = new Table({
      label: `Instances of ${name}`, columns: COLUMNS, kind: "instances",
      key: ({ code }) => code,
      make: () => new Row(this),
    });
    this.facts = h("p", { class: "facts" });
    this.count = h("span", { class: "count" });
    this.problems = h("ul", { class: "broken", hidden: true });
    this.nothing = h("p", { class: "nothing", hidden: true });
    this.element = h("div", { class: "service" },
      h("section", { class: "panel", "aria-labelledby": "view-title" },
        h("div", { class: "panel-head service-head" },
          h("a", { class: "back", href: "#/", "aria-label": "Back to all services" }, "←"),
          h("h1", { id: "view-title", title: name.length > 30 ? name : null }, name), this.facts),
        this.problems,
        h("h2", { class: "sub" }, "Masters"), this.track.element),
      h("section", { class: "panel", "aria-labelledby": "instances-title" },
        h("div", { class: "panel-head" }, h("h2", { id: "instances-title" }, "Instances"), this.count),
        this.table.element, this.nothing));
    this.forget = on("master", ({ service }) => service === name && this.load());
    this.load();
  }

  /** The agent knows who was master before this page was opened. */
  async load() {
    if (this.isClosed) return;
    const asked = (this.asked = (this.asked ?? 0) + 1);
    try {
      const masters = await history(this.name);
      if (asked === this.asked && !this.isClosed) draw(() => this.track.show(masters));
    } catch (error) {
      // The stream says that the agent is away, or asks for the token; then this is asked once more.
      if (!(error instanceof Refused)) throw error;
    }
  }

  update(query) {
    const entry = fleet.services.get(this.name);
    this.entry = entry;
    const instances = entry ? ordered(entry) : [];
    const found = entry ? matching({ ...parse(query), ofService: [] }, entry, instances) ?? [] : [];
    text(this.count, found.length === instances.length
      ? plural(instances.length, "instance") : `${count(found.length)} of ${plural(instances.length, "instance")}`);
    this.table.element.hidden = found.length === 0;
    this.nothing.hidden = found.length > 0;
    text(this.nothing, !fleet.isKnown ? "Waiting for the agent…" : instances.length
      ? `No instance of this service fits “${query}”.` : "Nobody is registered under this name now.");
    this.tellFacts(entry);
    this.tellProblems(entry?.problems ?? []);
    this.table.show(found);
  }

  tellFacts(entry) {
    const master = entry?.master && entry.instances.get(entry.master);
    const parts = [];
    if (entry) parts.push(master ? ["Master ", h("b", { class: "code" }, master.code)] : [h("b", { class: "missing" }, "No master")]);
    if (master?.term !== undefined) parts.push([h("span", { title: "All digits: this is the fencing token" }, `term ${master.term}`)]);
    if (entry?.guarded) parts.push([h("b", { class: "warn" }, "guarded: many instances vanished at once, and are still listed")]);
    if (entry?.drained) parts.push([`${count(entry.drained)} drained`]);
    if (entry) parts.push([`revision ${entry.revision}`]);
    this.facts.replaceChildren(...parts.map((part) => h("span", {}, ...part)));
  }

  tellProblems(problems) {
    this.problems.hidden = problems.length === 0;
    this.problems.replaceChildren(...problems.map(({ node, reason, skipped }) =>
      h("li", {}, h("b", {}, node), " ", reason, h("span", { class: "dim" }, skipped ? " — not listed" : " — listed all the same"))));
  }

  tick() {
    this.track.tick();
    for (const row of this.table.rows.values()) row.tick();
  }

  move(by) { this.table.move(by); }

  /** What `d` and `w` are about: the row with the focus. */
  act(what) {
    const index = this.table.focused();
    const instance = this.table.items[index];
    if (!instance) return;
    if (what === "weight") askWeight(instance);
    else (instance.status === "drained" ? askUndrain : askDrain)(instance, this.entry);
  }

  close() {
    this.isClosed = true;
    this.forget();
    this.track.close();
    this.table.close();
  }
}

class Row {
  constructor(view) {
    this.view = view;
    this.code = h("span", { class: "code", "data-focus": true, tabindex: 0 });
    this.address = h("span", { class: "address" });
    this.role = h("span", { class: "role" });
    this.term = h("span", { class: "term" });
    this.weight = h("span");
    this.load = h("span");
    this.age = h("span");
    this.tags = h("span", { class: "tags" });
    this.drain = h("button", { type: "button", class: "ghost", onclick: () => this.toggle() });
    this.weigh = h("button", { type: "button", class: "ghost", onclick: () => askWeight(this.instance) }, "Weight");
    this.element = h("tr", { role: "row" },
      cell("c-name", this.code, this.address),
      cell("c-role", this.role, " ", this.term),
      cell("c-weight num", this.weight), cell("c-load num", this.load), cell("c-age num", this.age),
      cell("c-tags", this.tags), cell("c-do", this.drain, this.weigh));
  }

  toggle() {
    (this.instance.status === "drained" ? askUndrain : askDrain)(this.instance, this.view.entry);
  }

  update(instance) {
    this.updateLoad(instance);
    if (this.instance === instance) return;
    const isDrained = instance.status === "drained";
    text(this.code, instance.code);
    attribute(this.code, "title", instance.code.length > 22 ? instance.code : null);
    text(this.address, instance.address ?? "no address");
    attribute(this.address, "title", instance.address);
    const role = instance.observer ? "observer" : instance.role;
    text(this.role, isDrained ? `${role}, drained` : role);
    this.role.className = `role ${instance.role}${isDrained ? " drained" : ""}`;
    text(this.term, instance.term === undefined ? "" : term(instance.term));
    attribute(this.term, "title", instance.term === undefined ? null : `term ${instance.term}`);
    text(this.weight, instance.weight);
    this.updateTags(instance.tags);
    text(this.drain, isDrained ? "Undrain" : "Drain");
    attribute(this.drain, "aria-label", `${isDrained ? "Undrain" : "Drain"} ${instance.code}`);
    attribute(this.weigh, "aria-label", `Weight of ${instance.code}`);
    this.element.classList.toggle("is-drained", isDrained);
    this.element.classList.toggle("is-master", instance.role === "master");
    if (this.instance) {
      this.element.classList.remove("flash");
      requestAnimationFrame(() => this.element.classList.add("flash"));
    }
    this.instance = instance;
    this.tick();
  }

  updateLoad(instance) {
    const load = this.view.entry?.loads?.[instance.code] ?? 0;
    text(this.load, load ? count(load) : "·");
    this.load.classList.toggle("dim", !load);
  }

  updateTags(tags) {
    const pairs = Object.entries(tags);
    const key = JSON.stringify(pairs);
    if (this.tags.dataset.key === key) return;
    this.tags.dataset.key = key;
    this.tags.replaceChildren(...pairs.map(([name, value]) => h("span", { class: "tag" }, h("i", {}, name), value)));
    attribute(this.tags, "title", pairs.map(([name, value]) => `${name}=${value}`).join("\n") || null);
  }

  tick() {
    const { since_ms } = this.instance;
    text(this.age, since_ms ? span(now() - since_ms) : "");
  }
}
