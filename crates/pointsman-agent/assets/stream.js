// GET /v1/watch, for ever: a reader of server-sent events that can send a token, and comes back by itself.

import { ask } from "./api.js";
import { learnClock } from "./dom.js";

// The agent says something every 10 s, if only a comment: who is silent for longer is gone.
const SILENCE = 15_000;
const FIRST_WAIT = 250;
const LONGEST_WAIT = 5_000;

/** Cuts a stream of text into events (WHATWG HTML, 9.2.6), each `{event, data, id}`. */
export class Parser {
  constructor(emit) {
    this.emit = emit;
    this.rest = [];
    this.event = "";
    this.data = [];
    this.id = undefined;
    this.afterReturn = false;
  }

  push(chunk) {
    if (this.afterReturn && chunk.startsWith("\n")) chunk = chunk.slice(1);
    this.afterReturn = chunk.endsWith("\r");
    const lines = chunk.split(/\r\n|\n|\r/);
    // The whole fleet is one line of megabytes: its pieces are put together once.
    this.rest.push(lines[0]);
    for (let next = 1; next < lines.length; next++) {
      this.line(this.rest.join(""));
      this.rest = [lines[next]];
    }
  }

  line(line) {
    if (line === "") {
      if (this.data.length) this.emit({ event: this.event || "message", data: this.data.join("\n"), id: this.id });
      this.event = "";
      this.data = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const from = line[colon + 1] === " " ? colon + 2 : colon + 1;
    const value = colon < 0 ? "" : line.slice(from);
    if (field === "event") this.event = value;
    else if (field === "data") this.data.push(value);
    else if (field === "id") this.id = value;
  }
}

/** Keeps a stream open. `on.event(name, data)`, `on.open()`, `on.lost(reason)`, `on.waiting(ms)`, `on.refused(refused)`. */
export class Stream {
  constructor(path, on) {
    this.path = path;
    this.on = on;
    this.failures = 0;
    this.isRunning = false;
    // A browser may keep a page that is left, and with it one of the six connections that it allows.
    addEventListener("pagehide", () => this.cut?.abort());
  }

  async run() {
    if (this.isRunning) return;
    this.isRunning = true;
    while (this.isRunning) {
      try {
        await this.once();
        this.on.lost("the agent has ended the stream");
      } catch (error) {
        if (error.status === 401) {
          this.isRunning = false;
          this.on.refused(error);
          return;
        }
        this.on.lost(error.status ? error.message : this.isSilent ? "it has been silent for 15 s" : "no connection");
      }
      await this.wait();
    }
  }

  async once() {
    const cut = (this.cut = new AbortController());
    this.isSilent = false;
    const silence = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => ((this.isSilent = true), cut.abort()), SILENCE);
    };
    silence();
    try {
      const headers = { accept: "text/event-stream" };
      if (this.last) headers["last-event-id"] = this.last;
      const response = await ask(this.path, { headers, signal: cut.signal });
      learnClock(response.headers.get("date"));
      const parser = new Parser((event) => this.take(event));
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      this.on.open();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        silence();
        parser.push(value);
      }
    } finally {
      clearTimeout(this.timer);
    }
  }

  take({ event, data, id }) {
    this.failures = 0;
    this.on.event(event, JSON.parse(data));
    // After what it says has been taken in: else it would be missing after a failure.
    if (id !== undefined) this.last = id;
  }

  /** Longer each time, and never at the same time as all others that have lost the same agent. */
  wait() {
    const longest = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.failures++);
    const wait = longest * (0.5 + Math.random() / 2);
    this.on.waiting(wait);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, wait);
      this.now = () => (clearTimeout(timer), resolve());
    });
  }

  /** Tries at once, if it waits to try. */
  retry() {
    this.now?.();
  }
}
