// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en");

export const count = (n) => (n === null || n === undefined ? "–" : whole.format(n));

/** A number in short, with a true minus sign. */
export function short(x, digits = 3) {
  if (x === null || x === undefined) return "–";
  const text = Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(digits - 1) : trim(x.toFixed(digits));
  return text.replace("-", "−");
}

const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

/** Seconds as 0.12 s, 4.5 s, 3 min 05 s or 2 h 10 min. */
export function seconds(s) {
  if (s === null || s === undefined) return "–";
  if (s < 1) return `${s.toFixed(2)} s`;
  if (s < 60) return `${s.toFixed(1)} s`;
  const all = Math.round(s);
  if (all < 3600) return `${Math.floor(all / 60)} min ${String(all % 60).padStart(2, "0")} s`;
  return `${Math.floor(all / 3600)} h ${String(Math.floor((all % 3600) / 60)).padStart(2, "0")} min`;
}

/** An ISO time in the reader's own way. */
export function when(iso) {
  const date = new Date(iso ?? "");
  return Number.isNaN(date.valueOf()) ? "–" : date.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}

export const percent = (share) => `${Math.round(share * 100)} %`;

export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
