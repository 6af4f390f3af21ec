// Thumbs up and down, kept in this browser, and exported as instruction data.
//
// The export is a ZIP: `llava.json` and `messages.jsonl` (the good answers, and the bad ones that somebody put right), their pictures in
// `images/` under names of ours, and `feedback.jsonl` with every rating. `vistune data check llava.json` reads it as it lies there.

import { zip } from "./zip.js";
import { pathTo } from "./tree.js";

/** @typedef {import("./tree.js").Message} Message */

/**
 * @typedef {object} Entry a copy, so that it outlives its conversation
 * @property {string} id the answer's
 * @property {"up" | "down"} rating
 * @property {string} correction what the answer should have been; empty if nobody said
 * @property {number} time
 * @property {string} model
 * @property {import("./settings.js").Values} settings
 * @property {{role: "user" | "assistant", text: string, pictures: number[]}[]} messages the last one is the answer
 * @property {import("./store.js").Picture[]} pictures
 */

const SUFFIXES = { "image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp" };
const MARK = "<image>";

/**
 * Rates an answer; the same rating again takes it back.
 * @param {import("./chat.js").Chat} chat @param {Message} message @param {"up" | "down"} rating @param {string} [correction]
 */
export async function rate(chat, message, rating, correction) {
  if (message.rating === rating && correction === undefined) {
    delete message.rating;
    await chat.store.feedback.remove(message.id);
  } else {
    message.rating = rating;
    await chat.store.feedback.put(await entryOf(chat, message, rating, correction ?? ""));
  }
  await chat.save(chat.conversation);
  chat.tell("change");
}

/**
 * @param {import("./chat.js").Chat} chat @param {Message} message
 * @param {"up" | "down"} rating @param {string} correction @returns {Promise<Entry>}
 */
async function entryOf({ conversation, store }, message, rating, correction) {
  /** @type {import("./store.js").Picture[]} */
  const pictures = [];
  const messages = [];
  for (const { role, text, pictures: ids } of pathTo(conversation, message.id)) {
    const shown = await store.picturesOf(ids);
    messages.push({ role, text, pictures: shown.map((picture) => pictures.push(picture) - 1) });
  }
  const model = message.model ?? "";
  return { id: message.id, rating, correction, time: Date.now(), model, settings: { ...conversation.settings }, messages, pictures };
}

/**
 * The files of an export. A text that spells `<image>` beside real pictures has no place in LLaVA JSON; such a row stands in
 * messages.jsonl only.
 * @param {Entry[]} entries @returns {{files: Record<string, string | Blob>, learned: number}}
 */
export function exported(entries) {
  /** @type {Record<string, string | Blob>} */
  const files = {};
  const log = [];
  const llava = [];
  const messages = [];
  for (const [number, entry] of entries.entries()) {
    const names = entry.pictures.map(
      (picture, place) =>
        `images/${String(number + 1).padStart(5, "0")}-${place + 1}.${SUFFIXES[/** @type {"image/png"} */ (picture.type)] ?? "png"}`,
    );
    names.forEach((name, place) => (files[name] = entry.pictures[place].blob));
    const { id, rating, correction, model, settings } = entry;
    const time = new Date(entry.time).toISOString();
    log.push({ id, rating, correction, time, model, settings, images: names, messages: entry.messages });
    const turns = learnedTurns(entry);
    if (!turns) continue;
    const more = { id, kind: "feedback", provenance: { model, rating, time, corrected: Boolean(correction) } };
    messages.push({ ...more, images: names, messages: turns.map(messageOf) });
    if (!(names.length && turns.some(({ text }) => text.includes(MARK)))) {
      llava.push({ ...more, ...(names.length ? { image: names.length === 1 ? names[0] : names } : {}), conversations: turns.map(turnOf) });
    }
  }
  const lines = (/** @type {object[]} */ rows) => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
  const texts = { "llava.json": JSON.stringify(llava, null, 1), "messages.jsonl": lines(messages), "feedback.jsonl": lines(log) };
  return { files: { ...texts, ...files }, learned: messages.length };
}

/** @param {Entry[]} entries */
export async function exportFile(entries) {
  const { files, learned } = exported(entries);
  return { blob: await zip(files), learned };
}

/** What a model should learn from a rated answer; nothing from a bad one that nobody put right. @param {Entry} entry */
function learnedTurns(entry) {
  const system = entry.settings.system.trim();
  /** @type {{role: "system" | "user" | "assistant", text: string, pictures: number[]}[]} */
  const turns = entry.messages.map((message) => ({ ...message }));
  const answer = turns[turns.length - 1];
  if (entry.correction.trim()) answer.text = entry.correction;
  else if (entry.rating === "down") return null;
  if (turns.some(({ role, text }) => role === "assistant" && !text.trim())) return null;
  return system ? [{ role: /** @type {const} */ ("system"), text: entry.settings.system, pictures: [] }, ...turns] : turns;
}

/** @param {{role: string, text: string, pictures: number[]}} turn */
function turnOf({ role, text, pictures }) {
  const from = role === "user" ? "human" : role === "assistant" ? "gpt" : "system";
  return { from, value: pictures.map(() => `${MARK}\n`).join("") + text };
}

/** @param {{role: string, text: string, pictures: number[]}} turn */
function messageOf({ role, text, pictures }) {
  const shown = pictures.flatMap(() => [{ type: "image" }, { type: "text", text: "\n" }]);
  return { role, content: [...shown, { type: "text", text }] };
}
