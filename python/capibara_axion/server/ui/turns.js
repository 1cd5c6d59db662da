// SPDX-License-Identifier: Apache-2.0
// What was said, as the conversation shows it.

import { byId, element, followEnd, setText } from "./dom.js";
import { rate, seconds } from "./format.js";
import { render } from "./rendering.js";

const conversation = byId("conversation");

/** Shows what the user says, and makes sure that it is in sight. */
export function showQuestion(text, urls) {
  byId("welcome").hidden = true;
  const body = element("div", { className: "said" });
  render(body, text);
  const images = urls.map((url) => element("img", { src: url, alt: "an image that you sent" }));
  conversation.append(turn("question", element("h3", {}, "You"), body, ...images));
  conversation.scrollTop = conversation.scrollHeight;
}

export function clearConversation() {
  conversation.querySelectorAll("article").forEach((article) => article.remove());
  byId("welcome").hidden = false;
}

/** The place of one answer; `show` brings it up to date with a Completion. */
export class AnswerView {
  #who = element("h3");
  #why = element("p", { className: "why" });
  #said = element("div", { className: "said" });
  #article = turn("answer", this.#who, this.#why, this.#said);
  #frame = null;

  constructor(completion) {
    this.completion = completion;
    this.#show();
    conversation.append(this.#article);
    conversation.scrollTop = conversation.scrollHeight;
  }

  /** At the next frame: chunks may come faster. */
  show() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      followEnd(conversation, () => this.#show());
    });
  }

  /** The last change: how it ended, and a fault if there was one. */
  end(note, fault) {
    cancelAnimationFrame(this.#frame);
    followEnd(conversation, () => {
      this.#show();
      if (fault) this.#article.append(element("p", { className: "fault" }, fault));
      const figures = figuresOf(this.completion, note);
      if (figures) this.#article.append(element("p", { className: "figures" }, figures));
    });
  }

  #show() {
    const { model, why, text } = this.completion;
    setText(this.#who, model);
    setText(this.#why, why && `chosen by auto (${why.replace(`${model}; `, "")})`);
    render(this.#said, text);
  }
}

/** The times of an answer, in one line. */
export function figuresOf({ ttft, tokens, tokensPerSecond, loadSeconds }, note = "") {
  const figures = [];
  if (note) figures.push(note);
  if (ttft !== null) {
    const load = loadSeconds >= 0.01 ? ` (${seconds(loadSeconds)} of it loading)` : "";
    figures.push(`first token ${seconds(ttft)}${load}`);
  }
  if (tokensPerSecond !== null) figures.push(`${rate(tokensPerSecond)} tokens/s`);
  if (tokens) figures.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  return figures.join(" · ");
}

function turn(kind, ...children) {
  return element("article", { className: `turn ${kind}` }, ...children);
}
