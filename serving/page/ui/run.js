// The run behind the served model: its stages, what went in and out of each, how long it took, and the results.

import { call } from "./api.js";
import { axisRow, bar, scale } from "./bars.js";
import { emptyBox, errorBox, h, loadingBox } from "./dom.js";
import { count, percent, plural, seconds, when } from "./format.js";

const AGAIN_MS = 5000;
const KINDS = {
  prompts: "Prompts", generate: "Generate", score: "Score", select: "Select", sft: "Supervised training",
  reference: "Reference log-probabilities", prefer: "Preference training", evaluate: "Evaluate", export: "Export",
};

export function runView(root) {
  let timer = 0;
  let latest = 0;

  async function load() {
    const mine = ++latest;
    clearTimeout(timer);
    if (!root.children.length) root.replaceChildren(loadingBox("Reading the run"));
    let run;
    try {
      const { value } = await call("/ui/data/run");
      if (mine !== latest) return;
      if (!value.run) return root.replaceChildren(emptyBox("No run to show", value.why));
      run = value.run;
    } catch (error) {
      if (mine !== latest) return;
      return root.replaceChildren(errorBox(error, load));
    }
    const before = new Map([...root.querySelectorAll("details")].map((each) => [each.dataset.kind, each.open]));
    root.replaceChildren(...parts(run, load));
    for (const each of root.querySelectorAll("details")) each.open = before.get(each.dataset.kind) ?? each.open;
    if (run.stages.some((stage) => stage.status === "begun")) {
      timer = setTimeout(() => { if (!root.hidden && !document.hidden) load(); }, AGAIN_MS);
    }
  }

  return { show: load, refresh: load };
}

function parts(run, again) {
  const total = (name) => run.stages.reduce((sum, stage) => sum + (stage[name] ?? 0), 0);
  const refused = run.stages.reduce((sum, stage) => sum + refusedOf(stage), 0);
  const done = run.stages.filter((stage) => stage.status === "finished").length;
  const fact = (value, label) => h("div", { class: "card fact" }, h("b", { text: value }), h("span", { text: label }));
  return [
    h("div", { class: "run-head row" }, h("h2", { text: run.name }),
      h("span", { class: `badge ${run.status === "finished" ? "good" : "warn"}`, text: run.status }),
      h("span", { class: "grow" }), h("button", { type: "button", class: "quiet", text: "Refresh", onclick: again })),
    run.status === "unfinished" ? h("p", { class: "notice", text: "This run has not ended yet. Shown is the newest artifact of each stage in the store, which other recipes may share." }) : null,
    h("div", { class: "facts-grid" },
      fact(`${count(done)} of ${count(run.stages.length)}`, "stages finished"),
      fact(seconds(run.total_seconds ?? total("seconds")), run.total_seconds === null ? "work so far" : "from start to end"),
      fact(count(sum(run.stages, "generate", "rows_out")), `answers generated, ${count(sum(run.stages, "generate", "tokens"))} tokens`),
      fact(count(refused), "rows quarantined"),
      run.served_arm ? fact(run.served_arm, `served, ended ${when(run.finished)}`) : null),
    ...results(run),
    h("h3", { class: "section", text: "Stages" }),
    ...stages(run.stages),
  ].filter(Boolean);
}

const sum = (stages, kind, name) => stages.filter((stage) => stage.kind === kind).reduce((all, stage) => all + (stage[name] ?? 0), 0);
const refusedOf = (stage) => Object.values(stage.quarantined).reduce((all, n) => all + n, 0);

