// Light or dark, before anything is drawn: the one script that is no module, so that a dark page never flashes white.
"use strict";

(() => {
  const key = "vistune-theme";
  let chosen = null;
  try {
    chosen = localStorage.getItem(key);
  } catch {
    // a browser that keeps nothing follows the system
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
