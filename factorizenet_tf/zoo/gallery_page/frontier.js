// The chart: accuracy over a cost, in SVG, each net a link that the keyboard reaches.
const SVG = "http://www.w3.org/2000/svg";
const STEPS = [1, 1.5, 2, 3, 4, 5, 6, 8];

/** Make an SVG element with attributes and children. */
function shape(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Rows that beat all that cost no more, cheapest first. */
export function frontierOf(rows) {
  const sorted = [...rows].sort((a, b) => a.x - b.x || b.y - a.y);
  let highest = -Infinity;
  return sorted.filter((row) => row.y > highest && ((highest = row.y), true));
}

/**
 * Draw rows {name, label, x, y, within, text} into a container.
 * axes: {x: title, y: title, format: of x}; chosen: the best row within the budget; show: called with a row that is looked at.
 */
export function drawChart(container, rows, axes, chosen, show) {
  const width = Math.max(280, container.clientWidth), height = Math.round(Math.min(430, Math.max(300, width * 0.5)));
  const [left, right, top, bottom] = [46, 14, 16, 46];
  const logs = rows.map((row) => Math.log(row.x)), ys = rows.map((row) => row.y);
  const [low, high] = [Math.min(...logs) - 0.12, Math.max(...logs) + 0.12];
  const [least, most] = [Math.min(...ys) - 0.006, Math.min(1.004, Math.max(...ys) + 0.006)];
  const x = (value) => left + ((Math.log(value) - low) / (high - low)) * (width - left - right);
  const y = (value) => height - bottom - ((value - least) / (most - least)) * (height - top - bottom);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${axes.y} over ${axes.x}` });

  const step = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2].find((size) => (most - least) / size <= 7) ?? 0.2;
  for (let n = Math.ceil(least / step); n * step <= most; n++) {
    const at = y(n * step), text = `${(100 * n * step).toFixed(step < 0.01 ? 1 : 0)} %`;
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    svg.append(shape("text", { class: "tick", x: left - 6, y: at + 4, "text-anchor": "end" }, text));
  }
  let taken = left - 20;
  for (let power = Math.floor(low / Math.LN10); power <= high / Math.LN10; power++) {
    for (const value of STEPS.map((first) => first * 10 ** power)) {
      const at = x(value);
      if (at < left || at > width - right || at < taken + 54) continue;
      taken = at;
      svg.append(shape("line", { class: "grid", x1: at, x2: at, y1: top, y2: height - bottom }));
      svg.append(shape("text", { class: "tick", x: at, y: height - bottom + 18, "text-anchor": "middle" }, axes.format(value)));
    }
  }
  svg.append(shape("text", { class: "tick", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, axes.x));

  const best = frontierOf(rows.filter((row) => row.within));
  const path = best.map((row, i) => (i ? `H${x(row.x)}V${y(row.y)}` : `M${x(row.x)},${y(row.y)}`)).join("");
  if (best.length) svg.append(shape("path", { class: "front", d: `${path}H${width - right}` }));
  const boxes = rows.map((row) => [x(row.x) - 7, y(row.y) - 7, x(row.x) + 7, y(row.y) + 7]);
  const order = [...best, ...rows.filter((row) => !best.includes(row))];
  for (const row of order) {
    const [cx, cy] = [x(row.x), y(row.y)];
    const kind = [row.within ? "" : "out", best.includes(row) ? "on" : "", row === chosen ? "chosen" : ""].join(" ");
    const link = shape("a", { href: `#net/${row.name}`, class: `point ${kind}`, "aria-label": row.text });
    link.append(shape("circle", { class: "reach", cx, cy, r: 15 }), shape("circle", { class: "dot", cx, cy, r: row === chosen ? 8 : 6 }));
    const long = row.label.length * 7;
    const places = [[cx - long / 2, cy - 12], [cx + 11, cy + 4], [cx - long / 2, cy + 22], [cx - long - 11, cy + 4]];
    for (const [at, base] of places) {
      const box = [at, base - 11, at + long, base + 3];
      const clear = boxes.every((other) => box[2] < other[0] || other[2] < box[0] || box[3] < other[1] || other[3] < box[1]);
      if (!clear || box[0] < left || box[2] > width - 2 || box[1] < 0 || box[3] > height - bottom) continue;
      boxes.push(box);
      link.append(shape("text", { x: at, y: base }, row.label));
      break;
    }
    for (const event of ["pointerenter", "focus"]) link.addEventListener(event, () => show(row));
    svg.append(link);
  }
  container.replaceChildren(svg);
}
