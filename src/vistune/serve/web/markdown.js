// Markdown → nodes, block by block: what a chat model writes, not the whole of CommonMark.
//
// While a reply streams in, `renderMarkdown` is called again and again with a longer text: blocks whose source has not changed keep their
// nodes, so that what a reader has selected stays selected and a long reply costs no more at its end than at its beginning.

import { element } from "./dom.js";
import { inline } from "./inline.js";

const DEEPEST = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]{0,30})/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const TABLE_LINE = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** @typedef {{kind: string, lines: string[]}} Block */
/** @type {WeakMap<Element, string[]>} */
const drawn = new WeakMap();

/** Shows a text in a place, changing only the blocks that are new. @param {Element} place @param {string} text */
export function renderMarkdown(place, text) {
  const blocks = blocksOf(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"));
  const sources = blocks.map((block) => `${block.kind}\n${block.lines.join("\n")}`);
  const before = place.childElementCount === drawn.get(place)?.length ? (drawn.get(place) ?? []) : [];
  let same = 0;
  while (same < before.length && before[same] === sources[same]) same += 1;
  while (place.childElementCount > same) place.lastElementChild?.remove();
  place.append(...blocks.slice(same).map((block) => nodeOf(block, 0)));
  drawn.set(place, sources);
}

/** @param {string[]} lines @returns {Block[]} */
function blocksOf(lines) {
  /** @type {Block[]} */
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const kind = kindOf(lines, at);
    const end = ENDS[kind](lines, at);
    blocks.push({ kind, lines: lines.slice(at, end) });
    at = end;
  }
  return blocks;
}

/** @param {string[]} lines @param {number} at @returns {keyof typeof ENDS} */
function kindOf(lines, at) {
  const line = lines[at];
  if (FENCE.test(line)) return "code";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (/^ {0,3}>/.test(line)) return "quote";
  if (ITEM.test(line)) return "list";
  if (line.includes("|") && line.length < 4000 && (lines[at + 1] ?? "").includes("-") && TABLE_LINE.test(lines[at + 1])) return "table";
  return "paragraph";
}

/** Where a block of each kind ends: the number of the first line that is not in it. */
const ENDS = {
  heading: (/** @type {string[]} */ _lines, /** @type {number} */ at) => at + 1,
  rule: (/** @type {string[]} */ _lines, /** @type {number} */ at) => at + 1,
  code: (/** @type {string[]} */ lines, /** @type {number} */ at) => {
    const fence = FENCE.exec(lines[at])?.[1] ?? "```";
    let end = at + 1;
    while (end < lines.length && !isClosing(lines[end], fence)) end += 1;
    return Math.min(end + 1, lines.length); // without its end, as while it streams in, everything is code
  },
  quote: (/** @type {string[]} */ lines, /** @type {number} */ at) => {
    let end = at + 1;
    while (end < lines.length && /^ {0,3}>/.test(lines[end])) end += 1;
    return end;
  },
  list: (/** @type {string[]} */ lines, /** @type {number} */ at) => {
    let end = at + 1;
    while (end < lines.length) {
      const blank = !lines[end].trim();
      const follows = lines[blank ? end + 1 : end] ?? "";
      const goesOn = ITEM.test(follows) || /^ {2,}\S/.test(follows);
      if (RULE.test(follows) || !(goesOn || (!blank && kindOf(lines, end) === "paragraph"))) break;
      end += 1;
    }
    return end;
  },
  table: (/** @type {string[]} */ lines, /** @type {number} */ at) => {
    let end = at + 2;
    while (end < lines.length && lines[end].includes("|")) end += 1;
    return end;
  },
  paragraph: (/** @type {string[]} */ lines, /** @type {number} */ at) => {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && kindOf(lines, end) === "paragraph") end += 1;
    return end;
  },
};

/** @param {string} line @param {string} fence */
function isClosing(line, fence) {
  const mark = line.trim();
  return mark.length >= fence.length && mark === fence[0].repeat(mark.length);
}

