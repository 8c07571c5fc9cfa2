// The sampled frames under their maps: as a strip to click on, and as a picture to take along.

import { element, percent, readable } from "./charts.js";

const THUMBNAIL = 160;
const SHEET = { columns: 8, cell: 180, gap: 6, margin: 24 };

/** The frames that came with an answer (`frames=jpeg`), as bitmaps. */
export function picturesOf(frames) {
  return Promise.all(
    frames.map(({ jpeg }) => {
      const bytes = Uint8Array.from(atob(jpeg), (letter) => letter.charCodeAt(0));
      return createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
    }),
  );
}

/** A frame as wide and high as asked for, and over it a map at an opacity from 0 to 1; null leaves either out. */
export function drawFrame(context, picture, heat, opacity, [x, y, width, height]) {
  context.imageSmoothingQuality = "high";
  context.globalAlpha = 1;
  context.drawImage(picture, x, y, width, height);
  if (heat && opacity > 0) {
    context.globalAlpha = opacity;
    context.drawImage(heat, x, y, width, height);
    context.globalAlpha = 1;
  }
}

/** A button a frame; one of them is in the tab order, and the arrow keys go from there. */
export class Strip {
  #buttons;
  #pictures;
  #container;
  #current = 0;

  constructor(container, pictures, frames, aspect, onPick) {
    this.#container = container;
    this.#pictures = pictures;
    this.#buttons = frames.map(({ time_s: time }, k) => {
      const canvas = element("canvas", { width: THUMBNAIL, height: Math.round(THUMBNAIL / aspect) });
      const label = `Frame ${k + 1} of ${frames.length}, at ${time.toFixed(2)} seconds`;
      const button = element("button", { type: "button", tabindex: k ? -1 : 0, "aria-label": label }, canvas,
        element("span", { "aria-hidden": "true" }, `${time.toFixed(2)} s`));
      button.addEventListener("click", () => onPick(k));
      return button;
    });
    container.replaceChildren(...this.#buttons);
    container.onkeydown = (event) => this.#move(event, onPick);
    this.mark(0);
  }

  /** Draw all frames again, with the painter's maps at this opacity. */
  draw(painter, opacity) {
    this.#buttons.forEach((button, k) => {
      const canvas = button.querySelector("canvas");
      const whole = [0, 0, canvas.width, canvas.height];
      drawFrame(canvas.getContext("2d"), this.#pictures[k], painter?.paint(k), opacity, whole);
    });
  }

  /** Show that frame number k is on the screen. */
  mark(k) {
    const before = this.#buttons[this.#current];
    before.removeAttribute("aria-current");
    before.tabIndex = -1;
    const now = this.#buttons[k];
    now.setAttribute("aria-current", "true");
    now.tabIndex = 0;
    this.#current = k;
    const strip = this.#container; // on a phone it scrolls sideways, and takes the frame along
    if (strip.scrollWidth > strip.clientWidth) {
      strip.scrollLeft = now.offsetLeft - strip.offsetLeft - (strip.clientWidth - now.offsetWidth) / 2;
    }
  }

  #move(event, onPick) {
    const last = this.#buttons.length - 1;
    const from = this.#buttons.indexOf(event.target); // a video may still be on its way there
    const targets = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last };
    const columns = this.#buttons.filter((button) => button.offsetTop === this.#buttons[0].offsetTop).length;
    if (columns <= last) {
      Object.assign(targets, { ArrowUp: from - columns, ArrowDown: from + columns });
    }
    const target = targets[event.key];
    if (target === undefined || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    event.preventDefault();
    if (target >= 0 && target <= last) {
      onPick(target);
      this.#buttons[target].focus();
    }
  }
}

/** All frames with their maps, and above them what was recognised, as a PNG. Resolves to a Blob. */
export function contactSheet({ pictures, painter, opacity, aspect, answer, name }) {
  const { columns, cell, gap, margin } = SHEET;
  const height = Math.round(cell / aspect);
  const head = 96;
  const rows = Math.ceil(pictures.length / columns);
  const canvas = element("canvas", {
    width: 2 * margin + columns * (cell + gap) - gap,
    height: head + rows * (height + gap) - gap + margin,
  });
  const context = canvas.getContext("2d");
  context.fillStyle = "#131510";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const [best, ...others] = answer.predictions.slice(0, 4).map((found) => `${readable(found.label)} ${percent(found.probability)}`);
  context.fillStyle = "#f1f3ea";
  context.font = "600 28px system-ui, sans-serif";
  context.fillText(best, margin, 46);
  context.fillStyle = "#a9ad9c";
  context.font = "16px system-ui, sans-serif";
  context.fillText(`${others.join(" · ")}   —   ${name}, ${answer.model.name} ${answer.model.version}`, margin, 74, canvas.width - 2 * margin);
  pictures.forEach((picture, k) => {
    const x = margin + (k % columns) * (cell + gap);
    const y = head + Math.floor(k / columns) * (height + gap);
    drawFrame(context, picture, painter?.paint(k), opacity, [x, y, cell, height]);
  });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
