// The page: takes a clip, sends it to the service and shows the answer.

import { Result } from "./result.js";
import { advice, isTemporary } from "./problems.js";
import { bytes, readable } from "./charts.js";
import { VideoPlayer } from "./player.js";
import { Problem, apiKey, manifest, predict, readiness, sampleClip } from "./service.js";

const $ = (id) => document.getElementById(id);
const PANELS = ["working", "problem", "verdict"];
const NAMED = 3; // files that are left out and named

let clip = null; // the current file
let clipUrl = null;
let opening = Promise.resolve(null); // resolves to the clip's player, or to null if the browser cannot play it
let pending = null; // AbortController of the request in progress
let ticking = null; // interval that counts seconds up or down
let result = null; // the Result that is shown
let repeat = () => {}; // what the button "Try again" does

// -- display ----------------------------------------------------------------------------------------------------------

function say(words) {
  $("live").textContent = words;
}

function showPanel(name) {
  document.body.dataset.state = name;
  $("start").hidden = true;
  $("workspace").hidden = false;
  for (const panel of PANELS) {
    $(panel).hidden = panel !== name;
  }
  for (const id of ["timeline", "details", "controls"]) {
    $(id).hidden = name !== "verdict";
  }
  $("attention-options").hidden = true;
  $(`${name}-title`).focus({ preventScroll: true });
}

function showStart() {
  forgetClip();
  document.body.dataset.state = "start";
  $("workspace").hidden = true;
  $("start").hidden = false;
}

function forgetClip() {
  pending?.abort();
  pending = null;
  clearInterval(ticking);
  result?.close();
  result = null;
  clip = null;
  $("left-out").hidden = true;
  document.title = "Limelight";
  opening.then((player) => player?.close());
  $("video").pause();
  $("video").removeAttribute("src");
  URL.revokeObjectURL(clipUrl);
}

/** Call `each` several times a second with the seconds that have passed. */
function tick(each) {
  clearInterval(ticking);
  const started = performance.now();
  const count = () => each((performance.now() - started) / 1000);
  ticking = setInterval(count, 200);
  count();
}

function showSending(sent, size) {
  const done = sent >= size;
  $("send-bar").value = size ? sent / size : 1;
  $("sent").textContent = done ? bytes(size) : `${bytes(sent)} of ${bytes(size)}`;
  $("step-send").dataset.step = done ? "done" : "now";
  $("step-work").dataset.step = done ? "now" : "later";
  if (done && $("work-bar").hasAttribute("value")) {
    $("work-bar").removeAttribute("value"); // an indeterminate bar: the service does not report its progress
    $("working-title").textContent = "The service is working";
    say("The clip has been sent. The service is working.");
    tick((seconds) => ($("elapsed").textContent = `${seconds.toFixed(0)} s`));
  }
}

function showWorking(title) {
  clearInterval(ticking);
  $("working-title").textContent = title;
  $("work-bar").value = 0;
  $("elapsed").textContent = $("sent").textContent = "";
  $("send-bar").value = 0;
  $("step-send").dataset.step = "now";
  $("step-work").dataset.step = "later";
  showPanel("working");
  say(title);
}

function showProblem(problem) {
  clearInterval(ticking);
  $("problem-title").textContent = problem.title;
  $("problem-detail").textContent = sentence(problem.detail);
  $("problem-advice").textContent = advice(problem);
  $("problem-facts").textContent = [
    problem.status && problem.code && `${problem.status} ${problem.code}`,
    problem.requestId && `request ${problem.requestId}`,
  ].filter(Boolean).join(" · ");
  const keyMissing = problem.code === "unauthorized";
  $("key-form").hidden = !keyMissing;
  $("retry").hidden = keyMissing || !isTemporary(problem);
  showPanel("problem");
  say(`${problem.title}. ${problem.detail}. ${advice(problem)}`);
  if (keyMissing) {
    $("problem-detail").textContent = apiKey.get() ? "This key is not valid." : "This service requires an API key.";
    apiKey.forget();
    $("key").focus();
  }
  if (!problem.status) {
    watchService(); // so that the head says the same
  }
  countDown(problem.retryAfter ?? 0);
  showForget();
}

function countDown(seconds) {
  tick((passed) => {
    const left = Math.ceil(seconds - passed);
    $("retry").disabled = left > 0;
    $("retry").textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left <= 0) {
      clearInterval(ticking);
      if (seconds > 0) {
        say("You can try again now.");
      }
    }
  });
}

function showForget() {
  $("forget").hidden = !apiKey.get();
}

function sentence(detail) {
  return detail.charAt(0).toUpperCase() + detail.slice(1) + (/[.!?]$/.test(detail) ? "" : ".");
}

// -- actions ----------------------------------------------------------------------------------------------------------

/** Take the first of some files, and say which are left out. */
function takeOneOf([file, ...others]) {
  if (!file) {
    return;
  }
  take(file);
  if (others.length > 0) {
    const named = others.slice(0, NAMED).map(({ name }) => name).join(", ");
    const more = others.length > NAMED ? ` and ${others.length - NAMED} more` : "";
    $("left-out").textContent = `One clip at a time. Left out: ${named}${more}.`;
    $("left-out").hidden = false;
    say($("left-out").textContent);
  }
}

