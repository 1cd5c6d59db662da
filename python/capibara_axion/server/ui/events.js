// SPDX-License-Identifier: Apache-2.0
// What happens in the server, line by line.

import { byId, element, followEnd, setText } from "./dom.js";
import { seconds } from "./format.js";

const KEPT = 200;

const CAUSES = {
  idle: "it was idle",
  evicted: "to make room for another",
  "aged out": "a request for another has waited too long",
  cancelled: "nobody waits for it any more",
  memory: "memory is short",
  hung: "it made no progress",
  "load timeout": "its load took too long",
  requested: "asked by an operator",
  reconfigured: "its configuration has changed",
  removed: "it is not in the configuration any more",
  shutdown: "the server is shutting down",
};

/** The list of events; while it is paused, they are held back and counted. */
export class EventList {
  #list = byId("events");
  #pause = byId("pause");
  #held = [];

  constructor() {
    this.#pause.addEventListener("click", () => {
      const paused = this.#pause.getAttribute("aria-pressed") !== "true";
      this.#pause.setAttribute("aria-pressed", String(paused));
      if (!paused) this.#held.splice(0).forEach((line) => this.#append(line));
      this.#label();
    });
  }

  /** Shows an event of /events. */
  add(event) {
    const { text, kind } = inWords(event);
    if (text) this.#take({ at: event.time * 1000, model: event.model, text, kind });
  }

  /** Shows something about the connection itself. */
  note(text) {
    this.#take({ at: Date.now(), text, kind: "note" });
  }

  #take(line) {
    if (this.#pause.getAttribute("aria-pressed") === "true") {
      this.#held = [...this.#held, line].slice(-KEPT);
      this.#label();
    } else {
      this.#append(line);
    }
  }

  #label() {
    const paused = this.#pause.getAttribute("aria-pressed") === "true";
    setText(this.#pause, paused ? `Resume (${this.#held.length})` : "Pause");
  }

  #append({ at, model, text, kind }) {
    const moment = new Date(at);
    const clock = moment.toTimeString().slice(0, 8);
    const time = element("time", { dateTime: moment.toISOString() }, clock);
    const what = element("span", {}, model ? element("b", {}, model) : "", ` ${text}`);
    const item = element("li", { className: kind ?? "" }, time, what);
    followEnd(this.#list, () => {
      this.#list.querySelector(".empty")?.remove();
      this.#list.append(item);
      while (this.#list.children.length > KEPT) this.#list.firstChild.remove();
    });
  }
}

function inWords(event) {
  switch (event.event) {
    case "state":
      return ofState(event);
    case "loading":
      return event.phase === "ready" ? {} : { text: `loads: ${event.phase}` };
    case "loaded":
      return { text: `is ready, loaded in ${seconds(event.seconds)}`, kind: "good" };
    case "unloading":
      return { text: `is unloaded: ${CAUSES[event.cause] ?? event.cause}` };
    case "worker ended":
      return { text: `lost its worker, which ended with code ${event.code}`, kind: "bad" };
    case "hung":
      return { text: `is restarted: ${event.why}`, kind: "bad" };
    default:
      return { text: event.event };
  }
}

function ofState({ state, failure = "no reason is known" }) {
  if (state === "failed") return { text: `has failed: ${failure}`, kind: "bad" };
  if (state === "loading") return { text: "begins to load" };
  if (state === "unloaded") return { text: "is not in memory any more" };
  return {}; // "ready" and "draining": other events tell more
}
