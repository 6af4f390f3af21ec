// How replies are drawn: the values, the dialog that changes them, and what becomes of them in a request.

import { byId, element, showDialog } from "./dom.js";

/** @typedef {{model: string, temperature: number, topP: number, maxTokens: number, seed: number | null, system: string}} Values */

/** As in LLaVA's own demo: near the likeliest answer, without being stuck on it. @type {Values} */
export const DEFAULTS = { model: "", temperature: 0.2, topP: 0.7, maxTokens: 512, seed: null, system: "" };

const PLACE = "vistune-settings";

/** Values from anywhere, such as a file: what is not as it should be becomes the default. @param {any} found @returns {Values} */
export function checkedValues(found) {
  const number = (/** @type {any} */ value, /** @type {number} */ least, /** @type {number} */ most, /** @type {any} */ otherwise) =>
    typeof value === "number" && value >= least && value <= most ? value : otherwise;
  return {
    model: typeof found?.model === "string" ? found.model.slice(0, 256) : "",
    temperature: number(found?.temperature, 0, 2, DEFAULTS.temperature),
    topP: number(found?.topP, 0, 1, DEFAULTS.topP),
    maxTokens: Math.round(number(found?.maxTokens, 1, 1e6, DEFAULTS.maxTokens)),
    seed: Number.isSafeInteger(found?.seed) ? found.seed : null,
    system: typeof found?.system === "string" ? found.system.slice(0, 20000) : "",
  };
}

/** @returns {Values} the ones used last */
export function rememberedValues() {
  try {
    return checkedValues(JSON.parse(localStorage.getItem(PLACE) ?? "{}"));
  } catch {
    return { ...DEFAULTS };
  }
}

/** @param {Values} values */
export function rememberValues(values) {
  try {
    localStorage.setItem(PLACE, JSON.stringify(values));
  } catch {
    // a browser that keeps nothing starts with the defaults again
  }
}

/** @param {Values} values @returns {Record<string, any>} the fields of a request */
export function requestFields(values) {
  const fields = { temperature: values.temperature, top_p: values.topP, max_tokens: values.maxTokens };
  return { ...fields, ...(values.model ? { model: values.model } : {}), ...(values.seed === null ? {} : { seed: values.seed }) };
}

/** @param {import("./api.js").ServedModel[]} models @param {string} chosen */
export function fillModelChoice(models, chosen) {
  const choice = byId("model");
  const option = (/** @type {import("./api.js").ServedModel} */ { id }) => element("option", { value: id }, id);
  const bases = models.filter(({ parent }) => !parent);
  const groups = [...new Set(models.flatMap(({ parent }) => (parent ? [parent] : [])))];
  const adapters = groups.map((parent) =>
    element("optgroup", { label: `Adapters of ${parent}` }, ...models.filter((model) => model.parent === parent).map(option)),
  );
  choice.replaceChildren(...bases.map(option), ...adapters);
  if (!models.length) choice.append(element("option", { value: "" }, "no model"));
  choice.value = models.some(({ id }) => id === chosen) ? chosen : (models[0]?.id ?? "");
  return choice.value;
}

const NUMBERS = [
  ["temperature", "temperature"],
  ["top-p", "topP"],
];

/** @param {() => Values} current @param {(values: Values) => void} change */
export function wireSettings(current, change) {
  const fields = { system: byId("system"), maxTokens: byId("max-tokens"), seed: byId("seed") };
  const show = () => {
    /** @type {Record<string, any>} */
    const values = current();
    for (const [id, name] of NUMBERS) {
      byId(id).value = values[name];
      byId(`${id}-shown`).textContent = values[name].toFixed(2);
    }
    fields.system.value = values.system;
    fields.maxTokens.value = values.maxTokens;
    fields.seed.value = values.seed ?? "";
  };
  const read = () => {
    const seed = fields.seed.value === "" ? null : Number(fields.seed.value);
    const texts = { system: fields.system.value, maxTokens: Number(fields.maxTokens.value), seed };
    const numbers = Object.fromEntries(NUMBERS.map(([id, name]) => [name, Number(byId(id).value)]));
    for (const [id] of NUMBERS) byId(`${id}-shown`).textContent = Number(byId(id).value).toFixed(2);
    change(checkedValues({ ...current(), ...texts, ...numbers }));
  };
  byId("settings").addEventListener("input", read);
  byId("settings-reset").addEventListener("click", () => (change({ ...DEFAULTS, model: current().model }), show()));
  byId("open-settings").addEventListener("click", () => (show(), showDialog(byId("settings"))));
}
