// One conversation and what can be done with it: ask, stop, regenerate, edit, continue, delete. Draws nothing; tells who listens.
//
//     change   the thread has other messages          progress   a message's text has grown
//     busy     a reply begins or has ended            saved      the history has something new

import { streamChat } from "./api.js";
import { explain } from "./errors.js";
import { dataAddress } from "./pictures.js";
import { requestFields } from "./settings.js";
import { addMessage, childrenOf, choose, messageOf, newConversation, pathTo, pictureIds, removeMessage, thread } from "./tree.js";

const SAVE_EVERY_MS = 1500;
const MOST_WAITS = 5;

/** @typedef {import("./tree.js").Message} Message */
/** @typedef {import("./tree.js").Conversation} Conversation */

export class Chat extends EventTarget {
  /** Replies under way; a reader who turns to another conversation does not end them. @type {Map<string, AbortController>} */
  #running = new Map();
  /** Conversations that were deleted: a reply that was still being written must not bring one back. @type {Set<string>} */
  #gone = new Set();
  #waits = 0;
  #waitTimer = 0;

  /** @param {import("./store.js").Store} store @param {import("./settings.js").Values} values */
  constructor(store, values) {
    super();
    this.store = store;
    /** @type {Map<string, Conversation>} those that replies are written into, and the one that is shown */
    this.open = new Map();
    this.conversation = newConversation(values);
  }

  get busy() {
    return this.#running.has(this.conversation.id);
  }

  /** @param {string} name @param {any} [detail] */
  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** @param {import("./settings.js").Values} values */
  startNew(values) {
    this.show(newConversation(values));
  }

