// What goes through the proxy of this process: by route, by service, and as charts.

import { Chart, path } from "./chart.js";
import { attribute, clock, count, draw, h, now, span, svg, text } from "./dom.js";
import { GAP, P, startSampling, traffic } from "./metrics.js";
import { List } from "./events.js";
import { cell, link } from "./services.js";
import { isLive } from "./status.js";
import { on } from "./store.js";

const UNROUTED = "without a route";

const short = (value) => (value < 9.95 ? value.toFixed(1) : count(Math.round(value)));
// None is a dot, as elsewhere; what is not known, a dash.
const some = (value, say) => (value > 0 ? say(value) : value >= 0 ? "·" : "–");
const isNone = (words) => "·–".includes(words);
const rate = (value) => some(value, () => (value < 0.05 ? "< 0.1" : short(value)));
const level = (value) => some(value, count);
const share = (value) => some(value, () => `${rate(value * 100)} %`);
const duration = (value) => some(value, () =>
  value === Infinity ? `> ${traffic.longest} s` : value < 0.9995 ? `${short(value * 1000)} ms` : `${short(value)} s`);
const size = (value) => some(value, () => (value < 2 ** 20 ? `${rate(value / 1024)} KiB` : `${short(value / 2 ** 20)} MiB`));

const total = ({ point }) => rate(point?.[P.total]);
const part = (name) => ({ point }) => share(point?.[P[name]] / (point?.[P.total] || 1));
const time = (name) => ({ point }) => duration(point?.[P[name]]);
const each = (key, say = rate) => ({ rates }) => say(rates?.get(key));
const at = (key) => ({ levels }) => level(levels.get(key));

// `[name, what is said of one (or drawn into the cell), class of what is no good, whether it needs room]`
const ROUTES = [
  ["Route"], ["Last 10 min", spark, "", true], ["Requests/s", total], ["4xx", part("4xx"), "warn"], ["5xx", part("5xx"), "bad"],
  ["Gone", part("gone"), "", true], ["p50", time("p50"), "", true], ["p95", time("p95")], ["p99", time("p99")],
  ["In flight", at("in_flight")], ["Retries/s", each("retries"), "warn", true], ["In/s", each("received_bytes", size), "", true],
  ["Out/s", each("sent_bytes", size), "", true],
];
const SERVICES = [
  ["Service"], ["Answered", each("attempts answered")], ["Unreachable", each("attempts unreachable"), "bad"],
  ["Timeout", each("attempts timeout"), "bad", true], ["Broken", each("attempts broken"), "bad", true],
  ["Connects", each("connects"), "", true], ["In flight", loads], ["Passing", at("instances passing"), "", true],
  ["Failing", at("instances failing"), "bad"], ["Ejected", at("instances_ejected"), "warn"],
];
const PROBLEMS = [["Type"], ["Per second", ({ now }) => rate(now), "bad"], ["In all", ({ number }) => count(number)]];

/** How even the load is: the least and the most at an instance. */
function loads({ levels }) {
  const all = [...levels].filter(([key]) => key.startsWith("instance_in_flight ")).map(([, load]) => load);
  return all.length ? `${count(Math.min(...all))} to ${count(Math.max(...all))}` : "–";
}

function spark({ past }, cell) {
  if (!cell.firstChild) cell.append(svg("svg", { class: "spark", viewBox: "0 0 600 22", preserveAspectRatio: "none" }, svg("path")));
  const most = Math.max(1, ...past.map((point) => point[P.total]));
  attribute(cell.firstChild.firstChild, "d", path(past, (point) => 20.5 - (point[P.total] / most) * 19));
}

