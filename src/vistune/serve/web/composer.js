// Where a question is written: the text, its pictures (dropped, pasted, chosen, photographed), and the button that sends or stops.

import { byId, element, icon, iconButton, toast } from "./dom.js";
import { takePhotograph } from "./camera.js";
import { PictureError, readPicture } from "./pictures.js";

const MOST_PICTURES = 16;
const SUGGESTIONS = ["What is in the picture?", "Describe the picture.", "How many things are there?"];

/** @typedef {import("./store.js").Picture} Picture */

export class Composer {
  /** @type {{picture: Picture, url: string}[]} */
  #attached = [];

  /**
   * @param {object} acts
   * @param {(text: string, pictures: Picture[]) => void} acts.send
   * @param {() => void} acts.stop
   * @param {() => void} acts.editLast
   */
  constructor(acts) {
    this.acts = acts;
    this.text = byId("text");
    this.busy = false;
    this.text.addEventListener("input", () => this.refresh());
    this.text.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    this.text.addEventListener("paste", (/** @type {ClipboardEvent} */ event) => this.#paste(event));
    byId("send").addEventListener("click", () => (this.busy ? acts.stop() : this.send()));
    byId("attach").addEventListener("click", () => byId("files").click());
    byId("photograph").addEventListener("click", () => takePhotograph(byId("capture"), (blob) => this.add([blob])));
    for (const id of ["files", "capture"]) {
      byId(id).addEventListener("change", () => {
        this.add([...byId(id).files]);
        byId(id).value = ""; // the same file can be chosen again
      });
    }
    this.#takeDrops();
    this.refresh();
  }

  /** @param {boolean} busy */
  setBusy(busy) {
    this.busy = busy;
    this.refresh();
  }

  send() {
    const text = this.text.value.trim();
    if (!text || this.busy) return;
    const pictures = this.#attached.map(({ picture }) => picture);
    const shown = this.#attached;
    this.#attached = [];
    this.text.value = "";
    this.refresh();
    for (const { url } of shown) URL.revokeObjectURL(url); // the thread shows them by addresses of its own
    this.acts.send(text, pictures);
  }

  /** @param {(Blob & {name?: string})[]} files */
  async add(files) {
    const notes = [];
    for (const file of files) {
      if (this.#attached.length >= MOST_PICTURES) {
        notes.push(`At most ${MOST_PICTURES} pictures go with one question.`);
        break;
      }
      try {
        const { picture, note } = await readPicture(file);
        this.#attached.push({ picture, url: URL.createObjectURL(picture.blob) });
        if (note) notes.push(note);
      } catch (error) {
        if (!(error instanceof PictureError)) throw error;
        notes.push(error.message);
      }
    }
    if (notes.length) toast(notes.join(" "));
    this.refresh();
    this.text.focus();
  }

  refresh() {
    const { text } = this;
    text.style.height = "auto";
    text.style.height = `${Math.min(text.scrollHeight, window.innerHeight * 0.4)}px`;
    const send = byId("send");
    send.disabled = !this.busy && !text.value.trim();
    if (send.dataset.shows !== String(this.busy)) {
      send.dataset.shows = String(this.busy);
      send.replaceChildren(icon(this.busy ? "stop" : "send"));
      send.title = this.busy ? "Stop (Esc)" : "Send (Enter)";
      send.setAttribute("aria-label", this.busy ? "Stop" : "Send");
    }
    byId("attached").replaceChildren(...this.#attached.map((each) => this.#thumbnail(each)));
    const wanted = this.#attached.length && !text.value && !this.busy;
    byId("suggestions").replaceChildren(...(wanted ? SUGGESTIONS.map((words) => this.#suggestion(words)) : []));
  }

  /** @param {{picture: Picture, url: string}} attached */
  #thumbnail({ picture, url }) {
    const remove = () => {
      this.#attached = this.#attached.filter((each) => each.picture !== picture);
      URL.revokeObjectURL(url);
      this.refresh();
      this.text.focus();
    };
    const picturePart = element("img", { src: url, alt: picture.name, title: `${picture.name} · ${picture.width} × ${picture.height}` });
    return element("li", {}, picturePart, iconButton("close", `Remove ${picture.name}`, remove));
  }

  /** @param {string} words */
  #suggestion(words) {
    const take = () => {
      this.text.value = words;
      this.send();
    };
    return element("button", { type: "button", class: "chip", onclick: take }, words);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.isComposing || event.keyCode === 229) return; // Enter that ends a word of an input method
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && !this.text.value && !this.busy) {
      event.preventDefault();
      this.acts.editLast();
    }
  }

  /** @param {ClipboardEvent} event */
  #paste(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    // Office programs put a picture of the words beside the words: who pastes text wants the text.
    if (!files.length || event.clipboardData?.types.includes("text/plain")) return;
    event.preventDefault();
    this.add(files);
  }

  #takeDrops() {
    let depth = 0;
    const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    const over = (/** @type {boolean} */ is) => document.body.classList.toggle("dropping", is);
    addEventListener("dragenter", (event) => hasFiles(event) && over(++depth > 0));
    addEventListener("dragleave", (event) => hasFiles(event) && over(--depth > 0));
    addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      depth = 0;
      over(false);
      if (!hasFiles(event)) return;
      event.preventDefault(); // or the browser would leave the page and show the file
      this.add([...(event.dataTransfer?.files ?? [])]);
    });
    // A picture may be pasted wherever the keyboard is, as long as it is in no other field.
    addEventListener("paste", (event) => {
      const inField = /** @type {Element} */ (event.target).closest?.("input, textarea, dialog");
      if (!inField) this.#paste(event);
    });
  }
}
