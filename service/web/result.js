// One answer on the page: the recognised action, the clip under its attention, the frames, the curve and the details.

import { HeatPainter, concentration, palette, whereabouts } from "./attention.js";
import { bytes, drawBars, drawCurve, drawFacts, drawWaterfall, percent, readable } from "./charts.js";
import { Strip, contactSheet, drawFrame, picturesOf } from "./frames.js";
import { FramesPlayer } from "./player.js";
import { asCurl } from "./service.js";

const $ = (id) => document.getElementById(id);
const SHOWN = 5;
const CONFIDENT = 0.8; // probability of the most likely action
const FAIRLY_CONFIDENT = 0.4;

export class Result {
  #answer;
  #text;
  #stages;
  #requestId;
  #file;
  #pictures;
  #painter;
  #player;
  #duration;
  #strip;
  #current = 0;
  #values = null;

  /** Make the result of a reply for a file. `player` is null if the browser cannot play it. */
  static async of(reply, player, file) {
    return new Result(reply, await picturesOf(reply.answer.frames), player, file);
  }

  constructor({ answer, text, stages, requestId }, pictures, player, file) {
    this.#answer = answer;
    this.#text = text;
    this.#stages = stages;
    this.#requestId = requestId;
    this.#pictures = pictures;
    this.#file = file;
    this.#painter = answer.attention && new HeatPainter(answer.attention.maps);
    const { width, height, duration_s: duration } = answer.clip;
    this.#duration = Math.max(duration, answer.frames.at(-1).time_s, 0.04); // live recordings have no duration
    this.#player = player ?? new FramesPlayer(this.#duration, width / height);
  }

  /** The answer in a sentence. */
  get summary() {
    const [best] = this.#answer.predictions;
    return `Recognised: ${readable(best.label)}, ${percent(best.probability)}. ${this.#impression}`;
  }

