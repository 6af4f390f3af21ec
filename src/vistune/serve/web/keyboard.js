// The keys of the whole page. Those of the message field are in composer.js, those of dialogs are the browser's.

import { byId, showDialog } from "./dom.js";

/**
 * @typedef {object} KeyActs
 * @property {() => void} stop
 * @property {() => void} startNew
 * @property {() => void} regenerate
 * @property {() => void} theme
 * @property {(open: boolean) => void} side
 * @property {() => boolean} busy
 */

/** @param {KeyActs} acts */
export function wireKeys(acts) {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    const field = /** @type {Element} */ (event.target).closest?.("input, textarea, select");
    if (event.key === "Escape") return acts.busy() ? acts.stop() : acts.side(false);
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      acts.side(true);
      return take(event, () => byId("search").focus());
    }
    // By the key's place: with Alt some layouts type a letter of their own.
    if (event.altKey && !event.ctrlKey && event.code === "KeyN") return take(event, acts.startNew);
    if (event.altKey && !event.ctrlKey && event.code === "KeyR") return take(event, acts.regenerate);
    if (event.altKey && !event.ctrlKey && event.code === "KeyT") return take(event, acts.theme);
    if (field || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "/") take(event, () => byId("text").focus());
    if (event.key === "?") take(event, () => showDialog(byId("help")));
  });
}

/** @param {KeyboardEvent} event @param {() => void} act */
function take(event, act) {
  event.preventDefault();
  act();
}
