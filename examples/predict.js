// Classify a clip. With Node 20 or newer: node examples/predict.js clip.mp4
// Set LIMELIGHT_URL to the service's address (default: http://127.0.0.1:8000) and LIMELIGHT_API_KEY to its API key, if
// it requires one. In a page on the service's own origin, call predict(input.files[0]) for an <input type="file">.

const PATIENCE_MS = 600_000; // for a busy service

/**
 * Classify a clip (a Blob or File, which is not read into memory) and return the answer. While the service is busy (429
 * or 503), ask again when its Retry-After says. Throws an Error with the problem if the clip is refused, and with the
 * status and the beginning of the text if another server answers, such as a proxy.
 */
async function predict(clip, { url = "", key, topK = 5 } = {}) {
  const giveUp = Date.now() + PATIENCE_MS;
  for (;;) {
    const answer = await fetch(`${url}/predict?top_k=${topK}&attention=false`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream", ...(key && { "X-API-Key": key }) },
      body: clip,
    });
    const text = await answer.text();
    const wait = [429, 503].includes(answer.status) ? milliseconds(answer.headers.get("Retry-After")) : NaN;
    if (Date.now() + wait < giveUp) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      continue;
    }
    const body = parse(text);
    if (answer.ok && body?.predictions) return body;
    if (body?.code && body.detail) throw new Error(`${body.title}: ${body.detail} (${body.status} ${body.code})`);
    throw new Error(`${answer.status} ${answer.statusText}: ${text.slice(0, 200).replace(/\s+/g, " ").trim()}`);
  }
}

/** How long Retry-After asks to wait: a number of seconds, or until a date. NaN if the header is missing. */
function milliseconds(retryAfter) {
  return /^\d+$/.test(retryAfter) ? 1000 * retryAfter : Math.max(0, Date.parse(retryAfter) - Date.now());
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Escape characters that control a terminal, which answers of servers and labels may hold. */
function visible(text) {
  return text.replace(/\p{C}/gu, (letter) => `\\u{${letter.codePointAt(0).toString(16)}}`);
}

async function main(file) {
  const clip = await require("node:fs").openAsBlob(file);
  const url = process.env.LIMELIGHT_URL || "http://127.0.0.1:8000";
  const key = process.env.LIMELIGHT_API_KEY?.trim();
  for (const { label, probability } of (await predict(clip, { url, key })).predictions) {
    console.log(visible(`${probability.toFixed(4)}  ${label}`));
  }
}

if (typeof process === "object") {
  main(process.argv[2]).catch(({ message, cause }) => {
    console.error(visible(cause ? `${message} (${cause.message || cause.code})` : message));
    process.exitCode = 1;
  });
}
