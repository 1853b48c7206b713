// One axis for a set of scores, of either sign, and a bar from zero for each.

import { h } from "./dom.js";
import { short } from "./format.js";

/** Return the axis that holds all finite `values` and zero: { low, high, ticks, at(x) in percent }. */
export function scale(values) {
  const found = values.filter(Number.isFinite);
  let low = Math.min(0, ...found);
  let high = Math.max(0, ...found);
  if (low === high) high = 1;
  const step = niceStep((high - low) / 4);
  low = Math.floor(low / step + 1e-9) * step;
  high = Math.ceil(high / step - 1e-9) * step;
  const ticks = [];
  for (let i = Math.round(low / step); i <= Math.round(high / step); i += 1) ticks.push(i * step);
  return { low, high, ticks, at: (x) => (100 * (x - low)) / (high - low) };
}

function niceStep(rough) {
  const unit = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((m) => m * unit).find((step) => step >= rough * (1 - 1e-9));
}

/** A bar from zero to `value`, with a line over `interval` where one is given. Its text is beside it, so it is hidden from screen readers. */
export function bar(value, axis, kind = "", interval = null) {
  const [from, to] = value < 0 ? [axis.at(value), axis.at(0)] : [axis.at(0), axis.at(value)];
  const fill = h("span", { class: "fill" });
  const zero = h("span", { class: "zero" });
  // Through the CSSOM: the content security policy forbids style attributes.
  fill.style.setProperty("left", `${from}%`);
  fill.style.setProperty("width", `${to - from}%`);
  zero.style.setProperty("left", `${axis.at(0)}%`);
  let range = null;
  if (interval) {
    range = h("span", { class: "range" });
    range.style.setProperty("left", `${axis.at(interval[0])}%`);
    range.style.setProperty("width", `${axis.at(interval[1]) - axis.at(interval[0])}%`);
  }
  return h("span", { class: `bar ${value < 0 ? "below" : ""} ${kind}`, "aria-hidden": "true" }, fill, range, zero);
}

/** The labels of an axis: its ends and zero, and what else has room between them. */
export function axisRow(axis) {
  const ends = [axis.low, axis.high].filter((x) => axis.at(0) === axis.at(x) || Math.abs(axis.at(0) - axis.at(x)) > 14);
  const kept = [...new Set([0, ...ends.map((x) => axis.ticks.find((tick) => Math.abs(tick - x) < 1e-9 * (axis.high - axis.low)) ?? x)])];
  for (const tick of axis.ticks) if (kept.every((x) => Math.abs(axis.at(x) - axis.at(tick)) > 14)) kept.push(tick);
  return h("div", { class: "axis", "aria-hidden": "true" }, ...kept.map((tick) => {
    const at = axis.at(tick);
    const label = h("span", { class: at < 1 ? "first" : at > 99 ? "last" : "", text: short(tick) });
    label.style.setProperty("left", `${at}%`);
    return label;
  }));
}
