// Asks the server by its public API, and nothing else: what this file does, any OpenAI client can.
//
//     listModels ─► GET /v1/models          streamChat ─► POST /v1/chat/completions, "stream": true
//
// Every failure becomes an `ApiFailure`; `errors.js` says it in plain words.

import { eventsOf } from "./sse.js";

const KEY_PLACE = "vistune-api-key";
const LONGEST_REPLY = 1 << 20;
const STALLED_AFTER_MS = 120000;

export class ApiFailure extends Error {
  /**
   * @param {"refused" | "network" | "broken" | "stalled"} kind refused: the server answered with an error; broken: a reply that began did
   *   not end; stalled: nothing came any more
   * @param {{status?: number, code?: string, message?: string, param?: string, retryAfter?: number, requestId?: string}} [told]
   */
  constructor(kind, told = {}) {
    super(told.message ?? kind);
    this.kind = kind;
    this.status = told.status ?? 0;
    this.code = told.code ?? "";
    this.param = told.param ?? "";
    this.retryAfter = told.retryAfter;
    this.requestId = told.requestId ?? "";
  }
}

/** The key lives as long as the tab, and in no place that outlives it. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY_PLACE) ?? "",
  /** @param {string} key */
  set: (key) => sessionStorage.setItem(KEY_PLACE, key.replace(/[^\x21-\x7e]/g, "")), // no header could carry more
};

/** @typedef {{id: string, parent?: string}} ServedModel an adapter names the model that it is for as its parent */

/** @returns {Promise<ServedModel[]>} */
export async function listModels() {
  const response = await request("/v1/models", { signal: AbortSignal.timeout(15000) });
  const { data } = await response.json();
  return Array.isArray(data) ? data.filter((model) => typeof model?.id === "string") : [];
}

/** @typedef {{text?: string, finish?: string, usage?: {prompt_tokens: number, completion_tokens: number}}} Piece */

/**
 * One reply, as it is written.
 * @param {object} body the request, as OpenAI has it
 * @param {AbortSignal} signal ends the request
 * @returns {AsyncGenerator<Piece>}
 */
export async function* streamChat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.body) throw new ApiFailure("broken");
  let length = 0;
  for await (const data of unbroken(eventsOf(response.body), signal)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new ApiFailure("refused", { status: 500, ...strings(chunk.error) });
    const choice = chunk.choices?.[0];
    const text = typeof choice?.delta?.content === "string" ? choice.delta.content : "";
    length += text.length;
    if (length > LONGEST_REPLY) throw new ApiFailure("broken", { message: "The reply is longer than this page takes." });
    yield { text, finish: choice?.finish_reason ?? undefined, usage: chunk.usage ?? undefined };
  }
  throw new ApiFailure("broken");
}

/**
 * The events, with whatever goes wrong on the way told apart: a network that is gone, and a server that says nothing any more.
 * @param {AsyncGenerator<string>} events @param {AbortSignal} signal
 */
async function* unbroken(events, signal) {
  try {
    for (;;) {
      let timer = 0;
      const silence = new Promise((_, reject) => (timer = setTimeout(() => reject(new ApiFailure("stalled")), STALLED_AFTER_MS)));
      const { value, done } = await Promise.race([events.next(), silence]).finally(() => clearTimeout(timer));
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiFailure) throw error;
    throw new ApiFailure("broken");
  } finally {
    events.return(undefined).catch(() => {});
  }
}

/** @param {string} path @param {RequestInit} options @returns {Promise<Response>} a good one; all others are thrown */
async function request(path, options) {
  const key = apiKey.get();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    // No cookies and no redirects: the key goes to this server or to nobody.
    response = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error", cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted && /** @type {Error} */ (error).name === "AbortError") throw error;
    throw new ApiFailure("network");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const wait = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  throw new ApiFailure("refused", {
    ...strings(body?.error ?? {}),
    status: response.status,
    retryAfter: wait >= 0 ? Math.min(wait, 3600) : undefined,
    requestId: response.headers.get("x-request-id") ?? "",
  });
}

/** @param {any} error @returns {{message?: string, code?: string, param?: string}} */
function strings(error) {
  const told = Object.entries(error).filter(([name, value]) => ["message", "code", "param"].includes(name) && typeof value === "string");
  return Object.fromEntries(told);
}

/** @param {string} data @returns {any} */
function parsed(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw new ApiFailure("broken");
  }
}
