// A prompt and its responses, scored by a reward model: best first, on one axis, with the raw numbers.

import { call, key } from "./api.js";
import { axisRow, bar, scale } from "./bars.js";
import { curl } from "./curl.js";
import { emptyBox, errorBox, field, foreign, h, loadingBox, onSend, say } from "./dom.js";
import { count, plural } from "./format.js";

const MAX_RESPONSES = 64;

export function scoreView(root, { served }) {
  if (!served.reward.length) {
    root.append(emptyBox("No reward model is served", "Serve one beside the chat model:",
      "fuseline serve recipe.yaml\npython -m jobs.serve --reward NAME=FOLDER"));
    return {};
  }
  const model = h("select", { id: "score-model" });
  const truncation = h("select", { id: "score-truncation" },
    h("option", { value: "error", text: "is an error" }),
    h("option", { value: "left", text: "loses its beginning" }),
    h("option", { value: "right", text: "loses its end" }));
  const prompt = h("textarea", { id: "score-prompt", rows: 3, placeholder: "What was asked" });
  const context = h("p", { class: "hint context", hidden: true });
  const list = h("ol", { class: "responses" });
  const add = h("button", { type: "button", class: "quiet", text: "Add response" });
  const submit = h("button", { type: "submit", class: "main", text: "Score", "aria-keyshortcuts": "Control+Enter" });
  const command = h("button", { type: "button", text: "Copy as curl" });
  const shown = h("div", { class: "command", hidden: true });
  const results = h("div", { class: "results", "aria-live": "polite" });
  const form = h("form", { class: "card form" },
    h("div", { class: "two" }, field("Reward model", model), field("Too long a text", truncation)),
    field("Prompt", prompt), context,
    h("h3", { text: "Responses" }), list,
    h("div", { class: "row" }, submit, add, h("span", { class: "grow" }), command),
    h("p", { class: "hint keys" }, h("kbd", { text: "Ctrl" }), " ", h("kbd", { text: "Enter" }), " scores"),
    shown);
  root.append(h("h2", { class: "unseen", text: "Score" }), h("div", { class: "halves" }, form, results));

  let earlier = [];
  let abort = null;
  let changed = false;

  const texts = () => [...list.querySelectorAll("textarea")].map((area) => area.value);

  function body() {
    const common = { model: model.value, truncation: truncation.value, return: ["objectives"] };
    const turn = { role: "user", content: prompt.value };
    if (!earlier.length) return { ...common, input: [{ prompt: prompt.value, responses: texts() }] };
    return { ...common, input: texts().map((text) => ({ messages: [...earlier, turn, { role: "assistant", content: text }] })) };
  }

  function addRow(text = "", focus = false) {
    if (list.children.length >= MAX_RESPONSES) return;
    const area = h("textarea", { rows: 2, value: text, placeholder: "A response" });
    const remove = h("button", { type: "button", class: "quiet remove", text: "Remove" });
    const row = h("li", {}, area, remove);
    remove.addEventListener("click", () => {
      const next = row.nextElementSibling ?? row.previousElementSibling;
      row.remove();
      number();
      stale();
      next?.querySelector("textarea").focus();
    });
    list.append(row);
    number();
    if (focus) area.focus();
  }

  function number() {
    const rows = [...list.children];
    rows.forEach((row, i) => {
      row.querySelector("textarea").setAttribute("aria-label", `Response ${i + 1}`);
      const remove = row.querySelector("button");
      remove.setAttribute("aria-label", `Remove response ${i + 1}`);
      remove.disabled = rows.length === 1;
    });
    add.disabled = rows.length >= MAX_RESPONSES;
  }

  async function score() {
    abort?.abort();
    const mine = abort = new AbortController();
    const asked = texts();
    changed = false;
    results.replaceChildren(loadingBox(`Scoring ${plural(asked.length, "response")}`));
    submit.disabled = true;
    try {
      const { value, requestId } = await call("/v1/rewards", { body: body(), signal: mine.signal });
      if (mine !== abort) return;
      const card = served.reward.find((each) => each.id === value.model);
      results.replaceChildren(...resultRows(value, asked, card, requestId, changed));
      say(`Scored ${value.summary.ok} of ${plural(asked.length, "response")}`);
    } catch (error) {
      if (error.name !== "AbortError" && mine === abort) results.replaceChildren(errorBox(error, score));
    } finally {
      if (mine === abort) { abort = null; submit.disabled = false; }
    }
  }

  async function copy() {
    const text = curl("/v1/rewards", body(), Boolean(key()));
    const pre = h("pre", { tabIndex: 0, id: "score-curl", text });
    let done = "Copied. In full:";
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      done = "This browser does not let pages copy; select it here:";
    }
    if (text !== curl("/v1/rewards", body(), Boolean(key()))) return;
    shown.replaceChildren(h("p", { class: "hint", text: done }), pre);
    shown.hidden = false;
    say(done);
  }

  function stale() {
    changed = true;
    shown.hidden = true;
    const note = results.querySelector(".stale");
    if (note) note.hidden = false;
  }

  function showContext() {
    context.hidden = !earlier.length;
    context.replaceChildren(`After ${plural(earlier.length, "earlier message")} of the chat. `,
      h("button", { type: "button", class: "link", text: "Leave them out", onclick: () => { earlier = []; showContext(); stale(); } }));
  }

  function setModels(now) {
    const before = model.value;
    model.replaceChildren(...now.map((card) => h("option", { value: card.id, text: card.id })));
    if (now.some((card) => card.id === before)) model.value = before;
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); score(); });
  form.addEventListener("input", stale);
  onSend(form, score);
  add.addEventListener("click", () => { addRow("", true); stale(); });
  command.addEventListener("click", copy);
  setModels(served.reward);
  addRow();
  addRow();
  results.append(h("div", { class: "empty" }, h("h3", { text: "No scores yet" }),
    h("p", { text: "Scores are raw numbers of the model, higher is better unless it says otherwise. They do not depend on the other responses." })));
  return {
    models: (now) => { served = now; setModels(now.reward); },
    take: (given) => {
      earlier = given.context ?? [];
      prompt.value = given.prompt;
      list.replaceChildren();
      for (const text of given.responses.slice(0, MAX_RESPONSES)) addRow(text);
      showContext();
      stale();
      score();
    },
  };
}

