// The dialogs that do one thing each: share, rate, export the feedback, enter a key, confirm.

import { apiKey } from "./api.js";
import { byId, showDialog, toast } from "./dom.js";
import { exportFile, rate } from "./feedback.js";
import { asJson, asMarkdown, download, share } from "./files.js";

/** @typedef {import("./chat.js").Chat} Chat */

/** @param {Chat} chat */
export function wireSharing(chat) {
  byId("share").addEventListener("click", () => showDialog(byId("sharing")));
  byId("share-file").hidden = !navigator.canShare;
  for (const [id, make, give] of /** @type {const} */ ([
    ["export-json", asJson, (/** @type {File} */ file) => download(file, file.name)],
    ["export-markdown", asMarkdown, (/** @type {File} */ file) => download(file, file.name)],
    ["share-file", asMarkdown, share],
  ])) {
    byId(id).addEventListener("click", async () => (await give(await make(chat.store, chat.conversation)), byId("sharing").close()));
  }
}

/** @param {Chat} chat */
export function wireFeedback({ store }) {
  byId("open-feedback").addEventListener("click", async () => {
    const entries = await store.feedback.all();
    const count = (/** @type {string} */ rating) => entries.filter((/** @type {any} */ entry) => entry.rating === rating).length;
    byId("feedback-count").textContent = entries.length ? `${count("up")} good, ${count("down")} bad.` : "No answer was rated yet.";
    byId("feedback-export").disabled = byId("feedback-clear").disabled = !entries.length;
    showDialog(byId("feedback"));
  });
  byId("feedback-export").addEventListener("click", async () => {
    const { blob, learned } = await exportFile(await store.feedback.all());
    download(blob, "feedback.zip");
    toast(`${learned} answer${learned === 1 ? "" : "s"} to learn from.`);
  });
  byId("feedback-clear").addEventListener("click", async () => {
    await store.feedback.clear();
    byId("feedback").close();
    toast("Feedback deleted.");
  });
}

/** @param {Chat} chat @param {import("./tree.js").Message} message @param {"up" | "down"} rating */
export async function rateMessage(chat, message, rating) {
  const takesBack = message.rating === rating;
  await rate(chat, message, rating);
  if (takesBack || rating === "up") return toast(takesBack ? "Taken back." : "Noted, in this browser.");
  byId("correction-text").value = "";
  byId("correction-save").onclick = async () => {
    await rate(chat, message, "down", byId("correction-text").value);
    byId("correction").close();
    toast("Noted, in this browser.");
  };
  showDialog(byId("correction"));
}

export function askForKey() {
  byId("settings").close();
  byId("key-text").value = apiKey.get();
  showDialog(byId("key"));
}

/** @param {() => void} then what is tried again with the key */
export function wireKey(then) {
  const useKey = () => {
    apiKey.set(byId("key-text").value.trim());
    byId("key-text").value = "";
    byId("key").close();
    then();
  };
  byId("open-key").addEventListener("click", askForKey);
  byId("key-save").addEventListener("click", useKey);
  byId("key-text").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && useKey());
}

/** @param {string} title @param {string} detail @param {string} yes @param {() => void} act */
export function confirmed(title, detail, yes, act) {
  byId("confirm-title").textContent = title;
  byId("confirm-detail").textContent = detail;
  byId("confirm-yes").textContent = yes;
  byId("confirm-yes").onclick = () => (byId("confirm").close(), act());
  showDialog(byId("confirm"));
}