function results(run) {
  const scored = run.results.filter((model) => model.reward);
  if (!scored.length) return [];
  const axis = scale(scored.flatMap((model) => [model.reward.low, model.reward.high]));
  const best = Math.max(...scored.map((model) => model.reward.mean));
  const exact = scored.some((model) => model.exact);
  return [
    h("h3", { class: "section", text: `Reward on ${run.benchmark ?? "held-out prompts"}` }),
    h("p", { class: "hint", text: `Mean reward of each model with its confidence interval${exact ? ", and its share of exact answers" : ""}.` }),
    h("div", { class: "card chart" },
      h("div", { class: "axis-line" }, axisRow(axis)),
      h("ul", { class: "models" }, ...scored.map((model) => {
        const { mean, low, high } = model.reward;
        const served = model.name === run.served_arm;
        return h("li", {},
          h("span", { class: "name", text: model.name },
            served ? h("span", { class: "badge", text: "served" }) : null, mean === best ? h("span", { class: "badge good", text: "best" }) : null),
          bar(mean, axis, mean === best ? "good" : served ? "" : "plain", [low, high]),
          h("span", { class: "value", text: mean.toFixed(3).replace("-", "−") }),
          h("span", { class: "hint", text: `${low.toFixed(3)} to ${high.toFixed(3)}`.replaceAll("-", "−") }),
          h("span", { class: "hint exact", text: model.exact ? `${percent(model.exact.mean)} exact` : "" }));
      }))),
  ];
}

function stages(all) {
  const longest = Math.max(1e-9, ...all.map((stage) => stage.seconds ?? 0));
  const narrow = matchMedia("(max-width: 560px)").matches;
  const kinds = [...new Set(all.map((stage) => stage.kind))];
  return kinds.map((kind) => {
    const mine = all.filter((stage) => stage.kind === kind);
    const bad = mine.some((stage) => stage.status === "damaged" || stage.status === "missing" || refusedOf(stage));
    return h("details", { class: "card stage-group", open: bad || (mine.length < 6 && !narrow), "data-kind": kind },
      h("summary", {}, h("span", { class: "name", text: KINDS[kind] ?? kind }), h("span", { class: "hint", text: groupFacts(mine) })),
      h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": `Stages: ${KINDS[kind] ?? kind}` }, table(mine, longest)));
  });
}

function groupFacts(mine) {
  const refused = mine.reduce((all, stage) => all + refusedOf(stage), 0);
  const took = mine.reduce((all, stage) => all + (stage.seconds ?? 0), 0);
  return [plural(mine.length, "stage"), seconds(took), refused ? `${count(refused)} quarantined` : null].filter(Boolean).join(" · ");
}

function table(mine, longest) {
  const axis = { at: (x) => (100 * x) / longest };
  const cell = (label, text) => h("td", { class: "num", "data-label": label, text });
  return h("table", {},
    h("thead", {}, h("tr", {}, ...["Stage", "In", "Out", "Quarantined", "Time"].map((name, i) => h("th", { scope: "col", class: i ? "num" : "", text: name })))),
    h("tbody", {}, ...mine.map((stage) => h("tr", {},
      h("th", { scope: "row" }, h("span", { class: "name", text: stage.stage.slice(stage.kind.length + 1) }), " ", h("code", { text: stage.key }), " ", badge(stage)),
      cell("In", count(stage.rows_in)), cell("Out", count(stage.rows_out)),
      h("td", { class: "num", "data-label": "Quarantined" }, refusedOf(stage) ? h("span", {}, ...Object.entries(stage.quarantined).map(([reason, n]) =>
        h("span", { class: "badge warn", text: `${reason} ${count(n)}` }))) : "0"),
      h("td", { class: "num time", "data-label": "Time" }, seconds(stage.seconds), bar(stage.seconds ?? 0, axis, "thin"))))));
}

function badge(stage) {
  if (stage.status === "begun") {
    const far = stage.parts ? ` ${stage.parts_done} of ${stage.parts} parts` : "";
    return h("span", { class: "badge", text: `at work${far}` });
  }
  if (stage.status !== "finished") return h("span", { class: "badge bad", text: stage.status, title: stage.problem ?? "" });
  return stage.hit ? h("span", { class: "badge", text: "hit", title: "finished before the last run" }) : null;
}
