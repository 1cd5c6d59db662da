// SPDX-License-Identifier: Apache-2.0
// The stream of events as the sign that the server is there: kept open, and opened again.

import { eventsOf, request } from "./api.js";

const LONGEST_WAIT_S = 8;

/**
 * Listens to /events for as long as the page is there.
 *
 * `connected()` is called when the stream has opened, `event(fields)` for each event, and
 * `lost(failure, wait)` when it ended or could not be opened. It is tried again after `wait`
 * seconds (null where a key is needed: not by itself), or by `retry()`, as with new keys.
 */
export class Connection {
  #attempt = new AbortController();

  async listen({ connected, event, lost }) {
    let wait = 1;
    for (;;) {
      const { signal } = (this.#attempt = new AbortController());
      let failure = new Error("the server ended the connection");
      try {
        const response = await request("events", { signal });
        wait = 1;
        connected();
        for await (const data of eventsOf(response)) event(JSON.parse(data));
      } catch (error) {
        failure = error;
      }
      if (signal.aborted) continue;
      const needsKey = failure.status === 401;
      lost(failure, needsKey ? null : wait);
      await pause(needsKey ? null : wait, signal);
      wait = Math.min(2 * wait, LONGEST_WAIT_S);
    }
  }

  retry() {
    this.#attempt.abort();
  }
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = seconds === null ? null : setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
