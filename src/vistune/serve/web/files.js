// A conversation as a file: JSON that imports again, with its pictures inside, or Markdown to read.
//
//     {"format": "vistune-chat", "version": 1, "conversation": {...}, "pictures": [{"id", "name", "type", "width", "height", "data"}]}
//
// An imported file may come from anybody. Every field is checked and copied by name; ids are made anew, so that it can overwrite nothing.

import { newId } from "./dom.js";
import { blobOfDataAddress, dataAddress, readPicture, shortName } from "./pictures.js";
import { checkedValues } from "./settings.js";
import { pictureIds, thread, titleOf } from "./tree.js";

const FORMAT = "vistune-chat";
const MOST_BYTES = 256 << 20;
const MOST_MESSAGES = 10000;
const MOST_CHARACTERS = 1 << 20;

/** @typedef {import("./tree.js").Conversation} Conversation */
/** @typedef {import("./store.js").Store} Store */

export class ImportError extends Error {}

/** @param {Store} store @param {Conversation} conversation @returns {Promise<File>} */
export async function asJson(store, conversation) {
  const pictures = await store.picturesOf(pictureIds(conversation));
  const written = await Promise.all(pictures.map(async ({ blob, ...facts }) => ({ ...facts, data: await dataAddress(blob) })));
  const text = JSON.stringify({ format: FORMAT, version: 1, conversation, pictures: written });
  return new File([text], `${fileName(conversation)}.json`, { type: "application/json" });
}

/** The thread that is shown, its pictures inside. @param {Store} store @param {Conversation} conversation @returns {Promise<File>} */
export async function asMarkdown(store, conversation) {
  const lines = [`# ${titleOf(conversation)}`];
  for (const message of thread(conversation)) {
    lines.push(`**${message.role === "user" ? "You" : message.model || "Assistant"}**`);
    for (const { name, blob } of await store.picturesOf(message.pictures)) {
      lines.push(`![${name.replace(/[[\]\\]/g, "")}](${await dataAddress(blob)})`);
    }
    lines.push(message.text);
  }
  return new File([`${lines.join("\n\n")}\n`], `${fileName(conversation)}.md`, { type: "text/markdown" });
}

/** @param {Conversation} conversation */
function fileName(conversation) {
  const words = titleOf(conversation)
    .toLowerCase()
    .normalize("NFKD")
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-+|-+$/g, "");
  return words.slice(0, 50) || "chat";
}

/** @param {Blob} blob @param {string} name */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** By the system's own share sheet where it takes files, else as a download. @param {File} file */
export async function share(file) {
  if (!navigator.canShare?.({ files: [file] })) return download(file, file.name);
  try {
    await navigator.share({ files: [file], title: file.name });
  } catch (error) {
    if (/** @type {Error} */ (error).name !== "AbortError") download(file, file.name); // AbortError: the reader changed their mind
  }
}

/** @param {Store} store @param {File} file @returns {Promise<Conversation>} it is in the store already */
export async function importJson(store, file) {
  if (file.size > MOST_BYTES) throw new ImportError("The file is too large to be imported.");
  let found;
  try {
    found = JSON.parse(await file.text());
  } catch {
    throw new ImportError("The file is not JSON.");
  }
  if (found?.format !== FORMAT || found.version !== 1) throw new ImportError("The file is no conversation exported from this page.");
  const pictures = await readPictures(found.pictures);
  const conversation = readConversation(found.conversation, pictures);
  for (const picture of pictures.values()) await store.addPicture(picture);
  await store.conversations.put(conversation);
  return conversation;
}

/** @param {any} found @returns {Promise<Map<string, import("./store.js").Picture>>} by the ids in the file */
async function readPictures(found) {
  const pictures = new Map();
  for (const entry of Array.isArray(found) ? found.slice(0, 1000) : []) {
    const blob = typeof entry?.data === "string" ? blobOfDataAddress(entry.data) : null;
    if (!blob || typeof entry.id !== "string") throw new ImportError("A picture in the file cannot be read.");
    try {
      // As if it had been chosen: decoded, measured, and scaled down if it is too large.
      const name = shortName(String(entry.name ?? ""));
      pictures.set(entry.id, (await readPicture(new File([blob], name))).picture);
    } catch {
      throw new ImportError("A picture in the file cannot be read.");
    }
  }
  return pictures;
}

/** @param {any} found @param {Map<string, import("./store.js").Picture>} pictures @returns {Conversation} */
function readConversation(found, pictures) {
  if (!Array.isArray(found?.messages) || found.messages.length > MOST_MESSAGES)
    throw new ImportError("The file holds no messages, or too many.");
  /** @type {Map<string, {id: string, role: string}>} */
  const known = new Map();
  const messages = found.messages.map((/** @type {any} */ entry) => {
    const message = readMessage(entry, known, pictures);
    known.set(entry.id, message);
    return message;
  });
  const chosen = Object.entries(typeof found.chosen === "object" && found.chosen ? found.chosen : {}).flatMap(([parent, child]) => {
    const ids = [parent === "root" ? "root" : known.get(parent)?.id, known.get(/** @type {string} */ (child))?.id];
    return ids[0] && ids[1] ? [ids] : [];
  });
  const now = Date.now();
  const title = typeof found.title === "string" ? found.title.slice(0, 200) : "";
  const settings = checkedValues(found.settings);
  return { id: newId(), title, created: now, updated: now, settings, messages, chosen: Object.fromEntries(chosen) };
}

/** @param {any} entry @param {Map<string, {id: string, role: string}>} known @param {Map<string, import("./store.js").Picture>} pictures */
function readMessage(entry, known, pictures) {
  const parent = entry?.parent === null ? null : known.get(entry?.parent); // only one that came before: there are no circles
  const role = entry?.role === "user" || entry?.role === "assistant" ? entry.role : null;
  const turn = parent === null ? role === "user" : parent && parent.role !== role;
  const text = typeof entry?.text === "string" && entry.text.length <= MOST_CHARACTERS ? entry.text : null;
  if (typeof entry?.id !== "string" || known.has(entry.id) || !role || !turn || text === null)
    throw new ImportError("A message in the file is not as it should be.");
  const shown = (Array.isArray(entry.pictures) ? entry.pictures : []).map((/** @type {any} */ id) => pictures.get(id)?.id);
  if (shown.includes(undefined)) throw new ImportError("A picture is missing in the file.");
  const created = Number.isFinite(entry.created) ? entry.created : Date.now();
  const more = {
    model: typeof entry.model === "string" ? entry.model.slice(0, 256) : undefined,
    finish: ["stop", "length", "stopped"].includes(entry.finish) ? entry.finish : role === "assistant" ? "stop" : undefined,
  };
  return { id: newId(), parent: parent ? parent.id : null, role, text, pictures: role === "user" ? shown : [], created, ...more };
}
