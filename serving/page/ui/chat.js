// Two models answer one conversation side by side; the better answer is what the conversation goes on from.

import { stream } from "./api.js";
import { download, emptyBox, errorBox, field, foreign, h, onSend, say } from "./dom.js";
import { plural, seconds } from "./format.js";
import { rows, tally, unreadable, vote } from "./votes.js";

const SIDES = ["left", "right"];
const SIDE_NAME = { left: "Left", right: "Right" };

export function chatView(root, { served, go }) {
  if (!served.chat.length) {
    root.append(emptyBox("No chat model is served", "Serve one beside the reward model:",
      "fuseline serve recipe.yaml\npython -m jobs.serve --chat NAME=FOLDER"));
    return {};
  }
  const form = settings(served.chat);
  const log = h("div", { class: "log" });
  const message = h("textarea", { id: "chat-message", rows: 2, "aria-keyshortcuts": "Control+Enter", placeholder: "Ask both models something" });
  const send = h("button", { type: "submit", class: "main", text: "Send" });
  const stop = h("button", { type: "button", text: "Stop", "aria-keyshortcuts": "Escape", hidden: true });
  const fresh = h("button", { type: "button", class: "quiet", text: "New chat" });
  const save = h("button", { type: "button", class: "quiet" });
  const composer = h("form", { class: "composer card" },
    h("label", { class: "field grow" }, h("span", { class: "unseen", text: "Message" }), message),
    h("div", { class: "row" }, send, stop,
      h("span", { class: "hint keys" }, h("kbd", { text: "Ctrl" }), " ", h("kbd", { text: "Enter" }), " sends, ", h("kbd", { text: "Esc" }), " stops"),
      h("span", { class: "grow" }), save, fresh));
  root.append(h("h2", { class: "unseen", text: "Chat" }), form.element, log, composer);
  if (unreadable) log.before(h("p", { class: "notice", text: "The votes kept in this tab cannot be read and are left out. Nothing else is lost." }));

  let turns = [];
  let abort = null;

  function history() {
    const messages = [];
    for (const turn of turns) {
      const goes_on = turn.answers[turn.goesOn];
      if (goes_on) messages.push({ role: "user", content: turn.user }, { role: "assistant", content: goes_on.text });
    }
    return messages;
  }

  async function ask() {
    const text = message.value;
    if (abort || !text.trim() || !form.valid()) return;
    const asked = form.read();
    turns.at(-1)?.settle();
    const prompt = [...history(), { role: "user", content: text }];
    const turn = makeTurn({ number: turns.length, user: text, prompt, asked, onVote: showTally, rewards: served.reward, go });
    if (!turns.length) log.replaceChildren();
    turns.push(turn);
    log.append(turn.element);
    message.value = "";
    abort = new AbortController();
    busy(true);
    document.documentElement.scrollTop = document.documentElement.scrollHeight;
    await Promise.all(turn.panes.map((pane) => pane.run(prompt, asked, abort.signal)));
    abort = null;
    busy(false);
    if (!turns.includes(turn)) return;
    keepEnd(turn.finish);
    if (!Object.keys(turn.answers).length && !message.value) message.value = text;
    say(turn.panes.map((pane) => pane.summary()).join(". "));
  }

  function busy(on) {
    send.hidden = on;
    stop.hidden = !on;
    if (on && document.activeElement === document.body) stop.focus();
    else if (!on) message.focus({ preventScroll: true });
  }

  function halt() {
    abort?.abort();
  }

  function showTally() {
    const { votes, ties, rows: decided } = tally();
    save.textContent = votes ? `Export ${plural(decided, "vote")}` : "Export votes";
    save.disabled = !decided;
    save.title = ties ? `${plural(ties, "tie")} left out: a preference row needs a better answer` : "One JSON line per vote: prompt, chosen, rejected";
  }

  function empty() {
    log.replaceChildren(h("div", { class: "empty" },
      h("h3", { text: "Ask, compare, vote" }),
      h("p", { text: "Both models answer with the same seed and settings. Vote for the better answer: the conversation goes on from it, and votes can be exported as preference rows for training." })));
  }

  composer.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  onSend(composer, ask);
  stop.addEventListener("click", halt);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && abort && !document.querySelector("dialog[open]")) halt();
  });
  fresh.addEventListener("click", () => { halt(); turns = []; empty(); message.focus(); });
  save.addEventListener("click", () => download("votes.jsonl", rows(), "application/jsonl"));
  empty();
  showTally();
  return { models: (now) => form.models(now.chat) };
}