/** `#/traffic`, `#/traffic/route/NAME`, `#/traffic/unrouted`. */
export class Traffic {
  constructor([, kind, name]) {
    this.chosen = kind === "unrouted" ? "" : kind && name;
    this.up = kind && "#/traffic";
    this.redraw = () => this.update(this.query);
    const look = (at) => ((this.at = at), draw(this.redraw));
    this.charts = [
      { title: "Requests/s", series: ["2xx", "3xx", "1xx", "4xx", "5xx", "gone"], isStacked: true, least: 1, format: rate },
      { title: "Duration", series: ["p50", "p95", "p99"], least: 0.001, format: duration },
      { title: "In flight", series: ["requests"], isStacked: true, least: 4, format: level },
    ].map((chart) => new Chart({ ...chart, look }));
    this.when = h("span", { class: "count" });
    this.facts = h("p", { class: "facts" });
    this.routes = figures("Routes", "routes", ROUTES, ({ name }) => (name ? `#/traffic/route/${encodeURIComponent(name)}` : "#/traffic/unrouted"));
    this.services = figures("Attempts per second", "attempts", SERVICES, ({ name }) => link(name));
    this.problems = figures("Problems", "problems", PROBLEMS);
    this.nothing = h("p", { class: "nothing panel" });
    this.panels = h("div", { class: "service" },
      h("section", { class: "panel", "aria-labelledby": "view-title" },
        h("div", { class: "panel-head service-head" },
          kind && h("a", { class: "back", href: this.up, "aria-label": "Back to all routes" }, "←"),
          h("h1", { id: "view-title" }, this.chosen === undefined ? "Traffic" : this.chosen || UNROUTED), this.when, this.facts),
        h("div", { class: "charts" }, ...this.charts.map(({ element }) => element))),
      ...[this.routes, this.services, this.problems].map(({ element }) => element));
    this.element = h("div", {}, this.nothing, this.panels);
    this.forget = on("traffic", () => draw(this.redraw));
    startSampling();
  }

  load() { startSampling(); }

  update(query) {
    this.query = query;
    const { state, routes, services, proxy } = traffic;
    this.panels.hidden = !(this.nothing.hidden = state === "known");
    text(this.nothing, state === "absent"
      ? "There is no HTTP proxy in this process: “pointsman serve” runs one beside the agent if its file has [http] and [[http.route]]."
      : "Waiting…");
    if (state !== "known") return;
    this.one = this.chosen === undefined ? traffic.all : routes.get(this.chosen);
    const one = this.one ?? { past: [], levels: new Map() };
    for (const chart of this.charts) chart.draw(one.past, this.at);
    const facts = [one.service && `service ${one.service}`, `connections ${at("connections")(proxy)}`,
      `in/s ${each("received_bytes", size)(one)}`, `out/s ${each("sent_bytes", size)(one)}`,
      ...["retries", "queued", "broken_answers"].map((key) => `${key.replace("_", " ")}/s ${each(key)(one)}`)];
    text(this.facts, facts.filter((fact) => fact && !isNone(fact.at(-1))).join(" · "));
    this.tick();
    const words = (query ?? "").toLowerCase().split(/\s+/);
    const fits = ({ name, service }) => words.every((word) => `${name || UNROUTED}\n${service}`.toLowerCase().includes(word));
    this.routes.show([...routes.values()].filter(fits), query, "route");
    this.services.show([...services.values()].filter(fits), query, "service");
    const problems = [...proxy.counts].filter(([, number]) => number);
    this.problems.show(problems.map(([key, number]) =>
      ({ name: key.replace(/^problems /, "").replaceAll("_", " "), number, now: proxy.rates?.get(key) })), "", "type");
  }

  tick() {
    const age = Date.now() - traffic.at;
    const isOld = age > GAP || !isLive();
    const when = clock((this.at || traffic.at) - Date.now() + now());
    text(this.when, this.at ? `At ${when}` : isOld ? `Figures of ${when}, ${span(age)} ago`
      : this.one ? "Rates and percentiles: the last 10 s" : "There is no such route now");
    this.panels.classList.toggle("old", isOld);
  }

  move(by) { this.routes.move(by); }

  close() {
    this.forget();
    for (const list of [this.routes, this.services, this.problems]) list.close();
  }
}

const figures = (title, kind, columns, href) => new List({
  title, id: `${kind}-title`, head: "h2", kind: `figures ${kind}`, empty: "None.", key: ({ name }) => name,
  make: () => new Row(columns, href), columns: columns.map(([name, , , isMinor]) => ({ name, class: isMinor ? "minor" : null })),
});

class Row {
  constructor(columns, href) {
    this.href = href;
    this.link = h("a", { "data-focus": true });
    this.under = h("span", { class: "address" });
    this.cells = columns.slice(1).map(([name, say, kind, isMinor]) => {
      const value = h("span");
      const element = cell(isMinor ? "minor" : "", value);
      element.dataset.name = name;
      return { say, kind, value, element };
    });
    this.element = h("tr", { role: "row" }, cell("", this.link, this.under), ...this.cells.map(({ element }) => element));
  }

  update(one) {
    text(this.link, one.name || UNROUTED);
    attribute(this.link, "href", this.href?.(one));
    text(this.under, one.service === one.name ? "" : one.service ?? "");
    for (const { say, kind, value } of this.cells) {
      const words = say(one, value);
      if (!words) continue;
      text(value, words);
      value.className = isNone(words) ? "dim" : kind ?? "";
    }
  }
}
