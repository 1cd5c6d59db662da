// SPDX-License-Identifier: Apache-2.0
// The experts and what they do, with buttons to load and unload them.

import { request } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { bytes, rate, seconds } from "./format.js";

const ACTIONS = { unloaded: "Load", failed: "Load", ready: "Unload" };
const UNDER_WAY = { loading: "Loading", draining: "Unloading" };

/** One card for each model. `refused(failure)` is called when an operation was. */
export class Experts {
  #cards = new Map();
  #refused;

  constructor(refused) {
    this.#refused = refused;
  }

  /** Keeps cards as they are, with what they say and the focus, as after a new connection. */
  setModels(models) {
    const cards = models.map((model) => {
      const card = this.#cards.get(model.id);
      return card?.about === aboutOf(model) ? card : new Card(model, this.#refused);
    });
    const list = byId("experts");
    const items = cards.map((card) => card.item);
    this.#cards = new Map(cards.map((card) => [card.name, card]));
    const isShown = (item, at) => list.children[at] === item;
    if (items.length !== list.children.length || !items.every(isShown)) list.replaceChildren(...items);
  }

  /** Whether there is a card for each of them. */
  knows(names) {
    return names.length === this.#cards.size && names.every((name) => this.#cards.has(name));
  }

  show(statistics) {
    for (const [name, card] of this.#cards) card.show(statistics[name]);
  }
}

class Card {
  #state = element("span", { className: "state" });
  #pinned = element("span", { className: "badge", hidden: true }, "pinned");
  #warm = element("span", { className: "badge", hidden: true }, "warm");
  #button = element("button", { type: "button" }, "Load");
  #fault = element("p", { className: "fault", "aria-live": "polite" });
  #figures = new Map(
    ["Memory", "Running", "Waiting", "Tokens/s", "Last load"].map((name) => [name, figure(name)]),
  );

  constructor(model, refused) {
    this.name = model.id;
    this.about = aboutOf(model);
    const badges = [this.#state, this.#pinned, this.#warm];
    const boxes = Array.from(this.#figures.values(), ({ box }) => box);
    this.item = element(
      "li",
      { className: "expert" },
      element("h3", {}, ...breakable(this.name)),
      this.#button,
      element("p", { className: "about", title: this.about }, ...badges, this.about),
      element("dl", {}, ...boxes),
      this.#fault,
    );
    this.#button.addEventListener("click", () => this.#operate(refused));
  }

  show(model) {
    this.#state.dataset.state = model.state;
    const age = model.state_age_s === null ? "" : ` for ${seconds(Math.floor(model.state_age_s))}`;
    setText(this.#state, model.state + age.replace(".00", ""));
    this.#pinned.hidden = !model.pinned;
    this.#warm.hidden = !model.warm;
    this.#showButton(model.state);
    const { measured_bytes: measured, predicted_bytes: predicted } = model.memory;
    this.#set("Memory", measured === null ? `≈ ${bytes(predicted)}` : bytes(measured));
    this.#figures.get("Memory").box.title = measured === null ? "predicted" : "measured";
    this.#set("Running", String(model.running));
    this.#set("Waiting", String(model.waiting));
    this.#set("Tokens/s", model.tokens_per_s ? rate(model.tokens_per_s) : "–");
    this.#set("Last load", model.last_load_s === null ? "–" : seconds(model.last_load_s));
    if (model.failure) setText(this.#fault, model.failure);
    else if (model.state !== "unloaded") setText(this.#fault, "");
  }

  #showButton(state) {
    setText(this.#button, ACTIONS[state] ?? UNDER_WAY[state] ?? state);
    // Not `disabled`, with which a button loses the focus.
    this.#button.setAttribute("aria-disabled", String(!(state in ACTIONS)));
    this.#button.setAttribute("aria-label", `${this.#button.textContent} ${this.name}`);
  }

  #set(name, value) {
    setText(this.#figures.get(name).value, value);
  }

  async #operate(refused) {
    if (this.#button.getAttribute("aria-disabled") === "true") return;
    const operation = this.#button.textContent === "Load" ? "load" : "unload";
    setText(this.#fault, "");
    this.#button.setAttribute("aria-disabled", "true");
    try {
      await request(`models/${operation}`, { body: { model: this.name }, key: "admin" });
    } catch (failure) {
      setText(this.#fault, failure.message);
      this.#button.setAttribute("aria-disabled", "false");
      refused(failure);
    }
  }
}

function aboutOf({ domain, description }) {
  return [domain, description].filter(Boolean).join(" · ");
}

/** A name that may be broken behind its underscores. */
function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part) => [part, element("wbr")]);
}

function figure(name) {
  const value = element("dd", {}, "–");
  return { value, box: element("div", {}, element("dt", {}, name), value) };
}
