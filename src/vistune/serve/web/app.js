// The page: makes its parts and ties them together. What each part does is in its own file.
//
//     composer ─► chat ─► api (the server)          thread, history ◄─ chat ─► store (the browser)

import { listModels } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { askForKey, confirmed, rateMessage, wireFeedback, wireKey, wireSharing } from "./dialogs.js";
import { byId, drawIcons, element, icon, showDialog, toast } from "./dom.js";
import { beginEdit } from "./editing.js";
import { explain } from "./errors.js";
import { asJson, download, importJson, ImportError } from "./files.js";
import { History } from "./history.js";
import { wireKeys } from "./keyboard.js";
import { readPicture } from "./pictures.js";
import { checkedValues, fillModelChoice, rememberedValues, rememberValues, wireSettings } from "./settings.js";
import { openStore } from "./store.js";
import { enlarge, Thread } from "./thread.js";
import { pictureIds, thread } from "./tree.js";

/** @typedef {import("./tree.js").Message} Message */
/** @typedef {import("./tree.js").Conversation} Conversation */

drawIcons();
const store = await openStore();
const chat = new Chat(store, rememberedValues());

// --- the conversation --------------------------------------------------------------------------------------------------------------------

const composer = new Composer({
  send: (text, pictures) => keepPictures(pictures).then(() => chat.ask(text, pictures)),
  stop: () => chat.stop(),
  editLast: () => editMessage(thread(chat.conversation).findLast(({ role }) => role === "user")),
});

new Thread(chat, {
  copy: (message) => copyText(message.text),
  copyText,
  edit: editMessage,
  remove: async (message) => {
    const putBack = await chat.remove(message);
    toast("Deleted.", { label: "Undo", act: putBack });
  },
  regenerate,
  continueReply: (message) => chat.continueReply(message),
  turn: (message, step) => chat.turn(message, step),
  rate: (message, rating) => rateMessage(chat, message, rating),
  giveUpWaiting: (message) => chat.giveUpWaiting(message),
  enterKey: askForKey,
  enlarge: (picture, url) => {
    enlarge(byId("enlarged"), picture, url);
    showDialog(byId("enlarged"));
  },
});

chat.addEventListener("busy", () => composer.setBusy(chat.busy));
chat.addEventListener("change", () => {
  byId("share").disabled = !chat.conversation.messages.length;
});
chat.addEventListener("unsaved", () =>
  toast("The browser could not keep this. Its storage may be full: export and delete old conversations."),
);

/** @param {import("./store.js").Picture[]} pictures */
async function keepPictures(pictures) {
  try {
    for (const picture of pictures) await store.addPicture(picture);
  } catch {
    chat.tell("unsaved"); // they are still shown and sent as long as the page is open
  }
}

/** @param {Message | undefined} message */
function editMessage(message) {
  if (message && !chat.busy) beginEdit(chat, message);
}

/** @param {Message | undefined} message */
function regenerate(message) {
  if (!message || chat.busy) return;
  const { temperature, seed } = chat.conversation.settings;
  if (message.text && message.role === "assistant" && (temperature === 0 || seed !== null)) {
    toast(temperature === 0 ? "At temperature 0 the answer will be the same." : "With a fixed seed the answer will be the same.");
  }
  chat.regenerate(message);
}

/** @param {string} text */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    toast("The browser does not let this page copy; select the text instead.");
  }
}

// --- the conversations -------------------------------------------------------------------------------------------------------------------

const history = new History(chat, {
  open: (conversation) => {
    openConversation(conversation);
    showSide(false);
  },
  remove: async (conversation) => {
    const remember = chat.forget(conversation.id);
    const live = chat.open.get(conversation.id) ?? conversation; // further than what was kept of it, if it is being written
    const restore = await store.removeConversation(live);
    const putBack = async () => {
      remember();
      await restore();
      history.draw();
    };
    if (conversation.id === chat.conversation.id) startNew();
    history.draw();
    toast("Conversation deleted.", { label: "Undo", act: putBack });
  },
  exportFile: async (conversation) => {
    const file = await asJson(store, conversation);
    download(file, file.name);
  },
});

/** @param {Conversation} conversation */
function openConversation(conversation) {
  const model = byId("model").value;
  chat.show(conversation);
  const { settings } = chat.conversation;
  settings.model = [...byId("model").options].some(({ value }) => value === settings.model) ? settings.model : model;
  byId("model").value = settings.model;
  location.hash = conversation.id;
}

function startNew() {
  chat.startNew({ ...rememberedValues(), model: byId("model").value });
  window.history.replaceState(null, "", location.pathname);
  showSide(false);
  byId("text").focus();
}

