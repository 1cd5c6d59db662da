// SPDX-License-Identifier: Apache-2.0
// Figures as people read them.

/** 1536 -> "1.5 KiB" */
export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** 0.214 -> "0.21 s", 12.3 -> "12 s", 185 -> "3 min", 7300 -> "2 h" */
export function seconds(value) {
  if (value < 9.995) return `${value.toFixed(2)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return `${Math.round(value / 3600)} h`;
}

/** 7.26 -> "7.3", 214.2 -> "214" */
export function rate(perSecond) {
  return perSecond >= 100 ? String(Math.round(perSecond)) : perSecond.toFixed(1);
}
