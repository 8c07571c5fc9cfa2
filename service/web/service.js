// The service's public API, as this page uses it.

const KEY = "limelight-api-key";

/** The API key: kept for this tab, and for no longer. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  keep: (key) => sessionStorage.setItem(KEY, key),
  forget: () => sessionStorage.removeItem(KEY),
};

/** The service, or what stands before it, did not answer with a prediction. `code` is null where it did not answer. */
export class Refusal extends Error {
  constructor({ title, detail, code = null, status = 0, retryAfter = null, requestId = null }) {
    super(`${title}: ${detail}`);
    Object.assign(this, { title, detail, code, status, retryAfter, requestId });
  }
}

/** Every class is asked for, as its names come only with the ranking. */
const QUERY = "?top_k=10000&frames=jpeg";

/**
 * Ask what is done in a clip. `onProgress(sent, size)` hears of the upload, in bytes; `signal` gives up.
 * Resolves to {answer, text, stages, requestId}: the answer, its text, seconds by stage, and the request's id.
 * Rejects with a Refusal, or with an AbortError.
 */
export function predict(clip, { onProgress, signal }) {
  const request = new XMLHttpRequest();
  const answered = new Promise((resolve, reject) => {
    request.upload.onprogress = ({ loaded, total }) => onProgress(loaded, total);
    request.upload.onload = () => onProgress(clip.size, clip.size);
    request.onload = () => {
      try {
        resolve(understand(request));
      } catch (error) {
        reject(error);
      }
    };
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(new DOMException("given up", "AbortError"));
  });
  signal.addEventListener("abort", () => request.abort());
  request.open("POST", `/predict${QUERY}`);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  if (apiKey.get()) {
    request.setRequestHeader("Authorization", `Bearer ${apiKey.get()}`);
  }
  request.send(clip);
  return answered;
}

/** Whether predictions may be sent now: true, false, or null where nobody answers. */
export async function isReady() {
  try {
    return (await fetch("/health/ready")).ok;
  } catch {
    return null;
  }
}

/** The manifest of the network that is served; null where it is not to be had (yet, or without a key). */
export async function manifest() {
  const headers = apiKey.get() ? { Authorization: `Bearer ${apiKey.get()}` } : {};
  try {
    const answer = await fetch("/model", { headers });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** The rendered clip, as a file. */
export async function sampleClip(signal) {
  const answer = await fetch("/web/sample.mp4", { signal }).catch((error) => {
    throw error.name === "AbortError" ? error : unreachable();
  });
  if (!answer.ok) {
    throw new Refusal({ title: "The sample could not be had", detail: `the service answered ${answer.status}` });
  }
  return new File([await answer.blob()], "sample.mp4", { type: "video/mp4" });
}

/** The same question for a terminal. A key is named, never shown. */
export function asCurl(name) {
  const quoted = name.replaceAll("'", String.raw`'\''`).replaceAll('"', String.raw`\"`);
  const key = apiKey.get() ? ' -H "Authorization: Bearer $LIMELIGHT_API_KEY"' : "";
  return `curl${key} -F 'file=@"${quoted}"' '${location.origin}/predict?top_k=5'`;
}

function understand(request) {
  const body = parsed(request.responseText);
  const requestId = request.getResponseHeader("X-Request-ID");
  if (request.status === 200 && body?.probabilities) {
    const stages = stagesOf(request.getResponseHeader("Server-Timing") ?? "");
    return { answer: body, text: request.responseText, stages, requestId };
  }
  const retryAfter = Number.parseInt(request.getResponseHeader("Retry-After"), 10);
  throw new Refusal({
    title: body?.title ?? "The answer cannot be read",
    detail: body?.detail ?? `something between here and the service answered with status ${request.status}`,
    code: body?.code ?? null,
    status: request.status,
    retryAfter: Number.isNaN(retryAfter) ? null : retryAfter,
    requestId,
  });
}

function parsed(text) {
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

function unreachable() {
  return new Refusal({ title: "The service cannot be reached", detail: "the connection failed, or broke on the way" });
}
