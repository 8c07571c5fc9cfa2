// The sampled frames under their attention maps: as a strip of buttons, and as a contact sheet to download.

import { element, percent, readable } from "./charts.js";

const THUMBNAIL = 160;
const SHEET = { columns: 8, cell: 180, gap: 6, margin: 24 };

/** Decode the frames of an answer (`frames=jpeg`) into bitmaps. */
export function picturesOf(frames) {
  return Promise.all(
    frames.map(({ jpeg }) => {
      const bytes = Uint8Array.from(atob(jpeg), (letter) => letter.charCodeAt(0));
      return createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
    }),
  );
}

/** Draw a frame into a rectangle, and over it a map at an opacity from 0 to 1. `heat` may be null. */
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

/** One button per frame. One of them is in the tab order, and the arrow keys move from there. */
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

  /** Redraw all frames with the painter's maps at this opacity. */
  draw(painter, opacity) {
    this.#buttons.forEach((button, k) => {
      const canvas = button.querySelector("canvas");
      const whole = [0, 0, canvas.width, canvas.height];
      drawFrame(canvas.getContext("2d"), this.#pictures[k], painter?.paint(k), opacity, whole);
    });
  }

  /** Mark frame k as the one on the screen. */
  mark(k) {
    const before = this.#buttons[this.#current];
    before.removeAttribute("aria-current");
    before.tabIndex = -1;
    const now = this.#buttons[k];
    now.setAttribute("aria-current", "true");
    now.tabIndex = 0;
    this.#current = k;
    const strip = this.#container; // on narrow screens it scrolls sideways, to keep the frame in view
    if (strip.scrollWidth > strip.clientWidth) {
      strip.scrollLeft = now.offsetLeft - strip.offsetLeft - (strip.clientWidth - now.offsetWidth) / 2;
    }
  }

  #move(event, onPick) {
    const last = this.#buttons.length - 1;
    const from = this.#buttons.indexOf(event.target); // not #current: the video may still be seeking
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

/** Draw all frames with their maps below the most likely actions. Resolves to a PNG as a Blob. */
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
  const [best, ...others] = answer.predictions
    .slice(0, 4)
    .map((found) => `${readable(found.label)} ${percent(found.probability)}`);
  context.fillStyle = "#f1f3ea";
  context.font = "600 28px system-ui, sans-serif";
  context.fillText(best, margin, 46);
  context.fillStyle = "#a9ad9c";
  context.font = "16px system-ui, sans-serif";
  const source = `${name}, ${answer.model.name} ${answer.model.version}`;
  context.fillText(`${others.join(" · ")}   —   ${source}`, margin, 74, canvas.width - 2 * margin);
  pictures.forEach((picture, k) => {
    const x = margin + (k % columns) * (cell + gap);
    const y = head + Math.floor(k / columns) * (height + gap);
    drawFrame(context, picture, painter?.paint(k), opacity, [x, y, cell, height]);
  });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
