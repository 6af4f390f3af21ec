// Draws the messages of the conversation, and keeps what the reader looks at in its place while a reply grows.

import { announce, byId, element, icon } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { actionsOf, problemOf } from "./actions.js";
import { childrenOf, thread } from "./tree.js";

/** @typedef {import("./tree.js").Message} Message */

export class Thread {
  /** @type {Map<string, any>} */
  #articles = new Map();
  #frame = 0;
  #following = true;
  #lastTop = 0;

  /** @param {import("./chat.js").Chat} chat @param {import("./actions.js").Acts} acts */
  constructor(chat, acts) {
    this.chat = chat;
    this.acts = acts;
    this.place = byId("thread");
    this.scroller = byId("scroller");
    this.scroller.addEventListener("scroll", () => this.#lookWhere());
    // Text that streams in, a picture that was loaded, a keyboard that opened: who reads the end goes on reading the end.
    const observer = new ResizeObserver(() => (this.#following ? this.toEnd() : this.#lookWhere()));
    observer.observe(this.place);
    observer.observe(this.scroller);
    byId("to-end").addEventListener("click", () => this.toEnd());
    this.place.addEventListener("click", (/** @type {MouseEvent} */ event) => this.#copyCode(event));
    chat.addEventListener("change", () => this.draw());
    chat.addEventListener("progress", (event) => this.#grow(/** @type {CustomEvent} */ (event).detail));
    chat.addEventListener("waiting", (event) => this.#countDown(/** @type {CustomEvent} */ (event).detail));
    chat.addEventListener("busy", (event) => this.#say(/** @type {CustomEvent} */ (event).detail?.ended));
  }

  draw() {
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const action = focused?.closest("#thread") ? focused.dataset.action : undefined;
    const place = focused?.closest("article")?.dataset;
    const { scrollTop } = this.scroller;
    this.#articles.clear();
    const messages = thread(this.chat.conversation);
    this.place.replaceChildren(...messages.map((message, number) => this.#article(message, number === messages.length - 1)));
    byId("welcome").hidden = messages.length > 0;
    document.body.classList.toggle("empty", !messages.length);
    if (action && place) this.#refocus(action, place);
    if (!messages.length) this.scroller.scrollTop = 0;
    else if (this.#following) this.toEnd();
    else this.scroller.scrollTop = scrollTop;
  }

  /**
   * The keyboard stays where it was: on the same button, of the same message or of the one that took its place.
   * @param {string} action @param {DOMStringMap} place
   */
  #refocus(action, place) {
    for (const article of this.place.children) {
      if (article.dataset.message !== place.message && article.dataset.parent !== place.parent) continue;
      const buttons = [...article.querySelectorAll("[data-action]")];
      const same = buttons.find((button) => button.dataset.action === action && !button.disabled);
      (same ?? buttons.find((button) => !button.disabled))?.focus();
      return;
    }
  }

  /** @param {Message} message @param {boolean} last */
  #article(message, last) {
    const mine = message.role === "user";
    const label = mine ? "You" : message.model || "Assistant";
    const data = { message: message.id, parent: message.parent ?? "" };
    const article = element("article", { class: `${message.role}${last ? " last" : ""}`, "aria-label": label, dataset: data });
    this.#articles.set(message.id, article);
    if (message.pictures.length) article.append(this.#pictures(message));
    if (!mine) article.append(element("div", { class: "speaker" }, label));
    const body = element("div", { class: "body" });
    if (mine) body.textContent = message.text;
    else renderMarkdown(body, message.text);
    if (message.text || !mine) article.append(body);
    if (message.finish === "writing") article.append(this.#writing(message));
    const problem = problemOf(message, this.acts);
    if (problem) article.append(problem);
    article.append(actionsOf(message, childrenOf(this.chat.conversation, message.parent), this.acts, this.chat.busy));
    return article;
  }

  /** @param {Message} message */
  #writing(message) {
    const words = message.text ? "" : message.pictures.length ? "Looking …" : "Thinking …";
    return element("div", { class: "writing" }, element("i"), element("i"), element("i"), element("span", { class: "aside" }, words));
  }

  /** @param {Message} message */
  #pictures(message) {
    const place = element("div", { class: "pictures" });
    for (const id of message.pictures) {
      const button = element("button", { type: "button", class: "picture", disabled: true });
      place.append(button);
      const show = (/** @type {{picture: import("./store.js").Picture, url: string} | undefined} */ entry) => {
        if (!entry) return button.replaceChildren(element("span", { class: "aside" }, "picture no longer kept"));
        const { picture, url } = entry;
        const ratio = { width: picture.width, height: picture.height }; // known before it is decoded, so that nothing jumps
        button.replaceChildren(element("img", { src: url, alt: picture.name, ...ratio }));
        button.disabled = false;
        button.setAttribute("aria-label", `Enlarge ${picture.name}`);
        button.addEventListener("click", () => this.acts.enlarge(picture, url));
      };
      const known = this.chat.store.known(id); // shown at once, so that drawing again moves nothing
      if (known) show(known);
      else this.chat.store.shown(id).then(show);
    }
    return place;
  }

  /** A reply has grown: drawn once a frame, however fast it comes. @param {Message} message */
  #grow(message) {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      const article = this.#articles.get(message.id);
      const body = article?.querySelector(".body");
      if (!body || !article.isConnected) return;
      renderMarkdown(body, message.text);
      article.querySelector(".writing .aside")?.remove();
    });
  }

  /** @param {{answer: Message, until: number}} waiting */
  #countDown({ answer, until }) {
    const clock = setInterval(() => {
      const shown = this.#articles.get(answer.id)?.querySelector(".countdown");
      const seconds = Math.max(0, Math.ceil((until - Date.now()) / 1000));
      if (shown) shown.textContent = seconds ? `Asking again in ${seconds} s.` : "Asking again.";
      if (!shown || !seconds) clearInterval(clock);
    }, 250);
  }

  /**
   * Tells a screen reader of a reply's begin, and its words once they are all there: word by word nobody could follow.
   * @param {Message} [ended]
   */
  #say(ended) {
    if (!ended) return this.chat.busy ? announce("The answer is being written.") : undefined;
    const problem = ended.problem ? `${ended.problem.title} ${ended.problem.detail}` : "";
    announce(
      problem || (ended.finish === "stopped" ? "Stopped." : `Answer: ${this.#articles.get(ended.id)?.querySelector(".body")?.textContent}`),
    );
  }

  #lookWhere() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    // What grows below is no reason to stop following; that somebody scrolls up is.
    const up = scrollTop < this.#lastTop;
    this.#lastTop = scrollTop;
    this.#following = scrollHeight - scrollTop - clientHeight < 60 || (this.#following && !up);
    byId("to-end").hidden = this.#following;
  }

  toEnd() {
    this.#following = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    byId("to-end").hidden = true;
  }

  /** @param {MouseEvent} event */
  #copyCode(event) {
    const button = /** @type {HTMLElement} */ (event.target).closest?.("[data-copies]");
    if (button) this.acts.copyText(button.closest(".code")?.querySelector("code")?.textContent ?? "");
  }
}

/** @param {any} dialog @param {import("./store.js").Picture} picture @param {string} url */
export function enlarge(dialog, picture, url) {
  const facts = `${picture.name} · ${picture.width} × ${picture.height}`;
  const close = element("button", { type: "button", class: "quiet", "aria-label": "Close", dataset: { close: "" } }, icon("close"));
  const caption = element("figcaption", {}, element("span", {}, facts), close);
  dialog.replaceChildren(element("figure", {}, element("img", { src: url, alt: picture.name }), caption));
}