/** Show a clip if the browser can play it, and send it to the service. */
async function take(file) {
  forgetClip();
  clip = file;
  clipUrl = URL.createObjectURL(file);
  $("clip-name").textContent = file.name || "Pasted clip";
  $("clip-size").textContent = bytes(file.size);
  $("blank").hidden = $("frame").hidden = $("note").hidden = true;
  $("overlay").hidden = true;
  $("video").hidden = false;
  $("screen").style.removeProperty("--aspect");
  opening = VideoPlayer.open($("video"), clipUrl).then((player) => {
    if (clip === file) {
      $("video").hidden = !player;
      $("blank").hidden = Boolean(player);
      if (player) {
        $("screen").style.setProperty("--aspect", player.aspect);
      }
    }
    return player;
  });
  repeat = () => ask(file);
  await ask(file);
}

async function ask(file) {
  await attempt("Sending the clip", async (signal) => {
    const reply = await predict(file, { onProgress: showSending, signal });
    const shown = await Result.of(reply, await opening, file);
    signal.throwIfAborted();
    clearInterval(ticking);
    result = shown;
    showPanel("verdict");
    result.show();
    say(result.summary);
    showForget();
  });
}

async function takeSample() {
  forgetClip();
  repeat = takeSample;
  $("clip-name").textContent = "The sample";
  $("clip-size").textContent = "";
  let file = null;
  await attempt("Loading the sample", async (signal) => {
    file = await sampleClip(signal);
  });
  if (file) {
    await take(file);
  }
}

/** Do something that can be cancelled or fail, and show its progress and its problem. */
async function attempt(title, work) {
  pending?.abort();
  const controller = (pending = new AbortController());
  showWorking(title);
  try {
    await work(controller.signal);
  } catch (error) {
    if (controller.signal.aborted) {
      return;
    }
    if (!(error instanceof Problem)) {
      console.error(error);
    }
    const unexpected = { title: "The answer cannot be shown", detail: String(error) };
    showProblem(error instanceof Problem ? error : new Problem(unexpected));
  }
}

const ACTIONS = {
  choose: () => $("file").click(),
  sample: takeSample,
  cancel: () => {
    showStart();
    say("Cancelled.");
    $("drop").querySelector("button").focus();
  },
  retry: () => repeat(),
  picture: () => result.downloadPicture(),
  json: () => result.downloadJson(),
  curl: async () => say(await result.copyCurl()),
  forget: () => {
    apiKey.forget();
    showForget();
    say("The API key was removed.");
  },
};

document.addEventListener("click", (event) => ACTIONS[event.target.closest("[data-action]")?.dataset.action]?.());

$("file").addEventListener("change", () => {
  takeOneOf($("file").files);
  $("file").value = ""; // so that the same one can be chosen again
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey.keep($("key").value.trim());
  $("key").value = "";
  repeat();
  showKnown();
});

document.addEventListener("paste", (event) => {
  const files = event.clipboardData?.files ?? [];
  if (files.length > 0) {
    event.preventDefault();
    takeOneOf(files);
  }
});

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    const holdsFiles = [...(event.dataTransfer?.types ?? [])].includes("Files");
    if (!holdsFiles) {
      return;
    }
    event.preventDefault();
    $("veil").hidden = kind === "drop" || (kind === "dragleave" && event.relatedTarget === null);
    if (kind === "drop") {
      takeOneOf(event.dataTransfer.files);
    }
  });
}

// -- the service ------------------------------------------------------------------------------------------------------

/** What the head says, by the answer of `readiness`. */
const STATES = { ready: "Ready", not_ready: "Loading the network …", draining: "Shutting down …", null: "Not reachable" };

/** Milliseconds between two questions whether the service is ready: while it is, while it is not, in a hidden tab. */
const ASK_MS = { ready: 10_000, otherwise: 2000, hidden: 60_000 };

let state; // the last answer of `readiness`
let asking; // timeout of the next question

async function watchService() {
  const before = state;
  state = await readiness();
  const ready = state === "ready";
  if (state !== before) {
    $("service-state").textContent = STATES[state] ?? "Not ready";
    $("service-state").dataset.ready = state && ready;
    if (ready) {
      showKnown();
    }
  }
  clearTimeout(asking);
  asking = setTimeout(watchService, ASK_MS[document.hidden ? "hidden" : ready ? "ready" : "otherwise"]);
}

async function showKnown() {
  const facts = await manifest();
  if (facts && state === "ready") {
    $("service-state").textContent = `Ready · ${facts.name} ${facts.version}`;
    const some = facts.labels.slice(0, 20).map(readable).join(", ");
    const rest = facts.labels.length > 20 ? ` and ${facts.labels.length - 20} more` : "";
    $("known").textContent = `The network knows ${facts.labels.length} actions: ${some}${rest}.`;
    $("known").hidden = false;
  }
}

document.addEventListener("visibilitychange", () => document.hidden || watchService());
showForget();
watchService();