// ---- settings ------------------------------------------------------------------------------------

function settings(cards) {
  const left = h("select", { id: "chat-left" });
  const right = h("select", { id: "chat-right" });
  const temperature = h("input", { id: "chat-temperature", type: "number", min: 0, max: 2, step: "any", value: 0.7, inputMode: "decimal", placeholder: "auto", title: "Empty: the model's own" });
  const maxTokens = h("input", { id: "chat-max-tokens", type: "number", min: 1, step: 1, inputMode: "numeric", placeholder: "auto", title: "Empty: as many as fit" });
  const seed = h("input", { id: "chat-seed", type: "number", step: 1, min: 0, value: 1, inputMode: "numeric", placeholder: "none", title: "The same for both models; empty: none" });
  const element = h("form", { class: "settings card", "aria-label": "Models and sampling", onsubmit: (event) => event.preventDefault() },
    field("Left model", left), field("Right model", right),
    h("div", { class: "numbers" }, field("Temperature", temperature), field("Max tokens", maxTokens), field("Seed", seed)));

  function models(now) {
    const before = [left.value, right.value];
    const names = now.map((card) => card.id);
    const options = () => names.map((name) => h("option", { value: name, text: name }));
    left.replaceChildren(...options());
    right.replaceChildren(...options(), h("option", { value: "", text: "none" }));
    left.value = names.includes(before[0]) ? before[0] : names[0];
    right.value = names.includes(before[1]) ? before[1] : names[1] ?? "";
  }

  models(cards);
  const number = (input) => (input.value === "" ? undefined : Number(input.value));
  return {
    element,
    models,
    valid: () => element.reportValidity(),
    read: () => ({
      left: left.value, right: right.value,
      sampling: { temperature: number(temperature), max_tokens: number(maxTokens), seed: number(seed) },
    }),
  };
}

// ---- one turn ------------------------------------------------------------------------------------

function makeTurn({ number, user, prompt, asked, onVote, rewards, go }) {
  const sides = SIDES.filter((side) => asked[side]);
  const panes = sides.map((side) => makePane(side, asked[side]));
  const foot = h("div", { class: "vote" });
  const turn = { user, answers: {}, goesOn: null, panes };
  turn.element = h("article", { class: "turn", "aria-label": `Turn ${number + 1}` },
    h("div", { class: "user" }, h("span", { class: "who", text: "You" }), foreign(user)),
    h("div", { class: `pair ${sides.length === 1 ? "single" : ""}` }, ...panes.map((pane) => pane.element)),
    foot);
  const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  let settled = false;

  function goOnFrom(side) {
    if (settled) return;
    turn.goesOn = side;
    for (const pane of panes) pane.mark(pane.side === side && Object.keys(turn.answers).length > 1);
  }

  function choose(choice) {
    for (const button of foot.querySelectorAll("[data-choice]")) button.setAttribute("aria-pressed", String(button.dataset.choice === choice));
    const answer = (side) => ({ model: asked[side], text: turn.answers[side].text });
    vote(id, { prompt, left: answer("left"), right: answer("right"), choice, seed: asked.sampling.seed ?? null });
    if (choice !== "tie") goOnFrom(choice);
    say(choice === "tie" ? "Voted: tie" : `Voted: ${choice} is better`);
    onVote();
  }

  /** Offer the vote once both answers are there; what came before an error is read, but is no answer. */
  turn.finish = () => {
    for (const pane of panes) if (pane.text() && !pane.failed()) turn.answers[pane.side] = { text: pane.text() };
    const given = Object.keys(turn.answers);
    if (!given.length) {
      foot.append(h("p", { class: "hint", text: "No answer: this turn is left out of the conversation." }));
      return;
    }
    if (given.length === 2) {
      const button = (choice, text) => h("button", { type: "button", text, "data-choice": choice, "aria-pressed": "false", onclick: () => choose(choice) });
      foot.append(h("div", { class: "row", role: "group", "aria-label": "Which answer is better?" },
        h("span", { class: "hint", text: "Better answer" }), button("left", "Left"), button("tie", "Tie"), button("right", "Right")));
    }
    goOnFrom(given[0]);
    if (rewards.length) {
      foot.append(h("button", {
        type: "button", class: "quiet", text: given.length === 2 ? "Score both" : "Score it",
        onclick: () => go("score", { context: prompt.slice(0, -1), prompt: user, responses: given.map((side) => turn.answers[side].text) }),
      }));
    }
  };
  turn.settle = () => { settled = true; };
  return turn;
}

