// A ZIP file of a few files, stored as they are: pictures do not get smaller, and nothing has to be loaded for it.

const TABLE = Uint32Array.from({ length: 256 }, (_, number) => {
  let crc = number;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Numbers in a row, little end first, each of so many bytes. @param {...[number, number]} fields */
function packed(...fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [, size]) => sum + size, 0));
  let at = 0;
  for (const [value, size] of fields) {
    for (let byte = 0; byte < size; byte += 1) bytes[at++] = Math.floor(value / 256 ** byte) & 0xff;
  }
  return bytes;
}

/** @param {Record<string, string | Blob>} files by their names @returns {Promise<Blob>} */
export async function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [name, content] of Object.entries(files)) {
    const data = typeof content === "string" ? new TextEncoder().encode(content) : new Uint8Array(await content.arrayBuffer());
    const nameBytes = new TextEncoder().encode(name);
    // 20: the oldest version that reads it; 0x800: names are UTF-8; 0x21: the first day that the format knows
    const facts = packed(
      [20, 2],
      [0x800, 2],
      [0, 2],
      [0, 2],
      [0x21, 2],
      [crc32(data), 4],
      [data.length, 4],
      [data.length, 4],
      [nameBytes.length, 2],
    );
    const head = [packed([0x04034b50, 4]), facts, packed([0, 2]), nameBytes];
    directory.push(packed([0x02014b50, 4], [20, 2]), facts, packed([0, 2], [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), nameBytes);
    parts.push(...head, data);
    offset += head.reduce((sum, piece) => sum + piece.length, 0) + data.length;
  }
  const size = directory.reduce((sum, piece) => sum + piece.length, 0);
  const count = Object.keys(files).length;
  const end = packed([0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [size, 4], [offset, 4], [0, 2]);
  return new Blob(/** @type {BlobPart[]} */ ([...parts, ...directory, end]), { type: "application/zip" });
}