/** Best first; equal scores share a rank; what has no score comes last. */
function resultRows(value, asked, card, requestId, changed) {
  const lower = card?.score_direction === "lower_is_better";
  const items = value.results.map((result, i) => ({ ...result, number: i + 1, text: asked[i] }));
  const scored = items.filter((item) => item.status === "ok").sort((a, b) => (lower ? a.score - b.score : b.score - a.score));
  const failed = items.filter((item) => item.status !== "ok");
  const axis = scale(scored.map((item) => item.score));
  const rankOf = (item) => 1 + scored.filter((other) => (lower ? other.score < item.score : other.score > item.score)).length;
  return [
    h("p", { class: "stale notice", text: "The input has changed since these scores.", hidden: !changed }),
    scored.length ? h("div", { class: "axis-line" }, axisRow(axis)) : null,
    h("ol", { class: "scores" },
      ...scored.map((item) => scoredRow(item, rankOf(item), axis)), ...failed.map(failedRow)),
    h("p", { class: "facts" },
      h("span", { text: `revision ${value.model_revision}` }), h("span", { text: value.scorer.dtype }),
      h("span", { text: plural(value.usage.total_tokens, "token") }),
      card?.score_direction ? h("span", { text: card.score_direction.replaceAll("_", " ") }) : "",
      requestId ? h("span", { text: `request ${requestId}` }) : ""),
    card ? h("p", { class: "hint", text: `Determinism: ${card.determinism}.` }) : null,
  ].filter(Boolean);
}

function scoredRow(item, rank, axis) {
  const best = rank === 1;
  return h("li", { class: `score card ${best ? "best" : ""}` },
    h("div", { class: "score-head" },
      h("span", { class: "rank", text: `#${rank}`, title: `rank ${rank}` }),
      h("span", { class: "name", text: `Response ${item.number}` }),
      item.truncated ? h("span", { class: "badge warn", text: "truncated" }) : null,
      h("span", { class: "hint", text: plural(item.tokens, "token") }),
      h("strong", { class: "value", text: String(item.score).replace("-", "−"), "data-score": String(item.score) })),
    bar(item.score, axis, best ? "good" : ""),
    foreign(item.text, { class: "clamp" }),
    item.objectives ? objectives(item.objectives) : null);
}

function failedRow(item) {
  return h("li", { class: "score card failed" },
    h("div", { class: "score-head" },
      h("span", { class: "rank", text: "–" }),
      h("span", { class: "name", text: `Response ${item.number}` }),
      h("span", { class: "badge bad", text: item.error.code }),
      item.tokens ? h("span", { class: "hint", text: plural(item.tokens, "token") }) : null),
    h("p", { class: "why", text: item.error.message }),
    foreign(item.text, { class: "clamp" }));
}

/** The named parts of a score. */
export function objectives(parts) {
  return h("dl", { class: "parts" }, ...Object.entries(parts).map(([name, value]) =>
    h("div", {}, h("dt", { text: name }), h("dd", { text: typeof value === "number" ? String(Number(value.toPrecision(6))).replace("-", "−") : count(value) }))));
}
