// What the keyboard does.

import { help, isOpen } from "./dialogs.js";
import { $ } from "./dom.js";

const VIEWS = { 1: "#/", 2: "#/events", 3: "#/audit", 4: "#/traffic" };

/** `app`: `view()`, `setQuery(words)`, `query()`. */
export function startKeys(app) {
  const query = $("query");
  const back = () => {
    if (app.query()) app.setQuery("");
    else if (document.activeElement === query) query.blur();
    else if (app.view().up) location.hash = app.view().up;
  };
  const keys = {
    "/": () => query.select(),
    "?": help,
    j: () => app.view().move(1),
    k: () => app.view().move(-1),
    ArrowDown: () => app.view().move(1),
    ArrowUp: () => app.view().move(-1),
    d: () => app.view().act?.("drain"),
    w: () => app.view().act?.("weight"),
    Escape: back,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isOpen()) return;
    const isTyping = event.target.closest?.("input, textarea, select");
    if (isTyping && !["Escape", "ArrowDown"].includes(event.key)) return;
    const act = keys[event.key] ?? (VIEWS[event.key] && (() => (location.hash = VIEWS[event.key])));
    if (!act) return;
    event.preventDefault();
    act();
  });
}
