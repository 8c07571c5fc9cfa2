// Draws the answer as bars, a curve and tables, and formats its numbers.

/** Create an element with attributes and children, which may be text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    made.setAttribute(attribute, value);
  }
  made.append(...children);
  return made;
}

/** A label as people write it: `JumpingJack` as `Jumping Jack`. */
export function readable(label) {
  return label.replaceAll("_", " ").replace(/(\p{Ll})(\p{Lu})/gu, "$1 $2");
}

export function percent(share) {
  if (share > 0 && share < 0.001) {
    return "< 0.1 %";
  }
  return `${(100 * share).toFixed(share < 0.9995 ? 1 : 0)} %`;
}

export function milliseconds(ms) {
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

export function bytes(size) {
  return size < 1e6 ? `${Math.max(1, Math.round(size / 1e3))} kB` : `${(size / 1e6).toFixed(1)} MB`;
}

/** Draw one bar per class, most likely first. Those after the first `shown` are hidden. */
export function drawBars(list, predictions, shown) {
  list.replaceChildren(
    ...predictions.map(({ label, probability }, rank) => {
      const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("i"));
      bar.firstChild.style.width = `${100 * probability}%`;
      const row = element("li", {}, element("span", { class: "label" }, readable(label)), bar,
        element("span", { class: "value" }, percent(probability)));
      row.hidden = rank >= shown;
      return row;
    }),
  );
}

/** Draw values over times into the parts of a plot; both axes begin at 0. Returns the end of the vertical axis. */
export function drawCurve({ line, area, top }, values, times, duration) {
  const ceiling = [0.1, 0.25, 0.5, 1].find((limit) => Math.max(...values) <= limit) ?? 1;
  const points = values.map((value, k) => `${(100 * times[k]) / duration} ${100 - (100 * value) / ceiling}`);
  line.setAttribute("d", `M${points.join("L")}`);
  const [first, last] = [times[0], times.at(-1)].map((time) => (100 * time) / duration);
  area.setAttribute("d", `M${first} 100L${points.join("L")}L${last} 100Z`);
  top.textContent = `${100 * ceiling} %`;
  return ceiling;
}

const STAGES = [
  ["receive", "Receiving"],
  ["decode_wait", "Waiting for a decoder"],
  ["decode", "Decoding"],
  ["encode", "Encoding the frames"],
  ["queue", "Waiting for the network"],
  ["inference", "Recognising"],
];

/** Draw the stages, in milliseconds, one after the other as parts of the total. */
export function drawWaterfall(list, stages, total) {
  let before = 0;
  const rows = STAGES.filter(([stage]) => stage in stages).map(([stage, name]) => {
    const row = timeRow(name, before, stages[stage], total);
    before += stages[stage];
    return row;
  });
  list.replaceChildren(...rows, element("li", { class: "total" }, element("span", {}, "Total"),
    element("span"), element("span", { class: "value" }, milliseconds(total))));
}

function timeRow(name, start, length, total) {
  const track = element("span", { class: "track", "aria-hidden": "true" }, element("i"));
  track.firstChild.style.left = `${(100 * start) / total}%`;
  track.firstChild.style.width = `${(100 * length) / total}%`;
  return element("li", {}, element("span", {}, name), track,
    element("span", { class: "value" }, milliseconds(length)));
}

/** Draw [name, value] pairs as a list of definitions. */
export function drawFacts(list, facts) {
  list.replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}