/** @param {Block} block @param {number} depth @returns {Element} */
function nodeOf({ kind, lines }, depth) {
  switch (kind) {
    case "code":
      return codeBlock(lines);
    case "heading": {
      const [, marks, words] = HEADING.exec(lines[0]) ?? ["", "#", lines[0]];
      // The page's own headings are above these: a reply's first level is the page's third.
      return element(`h${Math.min(marks.length + 2, 6)}`, {}, ...inline(words.replace(/[ ]#+[ ]*$/, "")));
    }
    case "rule":
      return element("hr");
    case "quote":
      return element(
        "blockquote",
        {},
        ...inner(
          lines.map((line) => line.replace(/^ {0,3}> ?/, "")),
          depth,
        ),
      );
    case "list":
      return list(lines, depth);
    case "table":
      return table(lines);
  }
  return element("p", {}, ...inline(lines.map((line) => line.trim()).join("\n")));
}

/** @param {string[]} lines @param {number} depth @returns {Node[]} */
function inner(lines, depth) {
  if (depth >= DEEPEST) return inline(lines.join("\n"));
  const blocks = blocksOf(lines);
  // One paragraph alone needs no paragraph around it.
  if (blocks.length === 1 && blocks[0].kind === "paragraph") return inline(blocks[0].lines.map((line) => line.trim()).join("\n"));
  return blocks.map((block) => (block.kind === "paragraph" && block === blocks[0] ? leading(block) : nodeOf(block, depth + 1)));
}

/** @param {Block} block */
const leading = (block) => element("div", {}, ...inline(block.lines.map((line) => line.trim()).join("\n")));

/** @param {string[]} lines */
function codeBlock(lines) {
  const [, fence, language] = FENCE.exec(lines[0]) ?? ["", "```", ""];
  const closed = lines.length > 1 && isClosing(lines[lines.length - 1], fence);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const copy = element(
    "button",
    { type: "button", class: "text-button", "aria-label": "Copy this code", dataset: { copies: "code" } },
    "Copy",
  );
  return element(
    "div",
    { class: "code" },
    element("div", { class: "code-bar" }, element("span", {}, language || "text"), copy),
    element("pre", { tabindex: "0", "aria-label": `Code, ${language || "text"}`, role: "group" }, element("code", {}, text)),
  );
}

/** @param {string[]} lines @param {number} depth */
function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const indent = first?.[1].length ?? 0;
  const ordered = /\d/.test(first?.[2] ?? "");
  /** @type {string[][]} */
  const items = [];
  let hang = indent + 2;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && (item[1].length < hang || !items.length) && item[1].length <= indent + 1) {
      hang = item[1].length + item[2].length + 1;
      items.push([line.slice(item[0].length)]);
    } else {
      items[items.length - 1].push(line.slice(Math.min(hang, line.length - line.trimStart().length)));
    }
  }
  const start = ordered ? Number.parseInt(first?.[2] ?? "1", 10) : 1;
  const entries = items.map((item) => element("li", {}, ...inner(item, depth + 1)));
  return element(ordered ? "ol" : "ul", { start: start === 1 ? null : start }, ...entries);
}

/** @param {string[]} lines */
function table(lines) {
  const [head, , ...rows] = lines.map(cells);
  const sides = cells(lines[1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "centre" : "right") : null));
  const row = (/** @type {string[]} */ texts, /** @type {string} */ tag) =>
    element("tr", {}, ...head.map((_, column) => element(tag, { class: sides[column] }, ...inline(texts[column] ?? ""))));
  const body = element("tbody", {}, ...rows.slice(0, 1000).map((texts) => row(texts, "td")));
  const whole = element("table", {}, element("thead", {}, row(head, "th")), body);
  return element("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, whole);
}

/** @param {string} line @returns {string[]} */
function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inside
    .split(/(?<!\\)\|/)
    .slice(0, 30)
    .map((cell) => cell.trim().replaceAll("\\|", "|"));
}
