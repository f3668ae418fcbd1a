// What has happened, and what operators have done: as lists, and as sentences.

import { attribute, clock, draw, h, plural, term, text } from "./dom.js";
import { fleet, on } from "./store.js";
import { cell, link } from "./services.js";
import { Table } from "./table.js";

const changed = (before, after) => {
  const parts = [];
  if (before.role !== after.role) parts.push(after.role === "master" ? "is master" : `is ${after.role}`);
  if (before.status !== after.status) parts.push(after.status === "drained" ? "is drained" : "takes work again");
  if (before.weight !== after.weight) parts.push(`weight ${before.weight} → ${after.weight}`);
  if (before.address !== after.address) parts.push(`address ${before.address ?? "none"} → ${after.address ?? "none"}`);
  if (JSON.stringify(before.tags) !== JSON.stringify(after.tags)) parts.push("other tags");
  return parts.join(", ") || "unchanged";
};

/** An event as `{kind, who, words}`. */
export function describe({ event, data }) {
  if (event === "put" && !data.before) return { kind: "joined", who: data.instance.code, words: "registered" };
  if (event === "put") {
    const kind = data.instance.status === "drained" && data.before.status !== "drained" ? "drained" : "changed";
    return { kind, who: data.instance.code, words: changed(data.before, data.instance) };
  }
  if (event === "delete") {
    return { kind: "left", who: data.instance.code, words: data.instance.role === "master" ? "left; it was master" : "left" };
  }
  if (event === "master") {
    const after = data.before && data.before.code !== data.master?.code ? `, after ${data.before.code}` : "";
    if (!data.master) return { kind: "lost", who: "no master", words: after.slice(2) };
    return { kind: "master", who: data.master.code, words: `is master, term ${term(data.master.term ?? 0)}${after}` };
  }
  if (data.guarded) return { kind: "lost", who: "guarded", words: "many instances vanished at once; they are still listed" };
  const problems = data.problems?.length ?? 0;
  return { kind: "changed", who: "registry", words: problems ? plural(problems, "problem") : "in order again" };
}

const fits = (query, ...texts) => {
  const all = texts.join("\n").toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => all.includes(word));
};

/** A view of lines, of which the newest is the first. */
export class List {
  constructor({ title, columns, kind, make, key, empty, id = "view-title", head = "h1" }) {
    this.empty = empty;
    this.table = new Table({ label: title, columns, kind, make, key });
    this.count = h("span", { class: "count" });
    this.nothing = h("p", { class: "nothing", hidden: true });
    this.element = h("section", { class: "panel", "aria-labelledby": id },
      h("div", { class: "panel-head" }, h(head, { id }, title), this.count),
      this.table.element, this.nothing);
  }

  show(items, query, noun) {
    text(this.count, plural(items.length, noun));
    this.table.element.hidden = items.length === 0;
    this.nothing.hidden = items.length > 0;
    text(this.nothing, query ? `Nothing fits “${query}”.` : this.empty);
    this.table.show(items);
  }

  tick() {}
  move(by) { this.table.move(by); }
  close() { this.table.close(); }
}

export class Events extends List {
  constructor() {
    super({
      title: "Events", kind: "events", key: ({ number }) => number, make: () => new EventRow(),
      empty: "Nothing has happened since this agent began.",
      columns: [{ name: "When", class: "c-when" }, { name: "Service", class: "c-service" }, { name: "What", class: "c-what" }],
    });
  }

  update(query) {
    const events = query
      ? fleet.events.filter((event) => {
          const { who, words } = describe(event);
          const instance = event.data.instance ?? event.data.master;
          return fits(query, event.data.service, who, words, instance?.address ?? "");
        })
      : fleet.events;
    this.show(events, query, "event");
  }
}

class EventRow {
  constructor() {
    this.when = h("time");
    this.service = h("a", { "data-focus": true });
    this.who = h("b");
    this.words = h("span");
    this.what = cell("c-what", h("i", { class: "mark", "aria-hidden": "true" }), this.who, " ", this.words);
    this.element = h("tr", { role: "row" }, cell("c-when", this.when), cell("c-service", this.service), this.what);
  }

  update(event) {
    if (this.event === event) return;
    this.event = event;
    const { kind, who, words } = describe(event);
    text(this.when, clock(event.at_ms));
    attribute(this.when, "datetime", new Date(event.at_ms).toISOString());
    text(this.service, event.data.service);
    attribute(this.service, "href", link(event.data.service));
    text(this.who, who);
    text(this.words, words);
    attribute(this.what, "title", `${who} ${words}`);
    attribute(this.element, "data-kind", kind);
  }
}

const ACTIONS = { drain: "drained", undrain: "undrained", weight: "set the weight of" };

/** What an operator has done, as a sentence. */
export const sentence = ({ action, service, code, detail }) =>
  action === "term-base" ? detail : `${ACTIONS[action] ?? action} ${code} of ${service}${action === "weight" ? `: ${detail}` : ""}`;

export class Audit extends List {
  constructor() {
    super({
      title: "Audit", kind: "audit", make: () => new AuditRow(),
      key: (line) => `${line.at_ms} ${line.action} ${line.service} ${line.code}`,
      empty: "Nobody has drained, undrained or weighed anything through this agent.",
      columns: [{ name: "When", class: "c-when" }, { name: "Who", class: "c-service" }, { name: "What", class: "c-what" }],
    });
  }

  update(query) {
    const lines = query ? fleet.audit.filter((line) => fits(query, ...Object.values(line))) : fleet.audit;
    this.show(lines, query, "line");
  }
}

class AuditRow {
  constructor() {
    this.when = h("time");
    this.actor = h("span");
    this.what = h("a", { "data-focus": true });
    this.element = h("tr", { role: "row" },
      cell("c-when", this.when), cell("c-service", this.actor),
      cell("c-what", h("i", { class: "mark", "aria-hidden": "true" }), this.what));
  }

  update(line) {
    text(this.when, clock(line.at_ms));
    attribute(this.when, "datetime", new Date(line.at_ms).toISOString());
    text(this.actor, line.actor);
    attribute(this.actor, "title", line.actor);
    text(this.what, sentence(line));
    attribute(this.what, "href", line.service ? link(line.service) : "#/audit");
    attribute(this.element, "data-kind", line.action === "drain" ? "drained" : line.action);
  }
}

const RAIL = 40;

/** The newest events beside whatever else is shown. */
export function startRail(list) {
  let newest = 0;
  const render = () => {
    if (getComputedStyle(list).display === "none") return;
    const events = fleet.events.slice(0, RAIL);
    const fresh = events.filter((event) => event.number > newest && newest !== 0).length;
    list.replaceChildren(...events.map((event, index) => {
      const { kind, who, words } = describe(event);
      return h("li", { "data-kind": kind, class: index < fresh ? "fresh" : null },
        h("i", { class: "mark", "aria-hidden": "true" }),
        h("div", {}, h("a", { href: link(event.data.service) }, event.data.service), h("time", {}, clock(event.at_ms))),
        h("p", {}, h("b", {}, who), ` ${words}`));
    }));
    newest = Math.max(newest, events[0]?.number ?? 0);
  };
  on("event", () => draw(render));
  addEventListener("resize", () => draw(render));
}
