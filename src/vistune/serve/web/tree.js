// A conversation is a tree: an edited question or a second answer is a sibling of the first; nothing that was said is lost.
//
//     null ─┬─ question ─┬─ answer ── question ── answer
//           │            └─ another answer
//           └─ question, edited ── answer
//
// "chosen" names, for each message, which of those that follow it is shown; the path of the chosen ones is the thread.

import { newId } from "./dom.js";

/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string | null} parent
 * @property {"user" | "assistant"} role
 * @property {string} text
 * @property {string[]} pictures ids in the store
 * @property {number} created
 * @property {string} [model]
 * @property {string} [finish] stop, length: as the model ended it; stopped: by the reader; failed: by an error; writing: not yet
 * @property {import("./errors.js").Problem} [problem]
 * @property {{prompt: number, completion: number, seconds: number}} [usage]
 * @property {"up" | "down"} [rating]
 */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} created
 * @property {number} updated
 * @property {import("./settings.js").Values} settings
 * @property {Message[]} messages a parent stands before its children
 * @property {Record<string, string>} chosen
 */

const ROOT = "root";

/** @param {import("./settings.js").Values} settings @returns {Conversation} */
export function newConversation(settings) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, settings: { ...settings }, messages: [], chosen: {} };
}

/** @param {Conversation} conversation @param {string | null} parent @returns {Message[]} */
export function childrenOf(conversation, parent) {
  return conversation.messages.filter((message) => message.parent === parent);
}

/** @param {Conversation} conversation @param {string | null} id @returns {Message | undefined} */
export function messageOf(conversation, id) {
  return conversation.messages.find((message) => message.id === id);
}

/** The messages that are shown, from the first to the last. @param {Conversation} conversation @returns {Message[]} */
export function thread(conversation) {
  /** @type {Map<string, Message[]>} */
  const children = new Map();
  for (const message of conversation.messages) {
    const key = message.parent ?? ROOT;
    children.set(key, [...(children.get(key) ?? []), message]);
  }
  const path = [];
  let next = children.get(ROOT);
  while (next?.length) {
    const parent = next[0].parent ?? ROOT;
    const shown = next.find((message) => message.id === conversation.chosen[parent]) ?? next[next.length - 1];
    path.push(shown);
    next = children.get(shown.id);
  }
  return path;
}

/** The messages before one, and it. @param {Conversation} conversation @param {string} id @returns {Message[]} */
export function pathTo(conversation, id) {
  const path = [];
  for (let message = messageOf(conversation, id); message; message = messageOf(conversation, message.parent)) path.unshift(message);
  return path;
}

/**
 * @param {Conversation} conversation @param {string | null} parent
 * @param {Partial<Message> & {role: "user" | "assistant"}} given @returns {Message}
 */
export function addMessage(conversation, parent, given) {
  const message = { id: newId(), parent, text: "", pictures: [], created: Date.now(), ...given };
  conversation.messages.push(message);
  choose(conversation, message);
  return message;
}

/** Shows this one of its siblings. @param {Conversation} conversation @param {Message} message */
export function choose(conversation, message) {
  conversation.chosen[message.parent ?? ROOT] = message.id;
}

/** Removes a message and all that follow it. @param {Conversation} conversation @param {string} id */
export function removeMessage(conversation, id) {
  const gone = new Set([id]);
  for (const message of conversation.messages) if (message.parent && gone.has(message.parent)) gone.add(message.id);
  conversation.messages = conversation.messages.filter((message) => !gone.has(message.id));
  const kept = Object.entries(conversation.chosen).filter(([parent, child]) => !gone.has(parent) && !gone.has(child));
  conversation.chosen = Object.fromEntries(kept);
}

/** @param {Conversation} conversation @returns {string[]} every picture that is shown anywhere in it */
export function pictureIds(conversation) {
  return [...new Set(conversation.messages.flatMap((message) => message.pictures))];
}

/** @param {Conversation} conversation @returns {string} its title, or the beginning of its first question */
export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user")?.text ?? "";
  const line = first.trim().split("\n", 1)[0];
  return conversation.title || (line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line) || "New chat";
}
