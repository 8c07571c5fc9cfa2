// Attention maps as numbers, words and colours. Independent of the page.

/** Ten evenly spaced stops of each of Matplotlib's colour maps (CC0). Their lightness rises evenly, so that they can be
 *  read with any kind of colour blindness and in grey. */
const STOPS = {
  inferno: "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
  viridis: "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
  cividis: "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838",
};

/** Pixels on each side of a drawn map. The browser scales it to the frame. */
const SIDE = 112;

/** A colour map as 256 colours [red, green, blue]. */
export function palette(name) {
  const stops = STOPS[name].split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1);
    const before = Math.min(Math.floor(place), stops.length - 2);
    return stops[before].map((value, channel) => value + (stops[before + 1][channel] - value) * (place - before));
  });
}

/** The colours' range for a whole clip. It ends at the 99th percentile of all cells, but at no less than four times the
 *  even share, so that evenly spread attention does not glow like a sharp map. */
export function scaleOf(maps) {
  const cells = maps.flat(2).sort((a, b) => a - b);
  const even = 1 / maps[0].flat().length;
  return { even, hottest: Math.max(cells[Math.floor(0.99 * (cells.length - 1))], 4 * even) };
}

/** 0 if every cell gets the same attention, 1 if one cell gets all of it: 1 − entropy / log(number of cells). */
export function concentration(map) {
  const cells = map.flat();
  const entropy = -cells.reduce((sum, share) => sum + (share > 0 ? share * Math.log(share) : 0), 0);
  return Math.max(0, 1 - entropy / Math.log(cells.length));
}

/** The position of the cell with the most attention in words: "the top left", "the middle", … */
export function whereabouts(map) {
  const cells = map.flat();
  const hottest = cells.indexOf(Math.max(...cells));
  const columns = map[0].length;
  const third = (at, count, names) => names[Math.floor((3 * (at + 0.5)) / count)];
  const row = third(Math.floor(hottest / columns), map.length, ["top", "", "bottom"]);
  const column = third(hottest % columns, columns, ["left", "", "right"]);
  return `the ${`${row} ${column}`.trim() || "middle"}`;
}

/** Draws maps as small pictures, fainter where there is less attention, and caches them. */
export class HeatPainter {
  #maps;
  #hottest;
  #smooth = new Map();
  #canvases = new Map();
  #palette = palette("inferno");

  constructor(maps) {
    this.#maps = maps;
    this.#hottest = scaleOf(maps).hottest;
  }

  set colours(name) {
    this.#palette = palette(name);
    this.#canvases.clear();
  }

  /** A canvas with map k, to be drawn over its frame at any opacity. */
  paint(k) {
    if (!this.#canvases.has(k)) {
      this.#canvases.set(k, this.#colour(k));
    }
    return this.#canvases.get(k);
  }

  #colour(k) {
    if (!this.#smooth.has(k)) {
      this.#smooth.set(k, enlarge(this.#maps[k], SIDE));
    }
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    const context = canvas.getContext("2d");
    const image = context.createImageData(SIDE, SIDE);
    this.#smooth.get(k).forEach((share, at) => {
      const heat = Math.min(1, Math.max(0, share / this.#hottest));
      image.data.set(this.#palette[Math.round(255 * heat)], 4 * at);
      image.data[4 * at + 3] = 255 * (0.4 + 0.6 * heat);
    });
    context.putImageData(image, 0, 0);
    return canvas;
  }
}

/** Interpolate a map to side × side values, cubically between the centres of its cells (Catmull-Rom). */
function enlarge(map, side) {
  const rows = map.map((row) => stretch(row, side));
  const columns = Array.from({ length: side }, (_, x) => stretch(rows.map((row) => row[x]), side));
  return Float32Array.from({ length: side * side }, (_, at) => columns[at % side][Math.floor(at / side)]);
}

function stretch(values, length) {
  const at = (index) => values[Math.min(values.length - 1, Math.max(0, index))];
  return Array.from({ length }, (_, position) => {
    const place = ((position + 0.5) * values.length) / length - 0.5;
    const i = Math.floor(place);
    const t = place - i;
    const [a, b, c, d] = [at(i - 1), at(i), at(i + 1), at(i + 2)];
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
  });
}
