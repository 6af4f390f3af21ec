// What the browser keeps: conversations, their pictures, the feedback. In IndexedDB, or in memory where the browser keeps nothing.
//
// The server never sees any of it except what is asked of it, so there is nothing there that another user could read.

import { pictureIds } from "./tree.js";

/** @typedef {{id: string, name: string, type: string, width: number, height: number, blob: Blob}} Picture */

const NAMES = ["conversations", "pictures", "feedback"];

class IndexedTable {
  /** @param {IDBDatabase} database @param {string} name */
  constructor(database, name) {
    this.begin = (/** @type {IDBTransactionMode} */ mode) => database.transaction(name, mode, { durability: "relaxed" }).objectStore(name);
  }
  /** @param {string} id */
  get = (id) => settled(this.begin("readonly").get(id));
  all = () => settled(this.begin("readonly").getAll());
  /** @param {any} record */
  put = (record) => settled(this.begin("readwrite").put(record));
  /** @param {string} id */
  remove = (id) => settled(this.begin("readwrite").delete(id));
  clear = () => settled(this.begin("readwrite").clear());
}

class MemoryTable {
  /** @type {Map<string, any>} */
  #records = new Map();
  /** @param {string} id */
  get = async (id) => structuredClone(this.#records.get(id));
  all = async () => [...this.#records.values()].map((record) => structuredClone(record));
  /** @param {any} record */
  put = async (record) => void this.#records.set(record.id, structuredClone(record));
  /** @param {string} id */
  remove = async (id) => void this.#records.delete(id);
  clear = async () => this.#records.clear();
}

/** @param {IDBRequest} request @returns {Promise<any>} */
function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @returns {Promise<Store>} */
export async function openStore() {
  try {
    const request = indexedDB.open("vistune-chat", 1);
    request.onupgradeneeded = () => NAMES.forEach((name) => request.result.createObjectStore(name, { keyPath: "id" }));
    const database = await settled(request);
    return new Store(
      NAMES.map((name) => new IndexedTable(database, name)),
      true,
    );
  } catch {
    return new Store(
      NAMES.map(() => new MemoryTable()),
      false,
    );
  }
}

export class Store {
  /** @type {Map<string, {picture: Picture, url: string}>} */
  #shown = new Map();

  /** @param {(IndexedTable | MemoryTable)[]} tables @param {boolean} lasting whether a reload finds it again */
  constructor([conversations, pictures, feedback], lasting) {
    this.conversations = conversations;
    this.pictures = pictures;
    this.feedback = feedback;
    this.lasting = lasting;
  }

  /** @returns {Promise<import("./tree.js").Conversation[]>} the newest first */
  async newestFirst() {
    /** @type {import("./tree.js").Conversation[]} */
    const all = await this.conversations.all();
    return all.sort((one, other) => other.updated - one.updated);
  }

  /** @param {Picture} picture */
  async addPicture(picture) {
    this.#shown.set(picture.id, { picture, url: URL.createObjectURL(picture.blob) });
    await this.pictures.put(picture);
  }

  /** What `shown` gives, at once, for a picture that was shown before. @param {string} id */
  known(id) {
    return this.#shown.get(id);
  }

  /** @param {string} id @returns {Promise<{picture: Picture, url: string} | undefined>} a picture and an address to show it by */
  async shown(id) {
    const known = this.#shown.get(id);
    if (known) return known;
    const picture = await this.pictures.get(id);
    if (!picture) return undefined;
    const entry = this.#shown.get(id) ?? { picture, url: URL.createObjectURL(picture.blob) };
    this.#shown.set(id, entry);
    return entry;
  }

  /** @param {string[]} ids @returns {Promise<Picture[]>} those that are still there */
  async picturesOf(ids) {
    const entries = await Promise.all(ids.map((id) => this.shown(id)));
    return entries.flatMap((entry) => (entry ? [entry.picture] : []));
  }

  /**
   * Removes a conversation with its pictures.
   * @param {import("./tree.js").Conversation} conversation @returns {Promise<() => Promise<void>>} puts it back
   */
  async removeConversation(conversation) {
    const pictures = await this.picturesOf(pictureIds(conversation));
    await this.conversations.remove(conversation.id);
    for (const { id } of pictures) await this.pictures.remove(id);
    this.#release(pictures.map(({ id }) => id));
    return async () => {
      for (const picture of pictures) await this.addPicture(picture);
      await this.conversations.put(conversation);
    };
  }

  async clear() {
    await Promise.all([this.conversations.clear(), this.pictures.clear(), this.feedback.clear()]);
    this.#release([...this.#shown.keys()]);
  }

  /** @param {string[]} ids */
  #release(ids) {
    for (const id of ids) {
      URL.revokeObjectURL(this.#shown.get(id)?.url ?? "");
      this.#shown.delete(id);
    }
  }
}