/** @param {boolean} open */
function showSide(open) {
  const narrow = matchMedia("(max-width: 52rem)").matches;
  document.body.classList.toggle("side-shown", narrow && open);
  byId("side").inert = narrow ? !open : document.body.classList.contains("side-hidden");
  if (narrow && open) byId("search").focus({ preventScroll: true });
}

byId("side-open").addEventListener("click", () => {
  if (matchMedia("(max-width: 52rem)").matches) return showSide(true);
  document.body.classList.toggle("side-hidden");
  showSide(false);
});
byId("side-close").addEventListener("click", () => (showSide(false), byId("side-open").focus()));
byId("shade").addEventListener("click", () => showSide(false));
matchMedia("(max-width: 52rem)").addEventListener("change", () => showSide(false));
byId("new").addEventListener("click", startNew);

chat.addEventListener("saved", () => {
  if (chat.conversation.messages.length && location.hash !== `#${chat.conversation.id}`) {
    window.history.replaceState(null, "", `#${chat.conversation.id}`); // so that a reload comes back here
  }
});

byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async () => {
  const [file] = byId("import-file").files;
  byId("import-file").value = "";
  try {
    if (file) openConversation(await importJson(store, file));
  } catch (error) {
    toast(error instanceof ImportError ? error.message : "The file could not be imported.");
  }
});

byId("clear").addEventListener("click", () => {
  confirmed(
    "Clear all?",
    "Every conversation, picture and rating in this browser is deleted. This cannot be undone.",
    "Delete everything",
    async () => {
      for (const { id } of [chat.conversation, ...chat.open.values()]) chat.forget(id);
      await store.clear();
      startNew();
      history.draw();
    },
  );
});

// --- models, settings, theme -------------------------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    const chosen = fillModelChoice(await listModels(), chat.conversation.settings.model);
    chat.conversation.settings.model = chosen;
  } catch (error) {
    const problem = explain(error);
    fillModelChoice([], "");
    if (problem.action === "key") askForKey();
    toast(`${problem.title} ${problem.detail}`, problem.action === "key" ? undefined : { label: "Try again", act: loadModels });
  }
}

/** @param {import("./settings.js").Values} values */
function changeSettings(values) {
  chat.conversation.settings = values;
  rememberValues(values);
  if (chat.conversation.messages.length) chat.save(chat.conversation);
}
wireSharing(chat);
wireFeedback(chat);
wireKey(loadModels);
wireSettings(() => chat.conversation.settings, changeSettings);
byId("model").addEventListener("change", () =>
  changeSettings(checkedValues({ ...chat.conversation.settings, model: byId("model").value })),
);
byId("open-help").addEventListener("click", () => showDialog(byId("help")));

const isDark = () =>
  (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
function showTheme() {
  byId("theme").replaceChildren(icon(isDark() ? "light" : "dark"));
  byId("theme").setAttribute("aria-pressed", String(isDark()));
}
function switchTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("vistune-theme", document.documentElement.dataset.theme);
  } catch {
    // a browser that keeps nothing follows the system again after a reload
  }
  showTheme();
}
byId("theme").addEventListener("click", switchTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);

// --- examples and the beginning ----------------------------------------------------------------------------------------------------------

/** @param {{picture: string, question: string}} example */
function exampleCard({ picture, question }) {
  const ask = async () => {
    const response = await fetch(`/web/examples/${encodeURIComponent(picture)}`);
    const { picture: read } = await readPicture(new File([await response.blob()], picture));
    await keepPictures([read]);
    chat.ask(question, [read]);
  };
  const image = element("img", { src: `/web/examples/${encodeURIComponent(picture)}`, alt: "", width: 160, height: 112 });
  return element("li", {}, element("button", { type: "button", class: "example", onclick: ask }, image, element("span", {}, question)));
}

async function showExamples() {
  const response = await fetch("/web/examples.json");
  if (response.ok) byId("examples").replaceChildren(...(await response.json()).map(exampleCard));
}

wireKeys({
  stop: () => chat.stop(),
  startNew,
  regenerate: () => regenerate(thread(chat.conversation).at(-1)),
  theme: switchTheme,
  side: (open) => (document.body.classList.remove("side-hidden"), showSide(open)),
  busy: () => chat.busy,
});
// What is half written when the page closes is kept as far as it came.
addEventListener("pagehide", () => chat.busy && chat.save(chat.conversation));

showTheme();
showSide(false);
const asked = location.hash.slice(1);
const found = asked ? await store.conversations.get(asked).catch(() => undefined) : undefined;
await Promise.allSettled([loadModels(), showExamples()]);
if (found) openConversation(found);
else chat.tell("change");
history.draw();
if (!store.lasting) toast("This browser keeps nothing here: conversations last until the page is closed.");
if (pictureIds(chat.conversation).length === 0 && matchMedia("(pointer: fine)").matches) byId("text").focus();
document.body.dataset.ready = "yes";