/** One answer: its text as it comes, then its speed, or the error in its place. */
function makePane(side, model) {
  const text = document.createTextNode("");
  const body = h("div", { class: "foreign", dir: "auto" }, text);
  const facts = h("p", { class: "facts", text: "Waiting for the first token" });
  const tag = h("span", { class: "tag", text: "continues from here", hidden: true });
  const element = h("section", { class: `answer card ${side}`, "data-state": "waiting", "aria-label": `${SIDE_NAME[side]} answer, ${model}` },
    h("header", {}, h("span", { class: "dot", "aria-hidden": "true" }), h("h3", { text: model }), tag), body, facts);
  let outcome = "stopped";

  async function run(messages, { sampling }, signal) {
    const started = performance.now();
    let first = null;
    let last = started;
    let pieces = 0;
    let usage = null;
    let reason = null;
    const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...sampling };
    try {
      for await (const chunk of stream("/v1/chat/completions", body, signal)) {
        usage = chunk.usage ?? usage;
        const choice = chunk.choices[0];
        if (!choice) continue;
        reason = choice.finish_reason ?? reason;
        if (!choice.delta.content) continue;
        last = performance.now();
        if (first === null) {
          first = last;
          element.dataset.state = "streaming";
          facts.textContent = `First token ${seconds((first - started) / 1000)}`;
        }
        pieces += 1;
        append(text, choice.delta.content);
      }
      outcome = reason === "length" ? "cut" : "done";
    } catch (error) {
      if (error.name === "AbortError") outcome = "stopped";
      else {
        outcome = "failed";
        element.append(errorBox(error));
      }
    }
    flush(text);
    element.dataset.state = outcome;
    facts.replaceChildren(...speed({ started, first, last, pieces, usage, outcome }));
  }

  return {
    side,
    element,
    run,
    mark: (on) => { tag.hidden = !on; },
    text: () => text.data,
    failed: () => outcome === "failed",
    summary: () => `${SIDE_NAME[side]}: ${{ done: "answered", cut: "cut at max tokens", stopped: "stopped", failed: "failed" }[outcome]}`,
  };
}

function speed({ started, first, last, pieces, usage, outcome }) {
  const shown = [];
  const item = (text, kind) => shown.push(h("span", { class: kind ?? "", text }));
  if (first !== null) {
    const tokens = usage ? usage.completion_tokens : pieces;
    item(`first token ${seconds((first - started) / 1000)}`);
    // Of the whole answer: pieces are sent together, so what comes after the first one may be a millisecond.
    if (last > started) item(`${(tokens / ((last - started) / 1000)).toFixed(1)} tokens/s`);
    item(plural(tokens, "token"));
  } else if (outcome !== "failed") {
    item(outcome === "stopped" ? "stopped before the first token" : "an empty answer");
  }
  if (outcome === "cut") item("cut at max tokens", "badge warn");
  if (outcome === "stopped" && first !== null) item("stopped", "badge");
  return shown;
}

// ---- writing text as it comes: once per frame ----------------------------------------------------

const pending = new Map();
let frame = 0;

function append(node, piece) {
  pending.set(node, (pending.get(node) ?? "") + piece);
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    for (const waiting of [...pending.keys()]) flush(waiting);
  });
}

function flush(node) {
  const piece = pending.get(node);
  if (piece === undefined) return;
  pending.delete(node);
  keepEnd(() => node.appendData(piece));
}

/** Change the page; who read its end still does afterwards. */
function keepEnd(change) {
  const page = document.documentElement;
  const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  change();
  if (atEnd) page.scrollTop = page.scrollHeight;
}
