// Starts everything: the stream, the views, the address.

import { get, Refused, setToken, token } from "./api.js";
import { help, signIn, startToasts, whenSignedIn } from "./dialogs.js";
import { $, attribute, draw } from "./dom.js";
import { Audit, Events, startRail } from "./events.js";
import { toggled } from "./filter.js";
import { startKeys } from "./keys.js";
import { Service } from "./service.js";
import { Services } from "./services.js";
import * as status from "./status.js";
import { on, sample, take, takeHistory } from "./store.js";
import { Stream } from "./stream.js";
import { Traffic } from "./traffic.js";

/** `#/services/NAME?q=WORDS`: the path's parts, and the search. */
function address() {
  const [path, search = ""] = location.hash.replace(/^#/, "").split("?");
  let parts;
  try {
    parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    parts = [];
  }
  return { path, parts, query: new URLSearchParams(search).get("q") ?? "" };
}

const VIEWS = { events: () => new Events(), audit: () => new Audit(), traffic: (parts) => new Traffic(parts) };

function make(parts) {
  const [first, name] = parts;
  if (first === "services" && name) return new Service(name);
  return (VIEWS[first] ?? (() => new Services()))(parts);
}

let view = null;
let viewKey = null;
let query = "";

const update = () => view?.update(query);

function route() {
  const { parts, query: words } = address();
  query = words;
  if (document.activeElement !== $("query") || $("query").value.trim() !== words) $("query").value = words;
  const key = JSON.stringify(parts);
  if (key !== viewKey) {
    const isFirst = viewKey === null;
    viewKey = key;
    view?.close();
    view = make(parts);
    $("main").replaceChildren(view.element);
    const name = VIEWS[parts[0]] ? parts[0] : "services";
    attribute(document.body, "data-view", name);
    for (const link of $("nav").children) {
      attribute(link, "aria-current", link.dataset.view === name ? "page" : null);
    }
    if (!isFirst) {
      scrollTo(0, 0);
      $("main").focus({ preventScroll: true });
    }
  }
  update();
  renderStatus();
}

/** Typing changes the address in place: one goes back to another view, not to another letter. */
function setQuery(words) {
  const path = address().path || "/";
  const hash = `#${path}${words ? `?q=${encodeURIComponent(words)}` : ""}`;
  history.replaceState(null, "", hash);
  // Not while a space is typed, between a word and the next.
  if ($("query").value.trim() !== words) $("query").value = words;
  route();
}

/** Filters what is shown, or goes to where the word means something. */
function toggle(word) {
  const isHere = view instanceof Services || (view instanceof Service && !word.startsWith("is:"));
  if (isHere) setQuery(toggled(query, word));
  else location.hash = `#/?q=${encodeURIComponent(word)}`;
}

const renderStatus = status.startStatus(() => query, toggle);

const THEMES = ["auto", "dark", "light"];
const NAMES = { auto: "as the system", dark: "dark", light: "light" };
function showTheme(theme) {
  attribute(document.documentElement, "data-theme", theme === "auto" ? null : theme);
  attribute($("theme"), "data-theme", theme);
  attribute($("theme"), "aria-label", `Colours: ${NAMES[theme]}`);
  attribute($("theme"), "title", `Colours: ${NAMES[theme]}`);
}
function startTheme() {
  const KEY = "pointsman-theme";
  let theme = THEMES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "auto";
  showTheme(theme);
  $("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem(KEY, theme);
    showTheme(theme);
  });
}

/** What happened before; asked for with each connection, since a new one may be to another agent. */
async function loadHistory() {
  try {
    const [events, audit] = await Promise.all([get("v1/events"), get("v1/audit")]);
    takeHistory(events, audit);
  } catch (error) {
    // The stream meets the same trouble, and says so.
    if (!(error instanceof Refused)) throw error;
  }
}

const stream = new Stream("v1/watch?load=1s", {
  event(event, data) {
    if (event === "freshness") status.freshness(data);
    else take(event, data);
  },
  open() {
    status.connected();
    loadHistory();
    view?.load?.();
  },
  lost: status.lost,
  waiting: status.waiting,
  refused() {
    signIn(token() ? "The agent does not know this token. Sign in with another one." : "This agent wants a token.");
  },
});

startTheme();
startToasts();
startRail($("rail-list"));
startKeys({ view: () => view, query: () => query, setQuery });
for (const what of ["change", "load", "event", "audit"]) on(what, () => draw(update));
addEventListener("hashchange", route);
addEventListener("online", () => stream.retry());
document.addEventListener("visibilitychange", () => document.hidden || stream.retry());
$("query").addEventListener("input", () => setQuery($("query").value.trim()));
$("retry").addEventListener("click", () => stream.retry());
$("help").addEventListener("click", help);
$("skip").addEventListener("click", (event) => (event.preventDefault(), $("main").focus()));
$("sign-out").hidden = !token();
$("sign-out").addEventListener("click", () => {
  setToken(null);
  // What was shown is for those who have a token.
  location.reload();
});
whenSignedIn(() => stream.run());
setInterval(() => {
  if (!status.isLive()) return;
  sample();
  if (!document.hidden) view?.tick();
}, 1000);
route();
stream.run();
