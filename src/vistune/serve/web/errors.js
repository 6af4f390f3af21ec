// What went wrong, in plain words, and what can be done about it.

import { ApiFailure } from "./api.js";

/**
 * @typedef {object} Problem
 * @property {string} title
 * @property {string} detail
 * @property {"wait" | "retry" | "key" | "none"} action wait: ask again after `seconds`; key: ask for a key
 * @property {number} [seconds]
 */

/** @param {unknown} error @returns {Problem} */
export function explain(error) {
  if (!(error instanceof ApiFailure)) {
    return { title: "Something in this page went wrong.", detail: String(error).slice(0, 300), action: "retry" };
  }
  if (error.kind !== "refused") return OF_THE_LINE[error.kind];
  const id = error.requestId ? ` (request ${error.requestId})` : "";
  switch (error.status) {
    case 401:
      return { title: "This server wants a key.", detail: error.message, action: "key" };
    case 429:
      return {
        title: "The server is busy.",
        detail: "It has as many requests as it takes.",
        action: "wait",
        seconds: error.retryAfter ?? 5,
      };
    case 413:
      return { title: "This is too much at once.", detail: `Send fewer or smaller pictures. ${error.message}`, action: "none" };
    case 503:
      return { title: "The server cannot answer now.", detail: error.message, action: "wait", seconds: error.retryAfter ?? 5 };
    case 504:
      return { title: "The answer took too long.", detail: error.message, action: "retry" };
    case 404:
      return { title: "This model is not served here any more.", detail: "Choose another one at the top.", action: "retry" };
  }
  if (error.status >= 500) return { title: "The server failed.", detail: `${error.message}${id}`, action: "retry" };
  if (error.code === "context_length_exceeded") {
    return { title: "The conversation is too long for this model.", detail: error.message, action: "none" };
  }
  const place = PLACES.find(([pattern]) => pattern.test(error.param))?.[1] ?? "";
  return { title: "The server did not take this request.", detail: `${place}${error.message}`, action: "none" };
}

/** @type {Record<string, Problem>} */
const OF_THE_LINE = {
  network: { title: "The server cannot be reached.", detail: "Is it running, and are you connected?", action: "retry" },
  broken: { title: "The connection was lost.", detail: "What had arrived is kept.", action: "retry" },
  stalled: { title: "The server has gone quiet.", detail: "Nothing came for two minutes. What had arrived is kept.", action: "retry" },
};

/** Which part of the page a field of the request is. @type {[RegExp, string][]} */
const PLACES = [
  [/image_url/, "A picture: "],
  [/^temperature$/, "Temperature: "],
  [/^top_p$/, "Top-p: "],
  [/^seed$/, "Seed: "],
  [/^max_/, "Longest answer: "],
  [/^messages\.0/, "The first message: "],
];
