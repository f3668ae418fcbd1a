// The fleet as the agent tells it. Everything that is drawn is drawn from here.

import { now } from "./dom.js";

const EVENTS = 2000;
const AUDIT = 500;

export const fleet = {
  /** By name: `{name, revision, guarded, master, instances: Map by code, problems, load, changedAt}`. */
  services: new Map(),
  /** What has happened, the newest first: `{event, at_ms, data, number}`. */
  events: [],
  audit: [],
  registry: "",
  agent: null,
  /** Whether a reset has come: before, "nothing" means "not known yet". */
  isKnown: false,
};

const listeners = new Map();
/** Calls `listener(detail)` for `change`, `master`, `event`, `audit`, `load` or `traffic`, until what it returns is called. */
export function on(what, listener) {
  if (!listeners.has(what)) listeners.set(what, new Set());
  listeners.get(what).add(listener);
  return () => listeners.get(what).delete(listener);
}
/** Tells those who listen. */
export const tell = (what, detail) => listeners.get(what)?.forEach((listener) => listener(detail));

let number = 0;

function whole({ service, revision, guarded, master, instances, problems }) {
  const entry = {
    name: service, revision, guarded, master, problems, load: 0, changedAt: 0,
    instances: new Map(instances.map((instance) => [instance.code, instance])),
    // Up to here the picture has it all: what is told of before is told a second time.
    floor: revision,
    seen: new Set(),
  };
  return summed(entry);
}

/** Counts once what every frame asks for. */
function summed(entry) {
  let drained = 0;
  for (const instance of entry.instances.values()) if (instance.status === "drained") drained++;
  entry.drained = drained;
  entry.order = null;
  return entry;
}

/** The instances in the order in which people look for them: the master first. */
export function ordered(entry) {
  entry.order ??= [...entry.instances.values()].sort(
    (a, b) => (b.role === "master") - (a.role === "master") || compare(a.code, b.code),
  );
  return entry.order;
}

const collator = new Intl.Collator("en", { numeric: true });
export const compare = collator.compare;

export const needsAttention = (entry) => !entry.master || entry.guarded || entry.problems.length > 0;

export function totals() {
  const sums = { services: fleet.services.size, instances: 0, masterless: 0, drained: 0, problems: 0, guarded: 0 };
  for (const entry of fleet.services.values()) {
    sums.instances += entry.instances.size;
    sums.drained += entry.drained;
    sums.problems += entry.problems.length;
    if (!entry.master) sums.masterless++;
    if (entry.guarded) sums.guarded++;
  }
  return sums;
}

function reset({ services, registry, agent }) {
  const before = fleet.services;
  fleet.services = new Map(services.map((service) => [service.service, whole(service)]));
  // What is in flight is told when it changes, not because everything else is told anew.
  for (const [name, entry] of fleet.services) {
    const { load = 0, loads, past } = before.get(name) ?? {};
    Object.assign(entry, { load, loads, past });
  }
  fleet.registry = registry ?? fleet.registry;
  fleet.agent = agent ?? fleet.agent;
  fleet.isKnown = true;
}

/** The entry that an event is about, or null if the picture has it already. */
function entryFor(event, data) {
  let entry = fleet.services.get(data.service);
  if (!entry) {
    entry = whole({ service: data.service, revision: 0, guarded: false, master: null, instances: [], problems: [] });
    fleet.services.set(data.service, entry);
  }
  if (data.revision <= entry.floor || data.revision < entry.revision) return null;
  if (data.revision > entry.revision) entry.seen.clear();
  // A connection that broke within a group gets the group once more.
  const key = `${event} ${data.instance?.code ?? ""}`;
  if (entry.seen.has(key)) return null;
  entry.seen.add(key);
  entry.revision = data.revision;
  return entry;
}

const changes = {
  put(entry, { instance }) {
    entry.instances.set(instance.code, instance);
    if (instance.role === "master") entry.master = instance.code;
    else if (entry.master === instance.code) entry.master = null;
  },
  delete(entry, { instance }) {
    entry.instances.delete(instance.code);
    if (entry.master === instance.code) entry.master = null;
  },
  master(entry, { master, before }) {
    // Both are shown as they are now; one that has left is not in the list, and stays out.
    for (const instance of [before, master]) {
      if (instance && entry.instances.has(instance.code)) entry.instances.set(instance.code, instance);
    }
    if (master) entry.instances.set(master.code, master);
    entry.master = master?.code ?? null;
  },
  service(entry, { guarded, problems }) {
    entry.guarded = guarded;
    entry.problems = problems;
  },
};

function change(event, data) {
  const entry = entryFor(event, data);
  if (!entry) return;
  changes[event](entry, data);
  summed(entry);
  entry.changedAt = now();
  if (entry.instances.size === 0 && entry.problems.length === 0) fleet.services.delete(entry.name);
  add({ event, at_ms: data.at_ms, data });
  if (event === "master") tell("master", data);
}

function add(event) {
  event.number = ++number;
  fleet.events.unshift(event);
  if (fleet.events.length > EVENTS + 200) fleet.events.length = EVENTS;
  tell("event", event);
}

// A minute, a second each.
const SAMPLES = 60;
/** Keeps what was in flight, so that it can be drawn: called every second, since loads are told only when they change. */
export function sample() {
  for (const entry of fleet.services.values()) {
    const past = (entry.past ??= []);
    past.push(entry.load);
    if (past.length > SAMPLES) past.shift();
  }
}

/** Loads are told whole: who is not named has none. */
function load({ in_flight }) {
  for (const entry of fleet.services.values()) {
    const codes = in_flight[entry.name];
    entry.loads = codes;
    entry.load = codes ? Object.values(codes).reduce((sum, count) => sum + count, 0) : 0;
  }
  tell("load");
}

/** Takes in an event of the stream. */
export function take(event, data) {
  if (event === "reset") reset(data);
  else if (event === "snapshot") fleet.services.set(data.service, whole(data));
  else if (event === "load") return load(data);
  else if (event === "audit") return takeAudit(data);
  else if (changes[event]) change(event, data);
  else return;
  tell("change");
}

function takeAudit(line) {
  fleet.audit.unshift(line);
  if (fleet.audit.length > AUDIT) fleet.audit.length = AUDIT;
  tell("audit", line);
}

/** What happened before this page was opened: the oldest first, as `/v1/events` has it; the newest first, as `/v1/audit`. */
export function takeHistory(events, audit) {
  const key = ({ event, data }) => `${data.service} ${data.revision} ${event} ${data.instance?.code ?? ""}`;
  const known = new Set(fleet.events.map(key));
  const older = events.filter((event) => !known.has(key(event))).reverse();
  for (const event of older) event.number = -++number;
  fleet.events = [...fleet.events, ...older].sort((a, b) => b.at_ms - a.at_ms).slice(0, EVENTS);
  const said = new Set(fleet.audit.map((line) => JSON.stringify(line)));
  fleet.audit = [...fleet.audit, ...audit.filter((line) => !said.has(JSON.stringify(line)))].slice(0, AUDIT);
  fleet.audit.sort((a, b) => b.at_ms - a.at_ms);
  tell("event");
  tell("audit");
}
