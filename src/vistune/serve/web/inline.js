// Markdown within a line → nodes: code, emphasis, links. One pass from left to right, every search bounded, nothing read as HTML.
//
// A model's text is untrusted. A picture in it is shown as words and never loaded (an address can carry the conversation away), and a link
// goes to http, https or mailto only, saying which host it leads to.

import { element } from "./dom.js";

const DEEPEST = 6;
const PUNCTUATION = "\\`*_{}[]()#+-.!|<>~\"'$%&,/:;=?@^";
const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];

/** @param {string} text @param {number} [depth] @returns {Node[]} */
export function inline(text, depth = 0) {
  /** @type {Node[]} */
  const nodes = [];
  /** Marks for which there is no partner any more: without it, a text of nothing but marks would be searched once for each. */
  const hopeless = new Set();
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  /** @param {{node: Node, end: number} | null} found */
  const take = (found) => {
    if (!found) return false;
    flush();
    nodes.push(found.node);
    at = found.end;
    return true;
  };
  while (at < text.length) {
    const character = text[at];
    if (character === "\\" && PUNCTUATION.includes(text[at + 1] ?? "\0")) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    if (character === "\n") {
      flush();
      nodes.push(element("br"));
      at += 1;
      continue;
    }
    if (character === "`" && take(code(text, at, hopeless))) continue;
    if (character === "!" && text[at + 1] === "[" && take(picture(text, at, hopeless))) continue;
    if (character === "[" && take(namedLink(text, at, hopeless, depth))) continue;
    if ((character === "h" || character === "<") && take(bareLink(text, at))) continue;
    if ("*_~".includes(character) && depth < DEEPEST && take(emphasis(text, at, hopeless, depth))) continue;
    const run = character === "`" ? runLength(text, at, "`") : 1; // a fence without partner is text as a whole
    plain += text.slice(at, at + run);
    at += run;
  }
  flush();
  return nodes;
}

/** @param {string} text @param {number} at @param {string} character */
function runLength(text, at, character) {
  let end = at;
  while (text[end] === character) end += 1;
  return end - at;
}

/** @param {string} text @param {number} at @param {Set<string>} hopeless */
function code(text, at, hopeless) {
  const length = runLength(text, at, "`");
  const fence = text.slice(at, at + length);
  if (hopeless.has(fence)) return null;
  for (let end = text.indexOf(fence, at + length); end >= 0; end = text.indexOf(fence, end)) {
    const closing = runLength(text, end, "`");
    if (closing === length) {
      const words = text.slice(at + length, end).replaceAll("\n", " ");
      return { node: element("code", {}, words.replace(/^ (.*\S.*) $/, "$1")), end: end + length };
    }
    end += closing;
  }
  hopeless.add(fence);
  return null;
}

/**
 * The label in brackets and the address in parentheses that begin at a bracket.
 * @param {string} text @param {number} at @param {Set<string>} hopeless
 */
function labelled(text, at, hopeless) {
  if (hopeless.has("](")) return null;
  const middle = text.indexOf("](", at);
  if (middle < 0) {
    hopeless.add("](");
    return null;
  }
  const end = closingParenthesis(text, middle + 2);
  const label = text.slice(at + 1, middle);
  if (end < 0 || middle - at > 1000 || label.includes("\n\n")) return null;
  const address = text
    .slice(middle + 2, end)
    .trim()
    .split(/\s+["'(]/, 1)[0];
  return { label, address: address.replace(/^<(.*)>$/, "$1"), end: end + 1 };
}

/** @param {string} text @param {number} from */
function closingParenthesis(text, from) {
  let open = 0;
  for (let at = from; at < Math.min(text.length, from + 4000); at += 1) {
    if (text[at] === "\n") return -1;
    if (text[at] === "(") open += 1;
    if (text[at] === ")" && open-- === 0) return at;
  }
  return -1;
}

/** @param {string} text @param {number} at @param {Set<string>} hopeless */
function picture(text, at, hopeless) {
  const found = labelled(text, at + 1, hopeless);
  return found && { node: element("span", { class: "unloaded" }, `[picture: ${found.label || "without a name"}]`), end: found.end };
}

/** @param {string} text @param {number} at @param {Set<string>} hopeless @param {number} depth */
function namedLink(text, at, hopeless, depth) {
  const found = labelled(text, at, hopeless);
  const address = found && safeAddress(found.address);
  if (!found || !address || depth >= DEEPEST) return null;
  return { node: link(address, inline(found.label.replaceAll("[", "\\["), DEEPEST)), end: found.end };
}

/** @param {string} text @param {number} at */
function bareLink(text, at) {
  const angled = text[at] === "<";
  const from = angled ? at + 1 : at;
  if (!/^https?:\/\//.test(text.slice(from, from + 8)) || (!angled && /\w/.test(text[at - 1] ?? " "))) return null;
  let end = from;
  while (end < text.length && end - from < 2000 && !/[\s<>"`]/.test(text[end])) end += 1;
  if (angled && text[end] !== ">") return null;
  if (!angled) while (/[.,;:!?'")\]}*_~]/.test(text[end - 1])) end -= 1;
  const address = safeAddress(text.slice(from, end));
  return address && { node: link(address, [document.createTextNode(text.slice(from, end))]), end: angled ? end + 1 : end };
}

/** @param {string} text @returns {URL | null} an address that may be followed */
export function safeAddress(text) {
  if (/[\u0000-\u0020\u007f]/.test(text)) return null; // browsers drop these, so that java\tscript: would be read as one word
  try {
    const address = new URL(text);
    return ["http:", "https:", "mailto:"].includes(address.protocol) ? address : null;
  } catch {
    return null;
  }
}

/** @param {URL} address @param {Node[]} label */
function link(address, label) {
  const node = element("a", { href: address.href, target: "_blank", rel: "noopener noreferrer nofollow", title: address.href }, ...label);
  const host = address.host || address.pathname;
  return node.textContent?.includes(host) ? node : element("span", {}, node, element("span", { class: "host" }, ` (${host})`));
}

/** @param {string} text @param {number} at @param {Set<string>} hopeless @param {number} depth */
function emphasis(text, at, hopeless, depth) {
  for (const [mark, tag] of MARKS) {
    if (!text.startsWith(mark, at) || hopeless.has(mark)) continue;
    const from = at + mark.length;
    if (/\s/.test(text[from] ?? " ") || (mark[0] === "_" && /\w/.test(text[at - 1] ?? " "))) continue;
    const end = closingMark(text, from, mark);
    if (end < 0) hopeless.add(mark);
    else return { node: element(tag, {}, ...inline(text.slice(from, end), depth + 1)), end: end + mark.length };
  }
  return null;
}

/** @param {string} text @param {number} from @param {string} mark */
function closingMark(text, from, mark) {
  for (let end = text.indexOf(mark, from + 1); end >= 0; end = text.indexOf(mark, end + 1)) {
    const inWord = mark[0] === "_" && /\w/.test(text[end + mark.length] ?? " ");
    const longer = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark);
    if (!inWord && !longer && !/\s/.test(text[end - 1])) return end;
  }
  return -1;
}
