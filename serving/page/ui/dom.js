// Elements are made here and nowhere else. Text becomes text nodes, so nothing a model says is ever markup.

/** Make an element. `props`: class, text, on<event> functions, data-* and aria-* attributes, or DOM properties. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.append(String(value));
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-") && name !== "list" && name !== "role") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Say something to screen readers, politely. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** A labelled form field around a control. */
export function field(label, control, hint) {
  return h("label", { class: "field" }, h("span", { text: label }), control, hint ? h("small", { text: hint }) : null);
}

/** Text that a model or a file wrote: isolated, so that its direction and marks stay inside. */
export function foreign(text, props = {}) {
  return h("div", { dir: "auto", ...props, class: `foreign ${props.class ?? ""}`, text });
}

/** An error in its place: what happened, its code and the id to look for in the log. */
export function errorBox(error, again) {
  const facts = [error.code, error.status ? `HTTP ${error.status}` : null, error.param].filter(Boolean).join(" · ");
  return h("div", { class: "error", role: "alert" },
    h("p", { text: error.message }),
    h("p", { class: "facts" }, facts, error.requestId ? ` · request ${error.requestId}` : ""),
    again ? h("button", { type: "button", text: "Try again", onclick: again }) : null);
}

/** A calm box for "nothing here yet", with what to do. */
export function emptyBox(title, text, command) {
  return h("div", { class: "empty" },
    h("h3", { text: title }),
    text ? h("p", { text }) : null,
    command ? h("pre", { tabIndex: 0, text: command }) : null);
}

export function loadingBox(text = "Loading") {
  return h("div", { class: "loading", role: "status" }, h("span", { class: "pulse", "aria-hidden": "true" }), text);
}

/** Give the browser a file to save. */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** Do what a keyboard expects of Ctrl+Enter (Command+Enter on a Mac) inside `element`. */
export function onSend(element, action) {
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      action();
    }
  });
}
