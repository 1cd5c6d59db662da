// SPDX-License-Identifier: Apache-2.0
// Requests to the server that this page came from, with its keys.

const SERVER = new URL("..", document.baseURI);

/** What went wrong, in the server's words; status 0: there was no answer. */
export class ApiFailure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** "api" and "admin": kept for this tab, and no longer. */
export const keys = {
  get: (name) => sessionStorage.getItem(`capibara-axion-${name}-key`) ?? "",
  set: (name, key) => sessionStorage.setItem(`capibara-axion-${name}-key`, key),
};

/**
 * A response that is a success; POST if there is a body, which is sent as JSON.
 *
 * Throws ApiFailure, or AbortError once `signal` says so.
 */
export async function request(path, { body, key = "api", signal } = {}) {
  let response;
  try {
    response = await fetch(new URL(path, SERVER), {
      method: body === undefined ? "GET" : "POST",
      headers: headers(keys.get(key), body !== undefined),
      body: JSON.stringify(body),
      cache: "no-store",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiFailure("the server cannot be reached");
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

/** The data of each server-sent event of a response. Throws as `request` does. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const whole = (held + value).split("\n\n");
      held = whole.pop();
      for (const event of whole) {
        if (event.startsWith("data: ")) yield event.slice(6); // what else there is are comments
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiFailure("the connection to the server broke");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function headers(key, hasBody) {
  const made = hasBody ? { "Content-Type": "application/json" } : {};
  if (key) {
    // A header takes bytes, as characters up to 255.
    const bytes = String.fromCharCode(...new TextEncoder().encode(key));
    made.Authorization = `Bearer ${bytes}`;
  }
  return made;
}

async function failureOf(response) {
  let message = `the server answered ${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not from our server, but from something between.
  }
  const wait = response.headers.get("Retry-After");
  return new ApiFailure(wait ? `${message} (try again in ${wait} s)` : message, response.status);
}
