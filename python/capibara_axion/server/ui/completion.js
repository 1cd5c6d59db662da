// SPDX-License-Identifier: Apache-2.0
// One streamed answer of /v1/chat/completions, and its times.

import { ApiFailure, eventsOf, request } from "./api.js";

/**
 * What is known of an answer so far.
 *
 * `model` and `why` are from the server once it has chosen; `ttft` (seconds, or null) is as seen
 * here, and so is `tokensPerSecond`, until the server's own account comes with the last chunk.
 */
export class Completion {
  #began = performance.now();
  #firstAt = null;
  #lastAt = null;
  #usage = null;
  #timings = null;

  constructor(model) {
    this.model = model;
    this.why = "";
    this.text = "";
    this.chunks = 0;
    this.finishReason = null;
  }

  get elapsed() {
    return (performance.now() - this.#began) / 1000;
  }

  get ttft() {
    return this.#firstAt === null ? null : (this.#firstAt - this.#began) / 1000;
  }

  get tokens() {
    return this.#usage?.completion_tokens ?? this.chunks;
  }

  get tokensPerSecond() {
    if (this.#timings?.tokens_per_s) return this.#timings.tokens_per_s;
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    return this.chunks > 1 && seconds > 0 ? (this.chunks - 1) / seconds : null;
  }

  get loadSeconds() {
    return this.#timings?.load_s ?? 0;
  }

  /**
   * Asks, and calls `changed` whenever something came. Throws ApiFailure, or AbortError by
   * `signal`; what came before is kept.
   */
  async run(body, signal, changed) {
    const streamed = { stream: true, stream_options: { include_usage: true } };
    const whole = { ...body, ...streamed, model: this.model };
    const response = await request("v1/chat/completions", { body: whole, signal });
    this.model = response.headers.get("X-Capibara-Model") ?? this.model;
    this.why = response.headers.get("X-Capibara-Route") ?? "";
    changed();
    for await (const data of eventsOf(response)) {
      if (data === "[DONE]") return;
      this.#take(JSON.parse(data));
      changed();
    }
    throw new ApiFailure("the connection ended before the answer was complete");
  }

  #take(chunk) {
    if (chunk.error) throw new ApiFailure(chunk.error.message);
    this.#usage = chunk.usage ?? this.#usage;
    this.#timings = chunk.timings ?? this.#timings;
    const choice = chunk.choices?.[0];
    this.finishReason = choice?.finish_reason ?? this.finishReason;
    const piece = choice?.delta?.content;
    if (!piece) return;
    this.text += piece;
    this.chunks += 1;
    this.#lastAt = performance.now();
    this.#firstAt ??= this.#lastAt;
  }
}
