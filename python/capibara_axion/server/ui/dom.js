// SPDX-License-Identifier: Apache-2.0
// Elements, made without markup: every string becomes text.

export const byId = (id) => document.getElementById(id);

/** An element with properties (attributes where the name has a hyphen) and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** Changes a text only if it is another: what did not change is not laid out, nor read out. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Makes a change to what a box holds, and keeps its end in sight if it was. */
export function followEnd(box, change) {
  const wasAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 48;
  change();
  if (wasAtEnd) box.scrollTop = box.scrollHeight;
}
