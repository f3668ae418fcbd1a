// How far what is shown can be trusted, and the fleet in five numbers.

import { $, attribute, clock, count, draw, h, now, plural, span, text } from "./dom.js";
import { has } from "./filter.js";
import { fleet, on, totals } from "./store.js";

/** What is known of the connection and of the registry behind the agent. */
const link = { state: "connecting", since: performance.now(), at: 0, reason: "", next: 0, stale: null };

export function connected() {
  link.state = "connected";
  link.at = 0;
  show();
}

/** The picture is of the moment at which the connection was lost, however often it is tried since. */
export function lost(reason) {
  link.reason = reason;
  if (link.state !== "lost") {
    link.state = "lost";
    link.since = performance.now();
    link.at = now();
  }
  show();
}

export function waiting(ms) {
  link.next = performance.now() + ms;
  show();
}

export function freshness({ state, age_ms }) {
  link.stale = state === "stale" ? { since: performance.now() - age_ms, at: now() - age_ms } : null;
  show();
}

/** Whether what is shown is the present: else time does not go on in it. */
export const isLive = () => link.state === "connected";

const ago = (since) => span(performance.now() - since);

/** What to think of the picture: a word for the style sheet, for the pill, and, if it cannot be trusted, why. */
function trust() {
  if (link.state === "connecting") return { word: "connecting", pill: "Connecting" };
  if (link.state === "lost") {
    const wait = Math.ceil((link.next - performance.now()) / 1000);
    return {
      word: "lost", pill: `Agent unreachable, ${ago(link.since)}`, title: "The agent cannot be reached.",
      detail: `${fleet.isKnown ? `This is how it was at ${clock(link.at)}, ${ago(link.since)} ago. ` : ""}${upper(link.reason)}; ` +
        (wait > 0 ? `trying again in ${wait} s.` : "trying again now."),
    };
  }
  if (link.stale) {
    return {
      word: "stale", pill: `Stale, ${ago(link.stale.since)}`, title: "The agent has lost the registry.",
      detail: `This is how it was at ${clock(link.stale.at)}, ${ago(link.stale.since)} ago. It may be different by now.`,
    };
  }
  const { guarded } = totals();
  if (guarded) {
    return {
      word: "guarded", pill: `Guarded: ${count(guarded)}`, title: `${plural(guarded, "service")} guarded.`,
      detail: "The registry has suddenly lost many instances. They are still listed, and still get work.",
    };
  }
  return fleet.isKnown ? { word: "fresh", pill: "Live" } : { word: "connecting", pill: "Connecting" };
}

const upper = (words) => words.charAt(0).toUpperCase() + words.slice(1);

let before = "connecting";
export function show() {
  const { word, pill, title, detail } = trust();
  attribute(document.body, "data-trust", word);
  text($("pill-text"), pill);
  $("banner").hidden = !title;
  text($("banner-title"), title ?? "");
  text($("banner-detail"), detail ?? "");
  $("retry").hidden = word !== "lost";
  if (word !== before) {
    say(title ? `${title} ${word === "lost" ? "What is shown is old." : ""}` : word === "fresh" ? "Live: what is shown is fresh." : "");
    before = word;
  }
}

// Many things may happen at once; a screen reader is told of them together.
const sayings = [];
let timer = 0;
export function say(words) {
  if (!words) return;
  sayings.push(words);
  timer ||= setTimeout(() => {
    timer = 0;
    const more = sayings.length > 4 ? [`And ${sayings.length - 4} more.`] : [];
    $("said").replaceChildren(...[...sayings.slice(0, 4), ...more].map((line) => h("p", {}, line)));
    sayings.length = 0;
  }, 400);
}

const TILES = [
  ["services", "Services", null],
  ["instances", "Instances", null],
  ["masterless", "No master", "is:masterless"],
  ["drained", "Drained", "status:drained"],
  ["problems", "Problems", "is:problem"],
];
const CHIPS = [
  ["Masters", "role:master"], ["Drained", "status:drained"], ["No master", "is:masterless"], ["Guarded", "is:guarded"], ["Problems", "is:problem"],
];

/** `getQuery()` is the search; `toggle(word)` is for who presses a number, to see what has been counted. */
export function startStatus(getQuery, toggle) {
  const tiles = TILES.map(([key, name, word]) => {
    const value = h("span", { class: "value" }, "–");
    const parts = [value, h("span", { class: "name" }, name)];
    const element = word
      ? h("button", { type: "button", class: `tile ${key}`, onclick: () => toggle(word) }, ...parts)
      : h("div", { class: `tile ${key}` }, ...parts);
    $("totals").append(element);
    return { key, word, value, element };
  });
  const chips = CHIPS.map(([name, word]) => {
    const element = h("button", { type: "button", class: "chip", onclick: () => toggle(word) }, name);
    $("chips").append(element);
    return { word, element };
  });
  const render = () => {
    const sums = totals();
    const query = getQuery();
    for (const { key, word, value, element } of tiles) {
      text(value, fleet.isKnown ? count(sums[key]) : "–");
      element.classList.toggle("some", sums[key] > 0);
      if (word) attribute(element, "aria-pressed", has(query, word));
    }
    for (const { word, element } of chips) attribute(element, "aria-pressed", has(query, word));
    text($("registry"), fleet.registry);
    attribute($("registry"), "title", fleet.registry);
    const trouble = sums.masterless + sums.problems;
    document.title = `${trouble ? `(${trouble}) ` : ""}Pointsman`;
    show();
  };
  on("change", () => draw(render));
  on("master", ({ service, master }) => say(master ? `${service}: ${master.code} is master.` : `${service} has no master.`));
  setInterval(show, 500);
  // What sticks to the top sticks below the bar, however high that is now.
  const top = document.querySelector(".top");
  new ResizeObserver(() => document.documentElement.style.setProperty("--top", `${top.offsetHeight}px`)).observe(top);
  return render;
}
