// What stands under a message: its buttons, the way to its siblings, and what went wrong with it.

import { element, iconButton } from "./dom.js";

/** @typedef {import("./tree.js").Message} Message */

/**
 * @typedef {object} Acts what the page does when a button is pressed
 * @property {(message: Message) => void} copy
 * @property {(text: string) => void} copyText
 * @property {(message: Message) => void} edit
 * @property {(message: Message) => void} remove
 * @property {(message: Message) => void} regenerate
 * @property {(message: Message) => void} continueReply
 * @property {(message: Message, step: number) => void} turn
 * @property {(message: Message, rating: "up" | "down") => void} rate
 * @property {(message: Message) => void} giveUpWaiting
 * @property {() => void} enterKey
 * @property {(picture: import("./store.js").Picture, url: string) => void} enlarge
 */

/** @param {Message} message @param {Message[]} siblings @param {Acts} acts @param {boolean} busy */
export function actionsOf(message, siblings, acts, busy) {
  const row = element("div", { class: "actions", role: "group", "aria-label": message.role === "user" ? "Your message" : "This answer" });
  if (message.finish === "writing") return row;
  const add = (/** @type {string} */ name, /** @type {string} */ label, /** @type {() => void} */ act, /** @type {any} */ more = {}) =>
    row.append(iconButton(name, label, act, { "data-action": name, ...more }));
  if (siblings.length > 1) row.append(branches(message, siblings, acts, busy));
  if (message.text) add("copy", "Copy", () => acts.copy(message));
  if (message.role === "user") add("edit", "Edit and ask again", () => acts.edit(message), { disabled: busy });
  else {
    add("again", "Regenerate", () => acts.regenerate(message), { disabled: busy });
    if (message.text) {
      const pressed = (/** @type {string} */ rating) => ({ "aria-pressed": String(message.rating === rating) });
      add("up", "Good answer", () => acts.rate(message, "up"), pressed("up"));
      add("down", "Bad answer", () => acts.rate(message, "down"), pressed("down"));
    }
  }
  add("delete", "Delete from here on", () => acts.remove(message));
  const facts = factsOf(message);
  if (facts) row.append(element("span", { class: "facts" }, facts));
  return row;
}

/** @param {Message} message @param {Message[]} siblings @param {Acts} acts @param {boolean} busy */
function branches(message, siblings, acts, busy) {
  const number = siblings.findIndex(({ id }) => id === message.id) + 1;
  const turn = (/** @type {number} */ step) => () => acts.turn(message, step);
  return element(
    "span",
    { class: "branches", role: "group", "aria-label": "Versions" },
    iconButton("previous", "Previous version", turn(-1), { "data-action": "previous", disabled: busy || number === 1 }),
    element("span", { class: "count", "aria-label": `Version ${number} of ${siblings.length}` }, `${number} / ${siblings.length}`),
    iconButton("next", "Next version", turn(1), { "data-action": "next", disabled: busy || number === siblings.length }),
  );
}

/** @param {Message} message */
function factsOf(message) {
  if (!message.usage) return "";
  const { completion, seconds } = message.usage;
  return `${completion} token${completion === 1 ? "" : "s"} · ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
}

/** What is said of an answer that did not end as it should. @param {Message} message @param {Acts} acts @returns {any} */
export function problemOf(message, acts) {
  const again = () => element("button", { type: "button", "data-action": "retry", onclick: () => acts.regenerate(message) }, "Try again");
  const onwards = () =>
    element("button", { type: "button", "data-action": "continue", onclick: () => acts.continueReply(message) }, "Continue");
  if (message.finish === "length") return element("div", { class: "note" }, "It reached the longest answer that was asked for.", onwards());
  if (message.finish === "stopped") return element("div", { class: "note" }, "Stopped.", message.text ? onwards() : again());
  const { problem } = message;
  if (!problem) return null;
  const box = element("div", { class: "problem" }, element("strong", {}, problem.title), " ", element("span", {}, problem.detail));
  if (problem.action === "wait") {
    const giveUp = element("button", { type: "button", onclick: () => acts.giveUpWaiting(message) }, "Don't wait");
    box.append(" ", element("span", { class: "countdown" }), element("div", { class: "choices" }, again(), giveUp));
  } else if (problem.action === "key") {
    const enter = element("button", { type: "button", "data-action": "key", onclick: () => acts.enterKey() }, "Enter a key");
    box.append(element("div", { class: "choices" }, enter, again()));
  } else {
    box.append(element("div", { class: "choices" }, again(), message.text ? onwards() : null));
  }
  return box;
}
