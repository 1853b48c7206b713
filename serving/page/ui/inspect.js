// A training row of the run: the prompt, every answer to it with its reward, and what became of each and why.

import { call } from "./api.js";
import { axisRow, bar, scale } from "./bars.js";
import { emptyBox, errorBox, field, foreign, h, loadingBox, say } from "./dom.js";
import { count, plural, short } from "./format.js";
import { objectives } from "./score.js";

const PAGE = 20;
const TYPING_MS = 250;
const ROLE = {
  source_chosen: "source chosen", target_chosen: "target chosen", rejected: "rejected", chosen: "chosen",
  source_rejected: "source rejected", response: "chosen", responses: "compared",
};

export function inspectView(root, { served, go }) {
  const arm = h("select", { id: "inspect-arm" });
  const show = h("select", { id: "inspect-show" },
    h("option", { value: "all", text: "rows and dropped" }), h("option", { value: "rows", text: "rows" }), h("option", { value: "dropped", text: "dropped" }));
  const query = h("input", { id: "inspect-query", type: "search", placeholder: "text, id, domain or model", maxLength: 200 });
  const list = h("div", { class: "rows" });
  const side = h("div", { class: "detail" });
  let offset = 0;
  let arms = [];
  let usual = null;
  let listed = "";
  let opened = null;
  let latest = 0;
  let shows = 0;
  let starts = 0;
  let started = null;

  async function start() {
    const mine = ++starts;
    root.replaceChildren(loadingBox("Reading the run"));
    arms = [];
    listed = "";
    try {
      const { value } = await call("/ui/data/run");
      if (mine !== starts) return;
      if (!value.run) return root.replaceChildren(emptyBox("No run to inspect", value.why));
      arms = value.run.arms;
      usual = arms.find((each) => each.name === value.run.served_arm) ?? arms[0];
    } catch (error) {
      if (mine !== starts) return;
      started = null;
      return root.replaceChildren(errorBox(error, () => view.show(current())));
    }
    if (!arms.length) return root.replaceChildren(emptyBox("No rows yet", "This run has not selected any training rows so far."));
    arm.replaceChildren(...arms.map((each) => h("option", { value: each.name, text: `${each.name} (${each.rule}, ${count(each.rows)} rows)` })));
    root.replaceChildren(
      h("h2", { class: "unseen", text: "Inspect" }),
      h("form", { class: "card settings", role: "search", onsubmit: (event) => event.preventDefault() },
        field("Trained model", arm), field("Show", show), field("Search", query)),
      h("div", { class: "split" }, list, side));
  }

  const current = () => location.hash.slice(1).split("/").slice(1).map(decodeURIComponent);

  /** A prompt has other answers and another verdict in each arm, so nothing of the last one stays. */
  function change(name) {
    listed = name;
    opened = null;
    list.replaceChildren();
    side.replaceChildren(emptyBox("Choose a row", "Its prompt, all answers and the reasons are shown here."));
    return again();
  }

  async function load() {
    const mine = ++latest;
    const asked = new URLSearchParams({ arm: arm.value, offset, limit: PAGE, show: show.value });
    if (query.value.trim()) asked.set("query", query.value.trim());
    if (!list.children.length) list.replaceChildren(loadingBox());
    list.setAttribute("aria-busy", "true");
    try {
      const { value } = await call(`/ui/data/rows?${asked}`);
      if (mine !== latest) return;
      list.replaceChildren(...page(value));
    } catch (error) {
      if (mine !== latest) return;
      list.replaceChildren(errorBox(error, load));
    }
    list.removeAttribute("aria-busy");
    mark();
  }

  function page(value) {
    if (!value.rows.length) return [emptyBox("Nothing found", query.value ? "No prompt holds this text." : "There are no such rows.")];
    const step = (by, text) => h("button", {
      type: "button", text, disabled: by < 0 ? !value.offset : !value.more,
      onclick: () => { offset = Math.max(0, offset + by); load(); list.scrollIntoView({ block: "nearest" }); },
    });
    const last = value.offset + value.rows.length;
    const of = value.total === null ? "" : ` of ${count(value.total)}`;
    return [
      h("ul", {}, ...value.rows.map((row) => h("li", {}, rowLink(value.arm, row)))),
      h("nav", { class: "row", "aria-label": "Pages of rows" },
        step(-PAGE, "Previous"), h("span", { class: "hint grow", text: `${count(value.offset + 1)} to ${count(last)}${of}` }), step(PAGE, "Next")),
    ];
  }

  async function open(name, promptId) {
    const mine = opened = { arm: name, prompt: promptId };
    mark();
    side.replaceChildren(loadingBox("Reading the answers"));
    const asked = new URLSearchParams({ arm: name, prompt_id: promptId });
    try {
      const { value } = await call(`/ui/data/row?${asked}`);
      if (mine !== opened) return;
      side.replaceChildren(...detail(value, served.reward.length ? go : null, back));
      say(`${value.prompt_id}: ${plural(value.candidates.length, "answer")}`);
      if (matchMedia("(max-width: 899px)").matches) side.scrollIntoView({ block: "start" });
    } catch (error) {
      if (mine === opened) side.replaceChildren(errorBox(error, () => open(name, promptId)));
    }
  }

  /** On small screens the rows are above the answers. */
  function back() {
    const link = list.querySelector("[aria-current]") ?? list.querySelector("a");
    link?.scrollIntoView({ block: "center" });
    link?.focus({ preventScroll: true });
  }

  function mark() {
    for (const link of list.querySelectorAll("a")) {
      if (link.dataset.prompt === opened?.prompt) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  const again = () => { offset = 0; return load(); };
  let timer = 0;
  arm.addEventListener("change", () => { location.hash = `inspect/${encodeURIComponent(arm.value)}`; });
  show.addEventListener("change", again);
  query.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(again, TYPING_MS); });

  const view = {
    models: (now) => { served = now; },
    refresh: () => { started = null; view.show(current()); },
    show: async ([name, promptId]) => {
      const mine = ++shows;
      started ??= start();
      await started;
      if (mine !== shows || !arms.length) return;
      const known = arms.some((each) => each.name === name) ? name : usual.name;
      arm.value = known;
      if (known !== listed) await change(known);
      if (mine !== shows) return;
      if (promptId && (opened?.arm !== known || opened.prompt !== promptId)) await open(known, promptId);
    },
  };
  return view;
}

