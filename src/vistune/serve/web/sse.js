// Server-sent events, from a response's bytes to the data of each event.

const LONGEST_EVENT = 1 << 24;

/**
 * @param {ReadableStream<Uint8Array>} bytes
 * @returns {AsyncGenerator<string>} the data of each event, as soon as it is whole
 */
export async function* eventsOf(bytes) {
  const reader = bytes.getReader();
  const decoder = new TextDecoder(); // keeps the first half of a character that two chunks share
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop() ?? "";
      if (rest.length > LONGEST_EVENT) throw new Error("an event without end");
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {}); // whoever stops listening ends the request, and with it the model's work
  }
}
