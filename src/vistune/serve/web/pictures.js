// A file that somebody chose, dropped, pasted or photographed → a picture that the server reads, or the reason why not.
//
// What a file is, its first bytes decide, never its name or the type that it came with. The name is shown and never used for anything.

import { newId } from "./dom.js";

export const LONGEST_SIDE = 2048;
const MOST_BYTES = 4 << 20;
const MOST_BYTES_READ = 64 << 20;

/** What the server reads, by the first bytes in hexadecimal. @type {[RegExp, string][]} */
const KINDS = [
  [/^89504e470d0a1a0a/, "image/png"],
  [/^ffd8ff/, "image/jpeg"],
  [/^474946383[79]61/, "image/gif"],
  [/^52494646.{8}57454250/, "image/webp"],
];

export class PictureError extends Error {}

/**
 * @param {Blob & {name?: string}} file
 * @returns {Promise<{picture: import("./store.js").Picture, note: string}>} the note says what was changed; empty if nothing was
 */
export async function readPicture(file) {
  const name = shortName(file.name ?? "picture");
  if (!file.size) throw new PictureError(`${name} is empty.`);
  if (file.size > MOST_BYTES_READ) throw new PictureError(`${name} is larger than ${MOST_BYTES_READ >> 20} MB.`);
  const kind = await kindOf(file);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // upright: browsers turn it as its EXIF says
  } catch {
    throw new PictureError(`${name} is no picture that this browser can read.`);
  }
  try {
    const { width, height } = bitmap;
    if (width < 2 || height < 2) throw new PictureError(`${name} is too small.`);
    const keep = kind && Math.max(width, height) <= LONGEST_SIDE && file.size <= MOST_BYTES;
    if (keep) return { picture: { id: newId(), name, type: kind, width, height, blob: new Blob([file], { type: kind }) }, note: "" };
    const picture = await redrawn(bitmap, name, kind);
    const scaled = picture.width !== width;
    const size = `${picture.width} × ${picture.height}`;
    return {
      picture,
      note: scaled
        ? `${name} was ${width} × ${height}; scaled down to ${size}.`
        : `${name} was saved again as ${picture.type.slice(6).toUpperCase()}.`,
    };
  } finally {
    bitmap.close();
  }
}

/** @param {ImageBitmap} bitmap @param {string} name @param {string} kind @returns {Promise<import("./store.js").Picture>} */
async function redrawn(bitmap, name, kind) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(2, Math.round(bitmap.width * scale));
  canvas.height = Math.max(2, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  if (!context) throw new PictureError(`${name} could not be scaled down here.`);
  context.imageSmoothingQuality = "high";
  let blob = null;
  if (kind !== "image/jpeg") {
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    blob = await encoded(canvas, "image/png");
  }
  if (!blob || blob.size > MOST_BYTES) {
    context.fillStyle = "#fff"; // JPEG has no transparency, and what a canvas puts there instead is black
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    blob = await encoded(canvas, "image/jpeg");
  }
  if (!blob) throw new PictureError(`${name} could not be scaled down here.`);
  return { id: newId(), name, type: blob.type, width: canvas.width, height: canvas.height, blob };
}

/** @param {HTMLCanvasElement} canvas @param {string} type @returns {Promise<Blob | null>} */
export function encoded(canvas, type) {
  return new Promise((resolve) => canvas.toBlob(resolve, type, 0.9));
}

/** @param {Blob} file @returns {Promise<string>} the type, if it is one that the server reads */
export async function kindOf(file) {
  const head = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const hex = [...head].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return KINDS.find(([pattern]) => pattern.test(hex))?.[1] ?? "";
}

/** What is shown of a file's name: one line, not too long, nothing that turns the direction of text. @param {string} name */
export function shortName(name) {
  const line = name.replace(/[\u0000-\u001f\u007f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "").trim() || "picture";
  return line.length > 60 ? `${line.slice(0, 40)}…${line.slice(-16)}` : line;
}

/** @param {Blob} blob @returns {Promise<string>} as a data: address */
export function dataAddress(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** @param {string} address @returns {Blob | null} the file in a data: address in base64; null for anything else */
export function blobOfDataAddress(address) {
  const comma = address.indexOf(",");
  if (!/^data:image\/(png|jpeg|gif|webp);base64$/.test(address.slice(0, comma))) return null;
  try {
    const bytes = Uint8Array.from(atob(address.slice(comma + 1)), (character) => character.charCodeAt(0));
    return new Blob([bytes], { type: address.slice(5, comma - 7) });
  } catch {
    return null;
  }
}