function rowLink(arm, row) {
  const link = h("a", { href: `#inspect/${encodeURIComponent(arm)}/${encodeURIComponent(row.prompt_id)}`, "data-prompt": row.prompt_id },
    h("span", { class: "row-head" }, h("code", { text: row.prompt_id }), row.domain ? h("span", { class: "hint", text: row.domain }) : null,
      row.dropped ? h("span", { class: "badge warn", text: row.dropped }) : null),
    foreign(row.prompt || row.detail, { class: "clamp" }));
  if (row.roles.length) {
    link.append(h("span", { class: "roles" }, ...row.roles.slice(0, 4).map((role) =>
      h("span", { class: `role ${useOf(role.role)}`, title: ROLE[role.role] ?? role.role }, `${short(role.score, 2)} ${role.model}`))));
  }
  return link;
}

const useOf = (role) => (role === "responses" ? "compared" : role.endsWith("rejected") ? "rejected" : "chosen");

function detail(value, go, back) {
  const axis = scale(value.candidates.map((each) => each.score));
  const prompt = value.messages.at(-1)?.content ?? "";
  const scoreThem = go && value.candidates.length ? h("button", {
    type: "button", text: "Score these answers",
    onclick: () => go("score", { context: value.messages.slice(0, -1), prompt, responses: [...new Set(value.candidates.map((each) => each.text))] }),
  }) : null;
  return [
    h("div", { class: "card" },
      h("button", { type: "button", class: "quiet back", text: "Back to the rows", onclick: back }),
      h("div", { class: "row-head" }, h("h3", { text: value.prompt_id }), value.domain ? h("span", { class: "badge", text: value.domain }) : null,
        h("span", { class: `badge ${value.outcome === "row" ? "good" : "warn"}`, text: { row: "row", dropped: `dropped: ${value.reason}`, not_asked: "not asked" }[value.outcome] })),
      ...value.messages.map((message) => h("div", { class: `turn-line ${message.role}` }, h("span", { class: "who", text: message.role }), foreign(message.content))),
      value.reference !== null ? h("div", { class: "turn-line" }, h("span", { class: "who", text: "reference" }), foreign(value.reference)) : null,
      h("p", { class: "why", text: value.words }),
      h("p", { class: "facts" },
        value.margin !== null ? h("span", { text: `margin ${short(value.margin)}` }) : "",
        value.weight !== null && value.weight !== 1 ? h("span", { text: `weight ${short(value.weight)}` }) : "",
        h("span", { text: plural(value.candidates.length, "answer") })),
      scoreThem),
    ...groups(value.candidates, axis),
    ...lost(value.lost),
  ];
}

function groups(candidates, axis) {
  if (!candidates.length) return [emptyBox("No answers", "The scored answers to this prompt are not in the store.")];
  const used = candidates.filter((each) => each.use !== "unused");
  const unused = candidates.filter((each) => each.use === "unused");
  const group = (title, some) => some.length ? [
    h("div", { class: "group-head" }, h("h3", { text: title }), axisRow(axis)),
    h("ol", { class: "candidates" }, ...some.map((each) => candidate(each, axis))),
  ] : [];
  return [...group("In the row", used), ...group(`Not used, ${plural(unused.length, "answer")}`, unused)];
}

function candidate(each, axis) {
  return h("li", { class: `card candidate ${each.use}` },
    h("div", { class: "said" },
      h("div", { class: "score-head" },
        each.role ? h("span", { class: `badge ${{ rejected: "bad", chosen: "good" }[each.use] ?? ""}`, text: ROLE[each.role] ?? each.role }) : null,
        h("span", { class: "name", text: each.model }),
        h("span", { class: "hint", text: `sample ${each.sample}` }),
        each.verdict ? h("span", { class: `badge ${{ correct: "good", wrong: "bad" }[each.verdict] ?? "warn"}`, text: each.verdict }) : null,
        each.finish_reason === "length" ? h("span", { class: "badge warn", text: "cut at the limit" }) : null,
        each.truncated ? h("span", { class: "badge warn", text: "scored truncated" }) : null),
      foreign(each.text || "(empty)"),
      h("p", { class: "why", text: each.why })),
    h("div", { class: "reward" },
      h("strong", { class: "value", text: short(each.score, 4) }),
      bar(each.score, axis, { chosen: "good", rejected: "bad", unused: "plain" }[each.use] ?? ""),
      Object.keys(each.objectives).length ? h("details", {}, h("summary", { text: "Parts" }), objectives(each.objectives)) : null));
}

function lost(rows) {
  if (!rows.length) return [];
  return [h("h3", { text: "Refused on the way" }),
    h("ul", { class: "plain" }, ...rows.map((row) => h("li", { class: "card" },
      h("div", { class: "row-head" }, h("code", { text: row.row_id }), h("span", { class: "badge warn", text: row.reason }), h("span", { class: "hint", text: row.stage })),
      row.detail ? foreign(row.detail) : null)))];
}
