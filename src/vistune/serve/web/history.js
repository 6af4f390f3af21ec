// The list of conversations at the side: search, open, rename, delete.

import { byId, element, iconButton } from "./dom.js";
import { titleOf } from "./tree.js";

/** @typedef {import("./tree.js").Conversation} Conversation */

export class History {
  #timer = 0;

  /**
   * @param {import("./chat.js").Chat} chat
   * @param {object} acts
   * @param {(conversation: Conversation) => void} acts.open
   * @param {(conversation: Conversation) => void} acts.remove
   * @param {(conversation: Conversation) => void} acts.exportFile
   */
  constructor(chat, acts) {
    this.chat = chat;
    this.acts = acts;
    this.place = byId("conversations");
    this.search = byId("search");
    this.search.addEventListener("input", () => this.draw());
    chat.addEventListener("saved", () => this.#soon());
    chat.addEventListener("change", () => this.#soon());
  }

  #soon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.draw(), 80);
  }

  async draw() {
    if (this.place.querySelector("input")) return; // a title is being typed
    const all = await this.chat.store.newestFirst();
    const words = this.search.value.trim().toLowerCase();
    const found = all.filter((conversation) => !words || holds(conversation, words));
    const items = [];
    let heading = "";
    for (const conversation of found.slice(0, 500)) {
      const day = dayOf(conversation.updated);
      if (day !== heading) items.push(element("li", { class: "day" }, day));
      heading = day;
      items.push(this.#item(conversation));
    }
    if (!items.length)
      items.push(element("li", { class: "none" }, words ? "Nothing found." : "Conversations are kept here, in this browser."));
    this.place.replaceChildren(...items);
    byId("clear").disabled = !all.length;
  }

  /** @param {Conversation} conversation */
  #item(conversation) {
    const title = titleOf(conversation);
    const current = conversation.id === this.chat.conversation.id;
    const open = element("button", { type: "button", class: "open", title, "aria-current": current ? "true" : null }, title);
    open.addEventListener("click", () => this.acts.open(conversation));
    const item = element("li", { class: current ? "current" : "" }, open);
    const [picture] = conversation.messages.find(({ role }) => role === "user")?.pictures ?? [];
    if (picture) {
      // Many a first question is the same; what it was about is not.
      this.chat.store.shown(picture).then((entry) => entry && open.prepend(element("img", { src: entry.url, alt: "" })));
    }
    item.append(
      iconButton("edit", `Rename ${title}`, () => this.#rename(item, conversation)),
      iconButton("file", `Export ${title}`, () => this.acts.exportFile(conversation)),
      iconButton("delete", `Delete ${title}`, () => this.acts.remove(conversation)),
    );
    return item;
  }

  /** @param {any} item @param {Conversation} conversation */
  #rename(item, conversation) {
    const field = element("input", { type: "text", maxlength: 200, "aria-label": "Title", value: titleOf(conversation) });
    let ended = false;
    const end = async (/** @type {boolean} */ keep) => {
      if (ended) return;
      ended = true;
      const title = field.value.trim();
      field.remove();
      if (keep) {
        // The one that is shown lives in memory too, and would be written over this.
        const live =
          conversation.id === this.chat.conversation.id ? this.chat.conversation : (this.chat.open.get(conversation.id) ?? conversation);
        live.title = title;
        await this.chat.save(live);
      }
      await this.draw();
    };
    field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && !event.isComposing) end(true);
      if (event.key === "Escape") end(false);
      event.stopPropagation();
    });
    field.addEventListener("blur", () => end(true));
    item.replaceChildren(field);
    field.select();
    field.focus();
  }
}

/** @param {Conversation} conversation @param {string} words */
function holds(conversation, words) {
  return (
    titleOf(conversation).toLowerCase().includes(words) || conversation.messages.some(({ text }) => text.toLowerCase().includes(words))
  );
}

/** @param {number} time */
function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - 864e5) return "Yesterday";
  return time >= midnight - 6 * 864e5 ? "This week" : "Earlier";
}
