// SPDX-License-Identifier: Apache-2.0
// Run in the page: what of it cannot be read or operated. Contrast as WCAG 2.2 defines it (1.4.3).
() => {
  const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

  function rgba(color) {
    scratch.clearRect(0, 0, 1, 1);
    scratch.fillStyle = color;
    scratch.fillRect(0, 0, 1, 1);
    return scratch.getImageData(0, 0, 1, 1).data;
  }

  function ground(node) {
    for (let at = node; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
      if (color[3] !== 0) throw new Error(`a half transparent ground: ${at.outerHTML}`);
    }
    return [255, 255, 255];
  }

  function luminance(color) {
    const [r, g, b] = Array.from(color.slice(0, 3), (byte) => {
      const value = byte / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function contrast(one, other) {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  }

  const described = (node) => node.outerHTML.slice(0, 120);
  const all = [...document.body.querySelectorAll("*")].filter((node) =>
    node.checkVisibility({ visibilityProperty: true }),
  );
  const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
  const hasText = (node) => [...node.childNodes].some(isText);
  const lowContrast = [];
  let texts = 0;
  for (const node of all) {
    if (!hasText(node) && !node.placeholder) continue;
    texts += 1;
    const color = getComputedStyle(node, hasText(node) ? null : "::placeholder").color;
    const ratio = contrast(rgba(color), ground(node));
    if (ratio < 4.5) lowContrast.push(`${ratio.toFixed(2)}: ${described(node)}`);
  }

  const controls = all.filter((node) =>
    node.matches("button, input, select, textarea, meter, summary, a"),
  );
  const unnamed = controls.filter((node) => {
    const labels = [...(node.labels ?? [])].map((label) => label.textContent).join(" ");
    const own = node.matches("button, summary, a") ? node.textContent : "";
    return !(node.getAttribute("aria-label") || labels || own).trim();
  });

  const width = document.documentElement.clientWidth;
  const cut = "pre, .visually-hidden, .skip, .question h3, .choices label";
  const isCut = (node) => node.closest(cut);
  const tooWide = all.filter(
    (node) => node.getBoundingClientRect().right > width + 0.5 && !isCut(node),
  );
  if (document.documentElement.scrollWidth > width) tooWide.push(document.body);

  const withoutFocus = controls.filter((node) => {
    if (node.matches("meter")) return false;
    node.focus({ focusVisible: true });
    const shown = node.matches(".visually-hidden") ? node.labels[0] : node;
    return document.activeElement !== node || getComputedStyle(shown).outlineStyle === "none";
  });

  return {
    texts,
    low_contrast: lowContrast,
    unnamed: unnamed.map(described),
    too_wide: tooWide.map(described),
    without_focus: withoutFocus.map(described),
  };
};
