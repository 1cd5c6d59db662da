// SPDX-License-Identifier: Apache-2.0
// Images that go with the next message, as data: URLs.

import { byId, element } from "./dom.js";
import { bytes } from "./format.js";

/** What is attached. `limits` are the server's; `refused` is told why a file is not taken. */
export class Images {
  #list = byId("images");
  #refused;
  limits = { max_images: Infinity, max_image_bytes: Infinity };
  urls = [];

  constructor(refused) {
    this.#refused = refused;
    const input = byId("image");
    input.addEventListener("change", () => {
      this.add([...input.files]); // the list itself empties with the field
      input.value = ""; // so that the same file can be chosen again
    });
  }

  async add(files) {
    this.#refused("");
    for (const file of files) {
      const problem = this.#problem(file);
      if (problem) this.#refused(problem);
      else this.#show(file, await dataUrl(file));
    }
  }

  clear() {
    this.urls = [];
    this.#list.replaceChildren();
  }

  #problem(file) {
    const { max_images: most, max_image_bytes: largest } = this.limits;
    if (!file.type.startsWith("image/")) return `${file.name} is not an image`;
    if (file.size > largest) {
      const limit = `this server takes images of up to ${bytes(largest)}`;
      return `${file.name} has ${bytes(file.size)}; ${limit}`;
    }
    if (this.urls.length >= most) return `this server takes up to ${most} images in a request`;
    return "";
  }

  #show(file, url) {
    this.urls.push(url);
    const remove = element("button", { type: "button", "aria-label": `Remove ${file.name}` }, "×");
    const item = element(
      "li",
      {},
      element("img", { src: url, alt: "" }),
      element("span", {}, `${file.name}, ${bytes(file.size)}`),
      remove,
    );
    remove.addEventListener("click", () => {
      this.urls.splice(this.urls.indexOf(url), 1);
      item.remove();
      byId("message").focus();
    });
    this.#list.append(item);
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
