// SPDX-License-Identifier: Apache-2.0
// The conversation with an expert: what is asked, answered, and stopped.

import { Completion } from "./completion.js";
import { byId, element, setText } from "./dom.js";
import { seconds } from "./format.js";
import { Images } from "./images.js";
import { AnswerView, clearConversation, figuresOf, showQuestion } from "./turns.js";

const AUTO = "auto";
const TAKES_IMAGES = /multimodal|vision/; // words of a domain, as the server's routing has them
const TICK_MS = 100;

const message = byId("message");
const expert = byId("expert");
const send = byId("send");
const progress = byId("progress");

/** Call `setModels` and `setLimits` with what the server says of itself. */
export class Chat {
  #history = [];
  #models = [];
  #running = null; // AbortController of the answer that streams
  #images = new Images((problem) => setText(byId("composer-fault"), problem));

  constructor() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) this.stop();
      else this.#send();
    });
    message.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#running) this.#send();
    });
    message.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) this.#images.add([...event.clipboardData.files]);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    byId("settings-toggle").addEventListener("click", () => showSettings(byId("settings").hidden));
    byId("new-conversation").addEventListener("click", () => this.#startAnew());
  }

  setModels(models) {
    this.#models = models;
    const chosen = expert.value;
    const options = models.map(({ id, domain }) =>
      element("option", { value: id }, domain ? `${id} (${domain})` : id),
    );
    expert.replaceChildren(element("option", { value: AUTO }, AUTO), ...options);
    expert.value = models.some(({ id }) => id === chosen) ? chosen : AUTO;
  }

  setLimits(limits) {
    this.#images.limits = limits;
  }

  stop() {
    this.#running?.abort();
  }

  #startAnew() {
    this.stop();
    this.#history = [];
    this.#images.clear();
    clearConversation();
    setText(byId("composer-fault"), "");
    message.focus();
  }

  async #send() {
    const text = message.value.trim();
    const urls = this.#images.urls;
    if (!text && !urls.length) return;
    const problem = this.#problem(urls);
    setText(byId("composer-fault"), problem);
    if (problem) return;
    const history = this.#history;
    history.push({ role: "user", content: contentOf(text, urls) });
    showQuestion(text, urls);
    message.value = "";
    this.#images.clear();
    const answer = await this.#answer(history);
    // Two questions in a row are more than some models' templates allow.
    if (answer) history.push({ role: "assistant", content: answer });
    else history.pop();
  }

  /** Why this cannot be sent; shows the field that is at fault. */
  #problem(urls) {
    const form = byId("composer");
    if (!form.checkValidity()) {
      showSettings(true);
      form.reportValidity();
      return "see the settings";
    }
    const takers = this.#models.filter(({ domain }) => TAKES_IMAGES.test(domain));
    const able = [AUTO, ...takers.map(({ id }) => id)];
    if (urls.length && takers.length && !able.includes(expert.value)) {
      return `${expert.value} takes no images; choose one of: ${able.join(", ")}`;
    }
    return "";
  }

  /** Streams an answer into the conversation; returns as much of it as there is. */
  async #answer(history) {
    const completion = new Completion(expert.value);
    const view = new AnswerView(completion);
    const running = (this.#running = new AbortController());
    setText(send, "Stop");
    setText(byId("announcer"), `${completion.model} is asked`);
    const ticking = setInterval(() => setText(progress, progressOf(completion)), TICK_MS);
    let note = "";
    let fault = "";
    try {
      await completion.run(bodyOf(history), running.signal, () => view.show());
      if (completion.finishReason === "length") note = "ended by max tokens";
    } catch (error) {
      if (error.name === "AbortError") note = "stopped";
      else fault = error.message;
    }
    clearInterval(ticking);
    view.end(note, fault);
    this.#running = null;
    setText(send, "Send");
    setText(progress, "");
    const heard = [`${completion.model}:`, completion.text, note, fault];
    setText(byId("announcer"), heard.filter(Boolean).join(" "));
    return completion.text;
  }
}

function showSettings(shown) {
  byId("settings").hidden = !shown;
  byId("settings-toggle").setAttribute("aria-expanded", String(shown));
}

function bodyOf(history) {
  const system = byId("system").value.trim();
  const temperature = byId("temperature").value;
  return {
    messages: system ? [{ role: "system", content: system }, ...history] : [...history],
    max_tokens: Number(byId("max-tokens").value),
    ...(temperature && { temperature: Number(temperature) }),
  };
}

function contentOf(text, urls) {
  if (!urls.length) return text;
  const images = urls.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...images, { type: "text", text }] : images;
}

function progressOf(completion) {
  if (completion.ttft !== null) return `${completion.model} · ${figuresOf(completion)}`;
  return `waiting for ${completion.model} · ${seconds(completion.elapsed)}`;
}
