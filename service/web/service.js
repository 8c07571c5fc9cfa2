// The part of the service's public API that this page uses. Addresses are relative, because it may have a prefix.

const KEY = "limelight-api-key";

/** The API key, kept only as long as this tab is open. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  keep: (key) => sessionStorage.setItem(KEY, key),
  forget: () => sessionStorage.removeItem(KEY),
};

/** An answer without a prediction, or no answer. `code` is null unless the service or its gateway gave one. */
export class Problem extends Error {
  constructor({ title, detail, code = null, status = 0, retryAfter = null, requestId = null }) {
    super(`${title}: ${detail}`);
    Object.assign(this, { title, detail, code, status, retryAfter, requestId });
  }
}

/** Seconds until one may try again, whatever Retry-After says, and characters shown of a foreign answer. */
const LONGEST_WAIT_S = 300;
const MOST_TEXT = 200;

/** Asks for every class, because only ranked classes have labels. */
const QUERY = "?top_k=10000&frames=jpeg";

/** A connection that breaks sooner than this after it was used was a stale one; to send again is right then. */
const STALE_MS = 1000;

/** Time in which the service answers whether it is ready. */
const READY_MS = 5000;

/**
 * Send a clip to be recognised. `onProgress(sent, size)` is called during the upload, in bytes; `signal` cancels.
 * Resolves to {answer, text, stages, requestId}: the answer, its JSON, milliseconds by stage, and the request's id.
 * Rejects with a Problem, or with an AbortError.
 */
export async function predict(clip, { onProgress, signal }) {
  await assertReadable(clip);
  signal.throwIfAborted();
  const request = new XMLHttpRequest();
  const answered = new Promise((resolve, reject) => {
    const started = performance.now();
    let sent = 0;
    let complete = null; // when all had been sent
    request.upload.onprogress = ({ loaded, total }) => {
      const now = performance.now();
      // Firefox sends an upload up to ten times if it is answered with 408, and tells nobody.
      if ((loaded < sent && now - started > STALE_MS) || (complete && now - complete > STALE_MS)) {
        reject(interrupted());
        request.abort();
        return;
      }
      sent = loaded;
      complete ??= loaded === total ? now : null;
      onProgress(loaded, total);
    };
    request.upload.onload = () => onProgress(clip.size, clip.size);
    request.onload = () => {
      try {
        resolve(readAnswer(request));
      } catch (error) {
        reject(error);
      }
    };
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
  });
  signal.addEventListener("abort", () => request.abort());
  request.open("POST", `predict${QUERY}`);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  if (apiKey.get()) {
    request.setRequestHeader("Authorization", `Bearer ${apiKey.get()}`);
  }
  request.send(clip);
  return answered;
}

/** "ready", the code of the problem why the service is not, or null if it does not answer. */
export async function readiness() {
  try {
    const answer = await fetch("health/ready", { cache: "no-store", signal: AbortSignal.timeout(READY_MS) });
    return answer.ok ? "ready" : (await answer.json()).code;
  } catch {
    return null;
  }
}

/** The manifest of the bundle; null while it is loading or if an API key is missing. */
export async function manifest() {
  const headers = apiKey.get() ? { Authorization: `Bearer ${apiKey.get()}` } : {};
  try {
    const answer = await fetch("model", { headers });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** Fetch the sample clip as a File. */
export async function sampleClip(signal) {
  const answer = await fetch("web/sample.mp4", { signal }).catch((error) => {
    throw error.name === "AbortError" ? error : unreachable();
  });
  if (!answer.ok) {
    throw new Problem({ title: "The sample could not be loaded", detail: `the service answered ${answer.status}` });
  }
  return new File([await answer.blob()], "sample.mp4", { type: "video/mp4" });
}

/** The same request as a curl command. It names the variable of the API key and never contains the key. */
export function asCurl(name) {
  const quoted = name.replaceAll("'", String.raw`'\''`).replaceAll('"', String.raw`\"`);
  const key = apiKey.get() ? ' -H "Authorization: Bearer $LIMELIGHT_API_KEY"' : "";
  return `curl${key} -F 'file=@"${quoted}"' '${new URL("predict?top_k=5", document.baseURI)}'`;
}

/** Reject with a Problem if a file cannot be read. Firefox and WebKit would wait for ever for the answer to such a one. */
async function assertReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem({
      title: "The file cannot be read",
      detail: "it is a folder, or it was moved, changed or deleted after you chose it",
      code: "unreadable_file",
    });
  }
}

function readAnswer(request) {
  const body = parseJson(request.responseText);
  const requestId = request.getResponseHeader("X-Request-ID");
  if (request.status === 200 && body?.probabilities) {
    const stages = stagesOf(request.getResponseHeader("Server-Timing") ?? "");
    return { answer: body, text: request.responseText, stages, requestId };
  }
  const isProblem = (request.getResponseHeader("Content-Type") ?? "").startsWith("application/problem+json");
  const { title, detail, code } = isProblem && body?.code ? body : foreign(request);
  const retryAfter = secondsOf(request.getResponseHeader("Retry-After") ?? "");
  throw new Problem({ title, detail, code, status: request.status, retryAfter, requestId });
}

/** What to say about the answer of a proxy or another server: its status and the beginning of its text. */
function foreign(request) {
  const status = `${request.status} ${request.statusText}`.trim();
  const text = request.responseText.replace(/<[^>]*>/g, " ").replace(/\s+/g, " ").trim().slice(0, MOST_TEXT);
  return {
    title: "The answer cannot be read",
    detail: `a server between this page and the service answered ${status}${text && `: ${text}`}`,
  };
}

/** The seconds that Retry-After asks for, as a number or as a date (RFC 9110, section 10.2.3); null if it cannot be
 *  read. */
function secondsOf(retryAfter) {
  const seconds = /^\d+$/.test(retryAfter) ? Number(retryAfter) : (Date.parse(retryAfter) - Date.now()) / 1000;
  return Number.isNaN(seconds) ? null : Math.min(Math.max(seconds, 0), LONGEST_WAIT_S);
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** `decode;dur=25.1, queue;dur=0.2` as {decode: 25.1, queue: 0.2}: milliseconds by stage. */
function stagesOf(header) {
  return Object.fromEntries([...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
}

function interrupted() {
  const detail = "the connection is too slow or was lost, and the browser began to send the clip again";
  return new Problem({ title: "The upload was interrupted", detail });
}

function unreachable() {
  return new Problem({ title: "The service cannot be reached", detail: "the connection failed or was interrupted" });
}