  /** @param {Conversation} conversation */
  show(conversation) {
    clearTimeout(this.#waitTimer);
    this.conversation = this.open.get(conversation.id) ?? conversation;
    for (const message of this.conversation.messages) {
      // The page was closed while this was written.
      if (message.finish === "writing" && !this.#running.has(this.conversation.id)) message.finish = "stopped";
    }
    this.tell("change");
    this.tell("busy");
  }

  /** @param {string} text @param {import("./store.js").Picture[]} pictures */
  async ask(text, pictures) {
    const { conversation } = this;
    const last = thread(conversation).at(-1);
    // A question that has no answer, because it was deleted or failed, is no turn: the new one stands beside it.
    const unanswered = last?.role === "assistant" && !last.text ? messageOf(conversation, last.parent) : last;
    const parent = unanswered?.role === "user" ? unanswered.parent : (unanswered?.id ?? null);
    await this.#question(conversation, parent, text, pictures);
  }

  /** The same question in other words, beside the first. @param {Message} message @param {string} text @param {string[]} pictures */
  async edit(message, text, pictures) {
    await this.#question(this.conversation, message.parent, text, await this.store.picturesOf(pictures));
  }

  /**
   * @param {Conversation} conversation @param {string | null} parent
   * @param {string} text @param {import("./store.js").Picture[]} pictures
   */
  async #question(conversation, parent, text, pictures) {
    if (this.#running.has(conversation.id)) return;
    this.#waits = 0;
    const question = addMessage(conversation, parent, { role: "user", text, pictures: pictures.map(({ id }) => id) });
    await this.#answer(conversation, question);
  }

  /** Another answer to the question before this one. @param {Message} message */
  async regenerate(message) {
    const question = message.role === "user" ? message : messageOf(this.conversation, message.parent);
    if (!question || this.busy) return;
    if (message.role === "assistant" && !message.text) removeMessage(this.conversation, message.id); // a failure is no answer to go back to
    await this.#answer(this.conversation, question);
  }

  /** Goes on where an answer ended too early. @param {Message} message */
  async continueReply(message) {
    if (!this.busy) await this.#write(this.conversation, message, true);
  }

  stop() {
    clearTimeout(this.#waitTimer);
    this.#running.get(this.conversation.id)?.abort();
  }

  /** @param {Message} message @returns {Promise<() => Promise<void>>} puts it back */
  async remove(message) {
    const { conversation } = this;
    const before = structuredClone({ messages: conversation.messages, chosen: conversation.chosen });
    if (this.busy) this.stop();
    removeMessage(conversation, message.id);
    await this.save(conversation);
    this.tell("change");
    return async () => {
      Object.assign(conversation, before);
      await this.save(conversation);
      this.tell("change");
    };
  }

  /** Shows the sibling that is so many places further. @param {Message} message @param {number} step */
  turn(message, step) {
    const siblings = childrenOf(this.conversation, message.parent);
    const next = siblings[siblings.findIndex(({ id }) => id === message.id) + step];
    if (!next) return;
    choose(this.conversation, next);
    this.save(this.conversation);
    this.tell("change", next);
  }

  /** @param {Conversation} conversation @param {Message} question */
  async #answer(conversation, question) {
    const answer = addMessage(conversation, question.id, { role: "assistant", model: conversation.settings.model });
    await this.#write(conversation, answer, false);
  }

  /**
   * Asks the server, and writes what it says into a message.
   * @param {Conversation} conversation @param {Message} answer @param {boolean} continued
   */
  async #write(conversation, answer, continued) {
    const controller = new AbortController();
    clearTimeout(this.#waitTimer);
    this.#running.set(conversation.id, controller);
    this.open.set(conversation.id, conversation);
    Object.assign(answer, { finish: "writing", problem: undefined });
    conversation.updated = Date.now();
    this.tell("change");
    this.tell("busy");
    try {
      await this.save(conversation);
      await this.#read(conversation, answer, continued, controller.signal);
    } catch (error) {
      if (controller.signal.aborted) answer.finish = "stopped";
      else Object.assign(answer, { finish: "failed", problem: explain(error) });
    }
    this.#running.delete(conversation.id);
    if (this.conversation !== conversation) this.open.delete(conversation.id);
    await this.save(conversation);
    this.tell("change");
    this.tell("busy", { ended: answer });
    if (answer.problem?.action === "wait") this.#askAgainLater(conversation, answer);
    else this.#waits = 0;
  }

  /** @param {Conversation} conversation @param {Message} answer @param {boolean} continued @param {AbortSignal} signal */
  async #read(conversation, answer, continued, signal) {
    const body = await this.#request(conversation, answer, continued);
    const started = performance.now();
    let saved = started;
    for await (const piece of streamChat(body, signal)) {
      if (piece.text) {
        answer.text += piece.text;
        if (conversation === this.conversation) this.tell("progress", answer);
      }
      if (piece.finish) answer.finish = piece.finish;
      if (piece.usage) {
        const seconds = (performance.now() - started) / 1000;
        answer.usage = { prompt: piece.usage.prompt_tokens, completion: piece.usage.completion_tokens, seconds };
      }
      if (performance.now() - saved > SAVE_EVERY_MS) {
        saved = performance.now();
        await this.save(conversation);
      }
    }
    if (answer.finish === "writing") answer.finish = "stop";
  }

  /** @param {Conversation} conversation @param {Message} answer @param {boolean} continued */
  async #request(conversation, answer, continued) {
    const { settings } = conversation;
    const path = pathTo(conversation, answer.id);
    const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
    for (const message of continued ? path : path.slice(0, -1)) {
      messages.push({ role: message.role, content: /** @type {any} */ (await this.#content(message)) });
    }
    return { ...requestFields(settings), messages, ...(continued ? { continue_final_message: true } : {}) };
  }

  /** @param {Message} message */
  async #content(message) {
    const pictures = await this.store.picturesOf(message.pictures);
    if (!pictures.length) return message.text;
    const addresses = await Promise.all(pictures.map(({ blob }) => dataAddress(blob)));
    const parts = addresses.map((url) => ({ type: "image_url", image_url: { url } }));
    return [...parts, { type: "text", text: message.text }];
  }

  /**
   * A server that was busy is asked again when it said that it would be worth it, a few times.
   * @param {Conversation} conversation @param {Message} answer
   */
  #askAgainLater(conversation, answer) {
    if (++this.#waits > MOST_WAITS || this.conversation !== conversation) return;
    const seconds = answer.problem?.seconds ?? 5;
    this.tell("waiting", { answer, until: Date.now() + seconds * 1000 });
    this.#waitTimer = setTimeout(() => this.regenerate(answer), seconds * 1000);
  }

  /** @param {Message} answer stays as it is: nobody asks again but the reader */
  giveUpWaiting(answer) {
    clearTimeout(this.#waitTimer);
    this.#waits = 0;
    if (answer.problem) answer.problem.action = "retry";
    this.save(this.conversation);
    this.tell("change");
  }

  /** Ends what is under way for a conversation, and keeps it no more. @param {string} id @returns {() => void} takes it back */
  forget(id) {
    this.#gone.add(id);
    this.#running.get(id)?.abort();
    return () => this.#gone.delete(id);
  }

  /** @param {Conversation} conversation */
  async save(conversation) {
    if (this.#gone.has(conversation.id)) return;
    try {
      await this.store.conversations.put(conversation);
      this.tell("saved");
    } catch (error) {
      this.tell("unsaved", error);
    }
  }

  /** @returns {string[]} the pictures of this conversation */
  get pictures() {
    return pictureIds(this.conversation);
  }
}
