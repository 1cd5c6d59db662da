// SPDX-License-Identifier: Apache-2.0
// The fields for the keys.

import { keys } from "./api.js";
import { byId, setText } from "./dom.js";

const panel = byId("keys");
const fields = { api: byId("api-key"), admin: byId("admin-key") };

/** Opens the panel at a field ("api" or "admin"), and says why. */
export function askForKey(name, why) {
  setText(byId("keys-message"), why);
  panel.open = true;
  fields[name].focus();
}

/** Fills in what the tab remembers; calls `changed` when the user gives others. */
export function setUpKeys(changed) {
  for (const [name, field] of Object.entries(fields)) field.value = keys.get(name);
  byId("keys-form").addEventListener("submit", (event) => {
    event.preventDefault();
    for (const [name, field] of Object.entries(fields)) keys.set(name, field.value.trim());
    panel.open = false;
    panel.querySelector("summary").focus();
    changed();
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !panel.open) return;
    event.stopPropagation(); // it does not mean the answer
    panel.open = false;
    panel.querySelector("summary").focus();
  });
}
