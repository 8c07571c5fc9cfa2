// Classify a clip. With Node 20 or newer: node examples/predict.js clip.mp4
// Set LIMELIGHT_URL to the service's address (default: http://127.0.0.1:8000) and LIMELIGHT_API_KEY to its API key, if
// it requires one. In a page on the service's own origin, call predict(input.files[0]) for an <input type="file">.

/**
 * Classify a clip (a Blob or File) and return the answer. Throws an Error with the problem if the clip is refused, and
 * with the status and the beginning of the text if another server answers, such as a proxy.
 */
async function predict(clip, { url = "", key, topK = 5 } = {}) {
  const answer = await fetch(`${url}/predict?top_k=${topK}&attention=false`, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream", ...(key && { "X-API-Key": key }) },
    body: clip,
  });
  const text = await answer.text();
  const isProblem = answer.headers.get("Content-Type")?.startsWith("application/problem+json");
  const body = parse(text);
  if (answer.ok && body?.predictions) return body;
  if (isProblem && body?.code) throw new Error(`${body.title}: ${body.detail} (${body.status} ${body.code})`);
  throw new Error(`${answer.status} ${answer.statusText}: ${text.slice(0, 200).replace(/\s+/g, " ").trim()}`);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

async function main(file) {
  const clip = new Blob([require("node:fs").readFileSync(file)]);
  const url = process.env.LIMELIGHT_URL || "http://127.0.0.1:8000";
  const key = process.env.LIMELIGHT_API_KEY?.trim();
  for (const { label, probability } of (await predict(clip, { url, key })).predictions) {
    console.log(`${probability.toFixed(4)}  ${label}`);
  }
}

if (typeof process === "object") {
  main(process.argv[2]).catch((error) => {
    console.error(error.cause?.message ?? error.message);
    process.exitCode = 1;
  });
}