  /** Fill the page with the answer, and play the clip unless the user prefers reduced motion. */
  show() {
    this.#showVerdict();
    this.#showDetails();
    this.#showStage();
    this.#strip = new Strip($("strip"), this.#pictures, this.#answer.frames, this.#player.aspect, (k) => this.#pick(k));
    $("plot").hidden = !this.#painter;
    if (this.#painter) {
      this.#showCurve();
    }
    this.#redraw();
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.#player.play();
    }
  }

  close() {
    this.#player.close();
    $("screen").onclick = null;
  }

  async downloadPicture() {
    const { aspect } = this.#player;
    const sheet = { pictures: this.#pictures, painter: this.#painter, opacity: this.#opacity || 0.7, aspect };
    download(await contactSheet({ ...sheet, answer: this.#answer, name: this.#name }), `${this.#stem}-attention.png`);
  }

  downloadJson() {
    download(new Blob([this.#text], { type: "application/json" }), `${this.#stem}.json`);
  }

  /** Copy the curl command. Resolves to a message for the user. */
  async copyCurl() {
    try {
      await navigator.clipboard.writeText($("curl").textContent);
      return "Copied.";
    } catch {
      getSelection().selectAllChildren($("curl")); // browsers allow the clipboard only under HTTPS
      return "The command is selected; copy it.";
    }
  }

  get #name() {
    return this.#file.name || "clip.mp4";
  }

  get #stem() {
    return this.#name.replace(/\.[^.]*$/, "");
  }

  get #opacity() {
    return $("show").checked ? $("opacity").value / 100 : 0;
  }

  // -- verdict and details --------------------------------------------------------------------------------------------

  #showVerdict() {
    const { predictions, probabilities } = this.#answer;
    const [best] = predictions;
    $("verdict-title").textContent = readable(best.label);
    document.title = `${readable(best.label)} · Limelight`;
    $("sureness").textContent = this.#impression;
    drawBars($("bars"), predictions, SHOWN);
    $("limits").textContent = `The network knows ${probabilities.length} actions, and assigns every clip to one of them.`;
    const button = $("all-classes");
    button.hidden = predictions.length <= SHOWN;
    const expand = (open) => {
      button.setAttribute("aria-expanded", open);
      button.textContent = open ? `Show the first ${SHOWN}` : `Show all ${predictions.length}`;
      [...$("bars").children].forEach((row, rank) => (row.hidden = !open && rank >= SHOWN));
    };
    button.onclick = () => expand(button.getAttribute("aria-expanded") !== "true");
    expand(false);
  }

  #showDetails() {
    const { clip, model, timings_ms: timings } = this.#answer;
    const { total, ...stages } = timings;
    const rotation = clip.rotation ? `, rotated by ${clip.rotation}°` : "";
    drawWaterfall($("waterfall"), { ...stages, ...this.#stages }, total);
    drawFacts($("facts"), [
      ["Clip", `${clip.codec} in ${clip.container}, ${clip.width} × ${clip.height}${rotation}`],
      ["Length", `${clip.duration_s.toFixed(2)} s, ${clip.frames} frames, ${bytes(this.#file.size)}`],
      ...(clip.damaged_frames ? [["Damaged", `${clip.damaged_frames} of the sampled frames`]] : []),
      ["Network", `${model.name} ${model.version}${model.variant === "base" ? ", without attention" : ""}`],
      ["Precision", model.precision],
      ["Runs on", model.provider.replace("ExecutionProvider", "")],
      ["Request", this.#requestId],
    ]);
    $("curl").textContent = asCurl(this.#name);
  }

  // -- the clip under its attention -----------------------------------------------------------------------------------

  #showStage() {
    const player = this.#player;
    const framesOnly = player instanceof FramesPlayer;
    $("screen").style.setProperty("--aspect", player.aspect);
    $("blank").hidden = true;
    $("frame").hidden = !framesOnly;
    $("overlay").hidden = !this.#painter;
    $("attention-options").hidden = !this.#painter;
    const { codec, container } = this.#answer.clip;
    const notes = [
      framesOnly &&
        `Your browser cannot play this clip (${codec} in ${container}). These are the frames that the network saw.`,
      !this.#painter && "This network has no attention maps: it names the action, but cannot show where it looked.",
    ].filter(Boolean);
    $("note").textContent = notes.join(" ");
    $("note").hidden = notes.length === 0;
    const position = $("position");
    position.max = this.#duration;
    position.step = this.#duration / this.#answer.frames.length / 2;
    position.oninput = () => player.seek(Number(position.value));
    $("play").onclick = () => (player.paused ? player.play() : player.pause());
    $("screen").onclick = $("play").onclick;
    $("show").onchange = $("opacity").oninput = $("colours").onchange = () => this.#redraw();
    player.onState = () => {
      $("play").dataset.playing = !player.paused;
      $("play").setAttribute("aria-label", player.paused ? "Play" : "Pause");
    };
    player.onTime = (time) => this.#follow(time);
    player.onState();
  }

  #pick(k) {
    this.#player.pause();
    this.#player.seek(this.#answer.frames[k].time_s);
  }

  /** Update the page to the frame at this time. */
  #follow(time) {
    const { frames } = this.#answer;
    const distance = ({ time_s }) => Math.abs(time_s - time);
    const nearest = frames.reduce((best, frame, k) => (distance(frame) < distance(frames[best]) ? k : best), 0);
    const duration = this.#duration;
    $("position").value = time;
    $("position").setAttribute("aria-valuetext", `${time.toFixed(1)} seconds`);
    $("time").textContent = `${Math.max(0, time).toFixed(1)} / ${duration.toFixed(1)} s`;
    $("plot-cursor").style.left = `${(100 * Math.max(0, time)) / duration}%`;
    if (nearest !== this.#current) {
      this.#current = nearest;
      this.#strip.mark(nearest);
      this.#drawScreen();
    }
  }

  #redraw() {
    if (this.#painter) {
      const name = $("colours").value;
      this.#painter.colours = name;
      const colours = palette(name);
      const context = $("scale").getContext("2d");
      colours.forEach((colour, level) => {
        context.fillStyle = `rgb(${colour.join(" ")})`;
        context.fillRect(level, 0, 1, 1);
      });
    }
    $("opacity").disabled = $("colours").disabled = !$("show").checked;
    this.#strip.draw(this.#painter, this.#opacity);
    this.#drawScreen();
  }

  /** Draw the current frame's map, and the frame itself if the browser cannot play the clip. */
  #drawScreen() {
    const k = this.#current;
    const frame = $("frame");
    if (!frame.hidden) {
      frame.width = 448;
      frame.height = Math.round(448 / this.#player.aspect);
      drawFrame(frame.getContext("2d"), this.#pictures[k], null, 0, [0, 0, frame.width, frame.height]);
    }
    const overlay = $("overlay");
    overlay.dataset.frame = k;
    if (this.#painter) {
      const heat = this.#painter.paint(k);
      overlay.width = heat.width;
      overlay.height = heat.height;
      const context = overlay.getContext("2d");
      context.globalAlpha = this.#opacity;
      context.drawImage(heat, 0, 0);
    }
    if (this.#values) {
      this.#placeDot();
    }
  }

  // -- the curve ------------------------------------------------------------------------------------------------------

  #showCurve() {
    const { attention, frames } = this.#answer;
    const values = attention.maps.map(concentration);
    const duration = this.#duration;
    const parts = { line: $("plot-line"), area: $("plot-area"), top: $("plot-top") };
    const ceiling = drawCurve(parts, values, frames.map((frame) => frame.time_s), duration);
    this.#values = values.map((value) => value / ceiling);
    const highest = values.indexOf(Math.max(...values));
    $("plot-text").textContent =
      `From ${percent(Math.min(...values))} to ${percent(values[highest])}, ` +
      `most at ${frames[highest].time_s.toFixed(1)} seconds.`;
    $("plot-field").onclick = (event) => {
      const { left, width } = $("plot-field").getBoundingClientRect();
      this.#player.seek(Math.max(0, (event.clientX - left) / width) * duration);
    };
  }

  #placeDot() {
    const dot = $("plot-dot");
    dot.style.left = `${(100 * this.#answer.frames[this.#current].time_s) / this.#duration}%`;
    dot.style.top = `${100 - 100 * this.#values[this.#current]}%`;
  }

  /** How confident the network is and where it looked, in words. */
  get #impression() {
    const [{ probability }] = this.#answer.predictions;
    const confidence =
      probability >= CONFIDENT ? "is confident" : probability >= FAIRLY_CONFIDENT ? "is fairly confident" : "is unsure";
    return `The network ${confidence}${this.#painter ? `, and looked mostly at ${this.#mostly()} of the picture` : ""}.`;
  }

  /** The position of the hottest cell in most frames. */
  #mostly() {
    const places = this.#answer.attention.maps.map(whereabouts);
    const count = (place) => places.filter((other) => other === place).length;
    return places.reduce((best, place) => (count(place) > count(best) ? place : best));
  }
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
