// What is asked before anything is done, who one is, and which keys there are.

import { drain, Refused, setToken, setWeight, token, undrain } from "./api.js";
import { $, clock, h, plural, text } from "./dom.js";
import { sentence } from "./events.js";
import { fleet, on } from "./store.js";

let opened = null;

function open(dialog) {
  // With a question open, another key must not ask a second one.
  if (isOpen()) return;
  opened = dialog;
  // Escape closes it without our doing.
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** At once: the event comes with the next frame, and until then there would be two of everything in the page. */
function close(dialog) {
  dialog.close();
  dialog.remove();
}

export const isOpen = () => opened?.open === true;

/** Asks; does it when told so; stays open, and says why, when it could not be done. */
function confirm({ title, words, field, yes, danger, perform }) {
  const failure = h("p", { class: "failure", role: "alert", hidden: true });
  const again = h("button", { type: "button", class: "ghost", hidden: true }, "Use another token");
  // Whoever presses Enter too often does not drain by it.
  const cancel = h("button", { type: "button", class: "ghost", autofocus: danger }, "Cancel");
  const accept = h("button", { type: "submit", class: danger ? "primary danger" : "primary", autofocus: !danger && !field }, yes);
  const form = h("form", {}, h("h2", { id: "dialog-title" }, title), ...words, field, failure,
    h("div", { class: "buttons" }, again, cancel, accept));
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "dialog-title" }, form);
  cancel.addEventListener("click", () => close(dialog));
  again.addEventListener("click", () => (close(dialog), signIn("Sign in with the write token.")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    accept.disabled = true;
    try {
      await perform();
      close(dialog);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      const mayOnlyRead = error.status === 403;
      text(failure, mayOnlyRead ? "This token may only read: nothing was done." : `Nothing was done: ${error.message}`);
      failure.hidden = false;
      again.hidden = !(mayOnlyRead || error.status === 401);
    } finally {
      accept.disabled = false;
    }
  });
  open(dialog);
}

const strong = (words) => h("b", { class: "code" }, words);
const which = ({ service, code, address }) =>
  h("p", {}, strong(code), address ? ` at ${address}` : "", " of service ", strong(service));
const p = (...words) => h("p", {}, ...words);

export function askDrain(instance, entry) {
  const { service, code, role } = instance;
  const load = entry?.loads?.[code] ?? 0;
  const working = [...(entry?.instances.values() ?? [])].filter(({ status }) => status !== "drained");
  const isLast = working.length === 1 && working[0].code === code;
  confirm({
    title: "Drain this instance?", yes: `Drain ${short(code)}`, danger: true,
    words: [
      which(instance),
      p("It gets no new claims from now on, also after it has been restarted, until it is undrained. ",
        load ? `${plural(load, "claim")} in flight may finish. ` : "", "It stays registered",
        role === "master" ? ", and it stays master." : "."),
      isLast ? h("p", { class: "failure" }, "It is the only instance that takes work: after this there is none.") : null,
    ],
    perform: () => drain(service, code),
  });
}

export function askUndrain(instance) {
  confirm({
    title: "Undrain this instance?", yes: `Undrain ${short(instance.code)}`,
    words: [which(instance), p("It is given work again at once, in proportion to its weight.")],
    perform: () => undrain(instance.service, instance.code),
  });
}

export function askWeight(instance) {
  const input = h("input", { type: "number", min: 0, max: 1_000_000, step: 1, id: "weight", inputmode: "numeric", autofocus: true, value: instance.weight });
  confirm({
    title: "Another weight?", yes: "Set the weight",
    words: [which(instance), p(`Its share of the calls is ${instance.weight} now, relative to the others'. What is set here counts instead of ` +
      "what it has registered, also after it has been restarted. 0 means drained; nothing at all gives back the registered weight.")],
    field: h("p", { class: "field" }, h("label", { for: "weight" }, "Weight"), input),
    perform: () => setWeight(instance.service, instance.code, input.value === "" ? null : Number(input.value)),
  });
}

const short = (code) => (code.length > 24 ? `${code.slice(0, 23)}…` : code);

let onSignedIn = () => {};
export const whenSignedIn = (then) => (onSignedIn = then);

export function signIn(reason) {
  const input = h("input", { type: "password", id: "token", autocomplete: "off", spellcheck: "false", required: true, autofocus: true });
  const form = h("form", {}, h("h2", { id: "dialog-title" }, "Sign in"), h("p", {}, reason),
    h("p", { class: "field" }, h("label", { for: "token" }, "Token"), input),
    h("p", { class: "dim" }, "The read token shows everything; the write token may also drain. It is kept in this tab, until it is closed."),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Sign in")));
  const dialog = h("dialog", { class: "dialog sign-in", "aria-labelledby": "dialog-title" }, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setToken(input.value.trim());
    close(dialog);
    $("sign-out").hidden = !token();
    onSignedIn();
  });
  open(dialog);
}

const KEYS = [
  ["/", "search"], ["j k ↓ ↑", "next, previous line"], ["Enter", "open the service"], ["d", "drain or undrain the instance"],
  ["w", "weight of the instance"], ["1 2 3 4", "services, events, audit, traffic"], ["Esc", "clear the search, or go back"], ["?", "this"],
];
const WORDS = [
  ["billing eu", "both, anywhere"], ["zone=eu-1", "a tag"], ["role:master", "or role:normal, role:observer"], ["status:drained", "or status:passing"],
  ["service: code: address:", "only there"], ["is:masterless", "or is:guarded, is:problem"], ["-word", "without it"],
];

export function help() {
  const list = (pairs) => h("dl", {}, ...pairs.flatMap(([key, words]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, words)]));
  const done = h("button", { type: "button", class: "primary", autofocus: true, onclick: () => close(dialog) }, "Close");
  const about = fleet.agent ? `Agent ${fleet.agent.version}, since ${clock(fleet.agent.started_ms)}, of ${fleet.registry}` : "";
  const dialog = h("dialog", { class: "dialog wide", "aria-labelledby": "dialog-title" },
    h("h2", { id: "dialog-title" }, "Keys and search"),
    h("div", { class: "two" }, h("section", {}, h("h3", {}, "Keys"), list(KEYS)), h("section", {}, h("h3", {}, "Search"), list(WORDS))),
    h("p", { class: "dim" }, about), h("div", { class: "buttons" }, done));
  open(dialog);
}

/** The line of the audit, for a while, as soon as the agent has told it to everybody. */
export function startToasts() {
  on("audit", (line) => {
    if (!line) return;
    const toast = h("p", { class: "toast" }, h("time", {}, clock(line.at_ms)), " ", sentence(line), h("span", { class: "dim" }, ` · ${line.actor}`));
    $("toasts").append(toast);
    while ($("toasts").childElementCount > 3) $("toasts").firstChild.remove();
    setTimeout(() => toast.remove(), 8000);
  });
}
