// Light or dark, before the first paint: this one file is not a module, because modules wait for the document.
"use strict";
try {
  const chosen = sessionStorage.getItem("fuseline-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be forbidden; then the system's setting holds.
}
