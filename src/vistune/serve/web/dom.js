// Builds the page's nodes. Texts become text nodes, here and everywhere: no string is ever read as HTML, whoever wrote it.

/**
 * @param {string} id
 * @returns {any} the element of index.html with this id; a missing one is a mistake of ours and fails loudly
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no element "${id}"`);
  return found;
}

/**
 * A new element. A property beginning with "on" is a listener, "class" and "dataset" are what they say, all others are attributes;
 * null, undefined and false leave one out.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "dataset") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(.../** @type {(Node | string)[]} */ (children.filter((child) => child !== null && child !== undefined && child !== false)));
  return node;
}

/** One stroke path each, on a square of 24. @type {Record<string, string>} */
const ICONS = {
  again: "M4 12a8 8 0 1 0 2.6-5.9M4 4v5h5",
  camera: "M4 8h3l2-3h6l2 3h3v11H4zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7z",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM5 15V4h10",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
  delete: "M5 7h14M10 7V4.5h4V7M7 7l1 13h8l1-13",
  down: "M7 14V4h9.5a2 2 0 0 1 2 1.6l1.2 6a2 2 0 0 1-2 2.4H14l.8 4.3a1.7 1.7 0 0 1-3.1 1.2L8.5 14zM3.5 4v10",
  edit: "M4 20l1-4.5L16.5 4l3.5 3.5L8.5 19z",
  file: "M12 4v11M7.5 10.5L12 15l4.5-4.5M5 20h14",
  forward: "M5 12h14M13 6l6 6-6 6",
  light:
    "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2" +
    "M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  menu: "M4 7h16M4 12h16M4 17h16",
  next: "M9 5l7 7-7 7",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 2.5-2.5L20 17M15.5 8.7a.8.8 0 1 0 0 1.6.8.8 0 0 0 0-1.6z",
  plus: "M12 5v14M5 12h14",
  previous: "M15 5l-7 7 7 7",
  send: "M12 19V5M5.5 11.5L12 5l6.5 6.5",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5a2 2 0 1 0 0 4 2 2 0 0 0 0-4zM9 15a2 2 0 1 0 0 4 2 2 0 0 0 0-4z",
  share: "M12 15V4M7.5 8L12 3.5 16.5 8M5 13v7h14v-7",
  stop: "M7 7h10v10H7z",
  up: "M7 10v10h9.5a2 2 0 0 0 2-1.6l1.2-6a2 2 0 0 0-2-2.4H14l.8-4.3a1.7 1.7 0 0 0-3.1-1.2L8.5 10zM3.5 10v10",
};

/** @param {string} name @returns {SVGElement} */
export function icon(name) {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  drawing.append(path);
  return drawing;
}

/**
 * A button that shows only an icon: its label is its accessible name and its tooltip.
 * @param {string} name @param {string} label @param {() => void} act @param {Record<string, any>} [more]
 */
export function iconButton(name, label, act, more = {}) {
  return element("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick: act, ...more }, icon(name));
}

/** Fills the buttons of index.html that name their icon in data-icon. */
export function drawIcons() {
  for (const place of document.querySelectorAll("[data-icon]")) {
    place.prepend(icon(/** @type {HTMLElement} */ (place).dataset.icon ?? ""));
  }
}

/** Tells a screen reader. The text is cleared first, so that the same one is read twice when it is said twice. @param {string} text */
export function announce(text) {
  const region = byId("announcer");
  region.textContent = "";
  setTimeout(() => (region.textContent = text.slice(0, 4000)), 50);
}

/**
 * Shows a line at the bottom of the page for a while, with one thing that can be done about it.
 * @param {string} text @param {{label: string, act: () => void}} [action]
 */
export function toast(text, action) {
  const line = element("div", { class: "toast" }, element("span", {}, text));
  const away = () => line.remove();
  if (action) line.append(element("button", { type: "button", onclick: () => (action.act(), away()) }, action.label));
  line.append(iconButton("close", "Dismiss", away));
  byId("toasts").replaceChildren(line);
  announce(text);
  setTimeout(away, action ? 10000 : 6000);
}

/** Opens a dialog of index.html, and closes it by its own button or a click beside it. @param {any} dialog */
export function showDialog(dialog) {
  if (!dialog.dataset.wired) {
    dialog.dataset.wired = "yes";
    dialog.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      const on = /** @type {Element} */ (event.target);
      if (on === dialog || on.closest("[data-close]")) dialog.close();
    });
  }
  if (!dialog.open) dialog.showModal();
}

/** @returns {string} 128 random bits; randomUUID exists only where the page came by https or from this machine */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
