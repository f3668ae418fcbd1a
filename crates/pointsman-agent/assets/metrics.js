// The proxy's figures: samples of `/metrics`, and what went on between them.

import { ask } from "./api.js";
import { isLive } from "./status.js";
import { tell } from "./store.js";

const EVERY = 2000;
// What rates and percentiles are of.
const WINDOW = 10_000;
export const PAST = 600_000;
/** Samples farther apart do not belong together. */
export const GAP = 3500;

const CLASSES = ["1xx", "2xx", "3xx", "4xx", "5xx", "gone"];
/** Places in a point: an array, since there are 300 for each route. */
export const P = Object.fromEntries(["at", "total", ...CLASSES, "requests", "p50", "p95", "p99"].map((name, place) => [name, place]));

// Of a route, a service, the proxy: `counts` and `levels` as told, `rates` a second, `past` points.
const known = (name, service) => ({ name, service, ring: [], past: [], point: null, rates: null, levels: new Map(), counts: new Map() });

/** `state`: `waiting`, `absent` or `known`; `longest`: the last bound of durations, in seconds. */
export const traffic = {
  state: "waiting", at: 0, longest: 0, routes: new Map(), services: new Map(), proxy: known(), all: known(),
};
let isBroken = true;

const LINE = /^pointsman_http_(\w+?)(_total|_bucket)?(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Takes in a sample of a moment, in milliseconds. */
export function take(at, text) {
  const found = { routes: new Map(), services: new Map(), proxy: known() };
  for (const line of text.split("\n")) {
    const [, family, isCount, labels = "", value] = LINE.exec(line) ?? [];
    if (!family) continue;
    const of = {};
    let key = family;
    for (let [, label, name] of labels.matchAll(LABEL)) {
      name = name.replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
      if (label === "route" || label === "service") of[label] = name;
      else key += ` ${name}`;
    }
    const [group, name] = of.route === undefined ? [found.services, of.service] : [found.routes, of.route];
    if (name !== undefined && !group.has(name)) group.set(name, known(name, of.service));
    (group.get(name) ?? found.proxy)[isCount ? "counts" : "levels"].set(key, Number(value));
  }
  if (!found.routes.size) {
    traffic.state = "absent";
    return miss();
  }
  isBroken ||= !(at > traffic.at && at - traffic.at <= GAP);
  for (const kind of ["routes", "services"]) for (const [name, one] of found[kind]) follow(traffic[kind].get(name), one, at);
  follow(traffic.proxy, found.proxy, at);
  const routes = [...found.routes.values()];
  const all = { ...traffic.all, levels: sum(routes, "levels"), rates: routes.some(({ rates }) => rates) ? sum(routes, "rates") : null };
  for (const one of [...routes, all]) remember(one, at);
  Object.assign(traffic, found, { state: "known", at, all });
  isBroken = false;
  tell("traffic");
}

function follow(before, one, at) {
  const ring = before && !isBroken ? before.ring : [];
  const last = ring.at(-1)?.counts;
  // Counted anew since: what was counted until then is no part of the difference.
  if (last && [...last].some(([key, count]) => !(one.counts.get(key) >= count))) {
    for (const { counts } of ring) for (const [key, count] of last) counts.set(key, (counts.get(key) ?? 0) - count);
  }
  ring.push({ at, counts: new Map(one.counts) });
  while (ring.length > 2 && at - ring[1].at >= WINDOW) ring.shift();
  Object.assign(one, { ring, past: before?.past ?? [] });
  const [first] = ring;
  if (ring.length < 2) return;
  one.rates = new Map([...one.counts].map(([key, count]) => [key, ((count - (first.counts.get(key) ?? 0)) * 1000) / (at - first.at)]));
}

function sum(all, what) {
  const sums = new Map();
  for (const one of all) for (const [key, value] of one[what] ?? []) sums.set(key, (sums.get(key) ?? 0) + value);
  return sums;
}

function remember(one, at) {
  one.point = null;
  if (!one.rates) return;
  const classes = CLASSES.map((name) => one.rates.get(`requests ${name}`) ?? 0);
  one.point = [at, classes.reduce((a, b) => a + b), ...classes, Math.max(0, one.levels.get("in_flight") ?? 0), ...percentiles(one.rates)];
  one.past.push(one.point);
  while (one.past[0][P.at] < at - PAST) one.past.shift();
}

/** As Prometheus has them: within a bucket every duration is as likely. What is beyond the last bound is infinite. */
function percentiles(rates) {
  const buckets = [...rates].filter(([key]) => key.startsWith("request_duration"))
    .map(([key, rate]) => [Number(key.split(" ")[1].replace("+Inf", "Infinity")), rate]).sort(([a], [b]) => a - b);
  traffic.longest = buckets.at(-2)?.[0];
  return [0.5, 0.95, 0.99].map((share) => {
    const rank = share * buckets.at(-1)?.[1];
    const index = rank > 0 ? buckets.findIndex(([, sum]) => sum >= rank) : -1;
    if (index < 0) return NaN;
    const [bound, sum] = buckets[index];
    const [from, below] = buckets[index - 1] ?? [0, 0];
    return from + (bound - from) * ((rank - below) / (sum - below));
  });
}

// What comes next does not continue what was before.
function miss() {
  isBroken = true;
  tell("traffic");
}

let timer = 0;
let isAsking = false;
/** From now on, whatever view is shown: who comes back sees what has been meanwhile. */
export function startSampling() {
  timer ||= setInterval(sample, EVERY);
  if (Date.now() - traffic.at >= EVERY) sample();
}

async function sample() {
  if (isAsking) return;
  if (!isLive()) return miss();
  isAsking = true;
  const asked = Date.now();
  const text = await ask("metrics", { signal: AbortSignal.timeout(GAP) }).then((response) => response.text()).catch(() => null);
  isAsking = false;
  if (text === null) miss();
  else take((asked + Date.now()) / 2, text);
}
