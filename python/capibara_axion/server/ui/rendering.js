// SPDX-License-Identifier: Apache-2.0
// A model's text as elements: paragraphs as they are, and fenced code. Made of text nodes only.

import { element } from "./dom.js";

const FENCE = /^ {0,3}(`{3,})([^`\n]*)\n?$/;

/** Makes `box` show `text`; a text that only grew is appended to what is there. */
export function render(box, text) {
  const found = segments(text);
  found.forEach((segment, index) => {
    const there = box.children[index];
    if (there?.dataset.kind === segment.kind) grow(there, segment.text);
    else if (there) there.replaceWith(made(segment));
    else box.append(made(segment));
  });
  // What looked like a fence may turn out to be none.
  while (box.children.length > found.length) box.lastChild.remove();
}

function segments(text) {
  const found = [];
  let fence = 0;
  let open = null;
  for (const line of text.split(/(?<=\n)/)) {
    const [, marks, language] = line.match(FENCE) ?? [];
    if (marks && !fence) {
      fence = marks.length;
      found.push((open = { kind: "code", language: language.trim(), text: "" }));
    } else if (marks && marks.length >= fence && !language.trim()) {
      fence = 0;
      open = null;
    } else {
      if (!open) found.push((open = { kind: "prose", text: "" }));
      open.text += line;
    }
  }
  for (const segment of found) {
    // Distances are the style's business.
    if (segment.kind === "prose") segment.text = segment.text.replace(/^\n+/, "");
    segment.text = segment.text.trimEnd();
  }
  return found;
}

function made({ kind, language, text }) {
  if (kind === "prose") return element("p", { "data-kind": kind }, text);
  const label = language ? `Code, ${language}` : "Code";
  const code = element("code", {}, text);
  return element("pre", { tabIndex: 0, "aria-label": label, "data-kind": kind }, code);
}

function grow(there, text) {
  const holder = there.dataset.kind === "code" ? there.firstChild : there;
  if (!holder.firstChild) holder.append("");
  const node = holder.firstChild;
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}
