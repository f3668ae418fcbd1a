// What is typed into the search: words that must all fit, some of them of one kind only.

/**
 * `billing eu` fits where both are found; `zone=eu-1` is a tag; `service:`, `code:`, `address:`, `tag:`, `role:`, `status:`
 * look in one place; `is:masterless`, `is:guarded`, `is:problem` are about services; `-word` must not be found.
 */
export function parse(query) {
  const words = query.toLowerCase().match(/"[^"]*"|\S+/g) ?? [];
  const ofService = [];
  const ofInstance = [];
  for (let word of words) {
    const isNot = word.length > 1 && word.startsWith("-");
    if (isNot) word = word.slice(1);
    word = word.replaceAll('"', "");
    if (!word) continue;
    const [, kind, value] = /^(service|is|code|address|role|status|tag):(.*)$/.exec(word) ?? [];
    if (kind === "is") ofService.push(not(isNot, (entry) => is(entry, value)));
    else if (kind === "service") ofService.push(not(isNot, (entry) => lower(entry).includes(value)));
    else ofInstance.push(not(isNot, test(kind, value ?? word)));
  }
  return { isEmpty: ofService.length + ofInstance.length === 0, ofService, ofInstance };
}

const not = (isNot, test) => (isNot ? (of, entry) => !test(of, entry) : test);

const lower = (entry) => (entry.lower ??= entry.name.toLowerCase());

function is(entry, what) {
  if (what === "masterless") return !entry.master;
  if (what === "guarded") return entry.guarded;
  if (what === "problem") return entry.problems.length > 0;
  return false;
}

function test(kind, value) {
  switch (kind) {
    case "code": return (instance) => instance.code.toLowerCase().includes(value);
    case "address": return (instance) => (instance.address ?? "").toLowerCase().includes(value);
    case "role": return (instance) => instance.role.startsWith(value) || (instance.observer && "observer".startsWith(value));
    case "status": return (instance) => instance.status.startsWith(value);
    case "tag": return (instance) => words(instance).tags.includes(value);
    default:
      if (/^[^=]+=/.test(value)) return (instance) => words(instance).tags.includes(value);
      return (instance, entry) => words(instance).all.includes(value) || lower(entry).includes(value);
  }
}

// Written once an instance, when first searched: there are ten thousand of them.
const written = new WeakMap();
function words(instance) {
  let known = written.get(instance);
  if (!known) {
    const tags = Object.entries(instance.tags).map(([name, value]) => `${name}=${value}`).join("\n").toLowerCase();
    known = { tags, all: `${instance.code}\n${instance.address ?? ""}\n`.toLowerCase() + tags };
    written.set(instance, known);
  }
  return known;
}

/** The instances of a service that fit; null if the service itself does not. */
export function matching(filter, entry, instances) {
  if (!filter.ofService.every((test) => test(entry))) return null;
  if (filter.ofInstance.length === 0) return instances;
  const found = instances.filter((instance) => filter.ofInstance.every((test) => test(instance, entry)));
  return found.length ? found : null;
}

/** Puts a word into a query, or takes it out if it is there. */
export function toggled(query, word) {
  const words = query.split(/\s+/).filter(Boolean);
  return words.includes(word) ? words.filter((other) => other !== word).join(" ") : [...words, word].join(" ");
}

export const has = (query, word) => query.split(/\s+/).includes(word);
