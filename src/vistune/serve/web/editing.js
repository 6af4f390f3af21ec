// Editing a question in its place. What is sent stands beside the old question, not over it.

import { element, iconButton } from "./dom.js";

/** @param {import("./chat.js").Chat} chat @param {import("./tree.js").Message} message */
export async function beginEdit(chat, message) {
  const article = document.querySelector(`article[data-message="${CSS.escape(message.id)}"]`);
  if (!article || article.querySelector("textarea")) return;
  let kept = [...message.pictures];
  const field = element("textarea", { rows: 3, "aria-label": "Your question, to be edited" });
  field.value = message.text;
  const pictures = element("ul", { class: "editing-pictures", "aria-label": "Pictures of this question" });
  for (const id of kept) {
    const entry = await chat.store.shown(id);
    if (!entry) continue;
    const item = element("li", {}, element("img", { src: entry.url, alt: entry.picture.name }));
    const remove = () => {
      kept = kept.filter((each) => each !== id);
      item.remove();
      field.focus();
    };
    item.append(iconButton("close", `Remove ${entry.picture.name}`, remove));
    pictures.append(item);
  }
  const cancel = () => chat.tell("change");
  const send = () => {
    const text = field.value.trim();
    if (text) chat.edit(message, text, kept);
  };
  field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.preventDefault();
      cancel();
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    }
  });
  const choices = element(
    "div",
    { class: "choices" },
    element("button", { type: "button", onclick: cancel }, "Cancel"),
    element("button", { type: "button", class: "primary", onclick: send }, "Ask again"),
  );
  article.classList.add("editing");
  article.replaceChildren(...(kept.length ? [pictures] : []), field, choices);
  field.focus();
}
