// The frame of the page: tabs, readiness, theme and key. Each view has its own module and is made when first shown.

import { key, models, onKeyNeeded, readiness, setKey } from "./api.js";
import { errorBox, h, loadingBox, say } from "./dom.js";
import { chatView } from "./chat.js";
import { inspectView } from "./inspect.js";
import { runView } from "./run.js";
import { scoreView } from "./score.js";

const VIEWS = { chat: chatView, score: scoreView, inspect: inspectView, run: runView };
const NAMES = Object.keys(VIEWS);
const POLL_STARTING_MS = 2000;
const POLL_READY_MS = 20000;

const el = (id) => document.getElementById(id);
const made = {};
let served = null;
let refused = false;

// ---- tabs: the hash says what is shown: #score, or #inspect/arm/prompt ----------------------------

function place() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  return { name: NAMES.includes(name) ? name : "chat", path: rest.map(decode) };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function show() {
  if (location.hash === "#main") return;
  const { name, path } = place();
  for (const other of NAMES) {
    const chosen = other === name;
    el(`tab-${other}`).setAttribute("aria-selected", String(chosen));
    el(`tab-${other}`).tabIndex = chosen ? 0 : -1;
    el(`view-${other}`).hidden = !chosen;
  }
  document.title = `${el(`tab-${name}`).textContent} · fuseline`;
  if (served) view(name)?.show?.(path);
}

function view(name) {
  if (!made[name]) {
    const root = el(`view-${name}`);
    root.replaceChildren();
    made[name] = VIEWS[name](root, { served, go });
  }
  return made[name];
}

/** Open a view; `given` is handed to it, e.g. a prompt and responses to score. */
function go(name, given, ...path) {
  location.hash = [name, ...path.map(encodeURIComponent)].join("/");
  show();
  if (given) view(name).take(given);
}

function tabKeys(event) {
  const at = NAMES.findIndex((name) => el(`tab-${name}`) === document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: NAMES.length - 1 }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  const name = NAMES[(to + NAMES.length) % NAMES.length];
  location.hash = name;
  el(`tab-${name}`).focus();
}

// ---- the service ---------------------------------------------------------------------------------

async function load() {
  for (const name of NAMES) if (!made[name]) el(`view-${name}`).replaceChildren(loadingBox("Asking for the models"));
  try {
    served = await models();
  } catch (error) {
    served = null;
    refused = error.status === 401; // then a key is awaited, and asking again would only reopen the dialog
    for (const name of NAMES) if (!made[name]) el(`view-${name}`).replaceChildren(errorBox(error, load));
    return;
  }
  for (const known of Object.values(made)) known.models?.(served);
  show();
}

let wasReady = null;

async function poll() {
  const state = await readiness();
  el("state").dataset.state = state.ready ? "ready" : state.starting ? "starting" : "away";
  const counted = served ? served.chat.length + served.reward.length : 0;
  const more = state.ready && counted ? `, ${counted} model${counted === 1 ? "" : "s"}` : "";
  // Only changes are written, so that screen readers hear each once.
  if (el("state").title !== state.text + more) {
    el("state").title = state.text + more;
    el("state-text").replaceChildren(state.text, h("span", { class: "more", text: more }));
  }
  if (state.ready && (wasReady === false || !served) && !refused) await load();
  wasReady = state.ready;
  setTimeout(poll, state.ready && !document.hidden ? POLL_READY_MS : POLL_STARTING_MS);
}

// ---- theme and key -------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}

function nameTheme() {
  el("theme-button").textContent = isDark() ? "Light" : "Dark";
  el("theme-button").setAttribute("aria-label", isDark() ? "Light theme" : "Dark theme");
}

function switchTheme() {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  sessionStorage.setItem("fuseline-theme", next);
  nameTheme();
}

function nameKey() {
  el("key-button").textContent = key() ? "Key ✓" : "Key";
  el("key-button").setAttribute("aria-label", key() ? "API key, one is set" : "API key, none is set");
}

function openKey(failure) {
  if (el("key-dialog").open) return;
  el("key-why").textContent = failure
    ? `${failure.message} It is kept in this browser tab only.`
    : "Kept in this browser tab only, and sent to this service with every request.";
  el("key-input").value = key();
  el("key-forget").disabled = !key();
  el("key-dialog").showModal();
}

function useKey(value, text) {
  setKey(value);
  nameKey();
  el("key-dialog").close();
  say(text);
  refused = false;
  load();
  for (const known of Object.values(made)) known.refresh?.();
}

el("key-button").addEventListener("click", () => openKey());
el("key-cancel").addEventListener("click", () => el("key-dialog").close());
el("key-forget").addEventListener("click", () => useKey("", "Key forgotten"));
el("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(el("key-input").value.trim(), "Key set");
});
el("theme-button").addEventListener("click", switchTheme);
dark.addEventListener("change", nameTheme);
onKeyNeeded(openKey);

document.querySelector("[role=tablist]").addEventListener("keydown", tabKeys);
for (const name of NAMES) el(`tab-${name}`).addEventListener("click", () => { location.hash = name; });
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash belongs to the tabs
  el("main").focus();
});
addEventListener("hashchange", show);

nameTheme();
nameKey();
show();
await load();
poll();
