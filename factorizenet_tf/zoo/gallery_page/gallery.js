// The page: its data, filters, table, cards and comparison. The chart is in frontier.js, running nets in trying.js.
import { bar, element, scrolling, table } from "./elements.js";
import { drawChart, frontierOf } from "./frontier.js";
import { listen, offer } from "./trying.js";

const PRECISIONS = { tflite: "int8 .tflite", qat: "QAT in Keras", ptq_per_channel: "PTQ, one scale a channel", ptq_per_tensor: "PTQ, one scale a tensor", float: "float" };
const COSTS = {
  macs: { title: "MACs", unit: 1e6, option: "max-macs", text: (n) => `${short(n / 1e6)} M` },
  size_bytes: { title: "bytes of the file", unit: 1e3, option: "max-size-bytes", text: (n) => `${short(n / 1e3)} kB` },
  ram_bytes: { title: "RAM (arena of TensorFlow Lite Micro)", unit: 1e3, option: "max-ram-bytes", text: (n) => `${short(n / 1e3)} kB` },
  latency_ms: { title: "latency of an image", unit: 1, option: "max-latency-ms", text: (n) => `${short(n)} ms` },
};
const by = (id) => document.getElementById(id);
const short = (number) => Number(number.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 3 });
const points = (share) => (share == null ? "" : `${(100 * share).toFixed(2)} %`);
const exact = (number) => (number == null ? "" : number.toLocaleString("en", { maximumFractionDigits: 5 }));
let data, nets = [], sorting = { key: "accuracy", up: false };

const options = (select, entries) => select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
const named = (name) => nets.find((net) => net.name === name);
const baseOf = (net) => net.name.replace(/-(float|int8)$/, "");

/** What a budget leaves of the nets, with the accuracy that is asked for. */
function rowsOf(form) {
  const precision = form.precision.value, cost = form.cost.value;
  const limits = Object.keys(COSTS).filter((key) => form[key].value !== "").map((key) => [key, form[key].value * COSTS[key].unit]);
  const rows = nets.filter((net) => (net.precision === "float") === (precision === "float")).map((net) => {
    const y = net.accuracies.validation[precision], x = net[cost];
    const within = limits.every(([key, limit]) => net[key] != null && net[key] <= limit);
    const text = `${net.name}: ${points(y)}${x == null ? "" : `, ${COSTS[cost].text(x)}`}`;
    return { net, name: net.name, label: baseOf(net).replace(/^(fnet|baseline)-/, ""), x, y, within, text };
  });
  const sorted = rows.filter((row) => row.within).sort((a, b) => b.y - a.y || a.net.macs - b.net.macs);
  return { rows, best: sorted[0], limits, precision, cost };
}

function drawFrontier() {
  const { rows, best, limits, precision, cost } = rowsOf(by("filters")), drawn = rows.filter((row) => row.x != null);
  const title = `validation accuracy, ${PRECISIONS[precision]}`;
  if (drawn.length) drawChart(by("chart"), drawn, { x: COSTS[cost].title, y: title, format: COSTS[cost].text }, best, (row) => (by("readout").textContent = row.text));
  else by("chart").replaceChildren(element("p", {}, `No ${precision === "float" ? "float" : "int8"} net here has a number for ${COSTS[cost].title}; choose another.`));
  by("readout").textContent = `Line: not beaten by a cheaper net, by ${title}. Point at a net for its numbers.`;
  const command = ["factorizenet list --best", ...(precision === "float" ? ["--precision float"] : []), `--dataset ${nets[0].dataset_name}`,
    ...limits.map(([key, limit]) => `--${COSTS[key].option} ${+limit.toFixed(6)}`)].join(" ");
  by("best").replaceChildren(...(best
    ? ["Best within these limits: ", element("a", { href: `#net/${best.name}` }, best.name), `, ${points(best.y)}. `]
    : ["No net is within these limits; raise one. "]), ...(["tflite", "float"].includes(precision) ? [element("code", {}, command)] : []));
  drawTable(rows.filter((row) => row.within), precision);
}

function drawTable(rows, precision) {
  const columns = [["name", "net", (row) => row.name], ...Object.keys(COSTS).map((key) => [key, { macs: "MACs", size_bytes: "bytes", ram_bytes: "RAM", latency_ms: "ms" }[key], (row) => row.net[key]]),
    ["accuracy", "validation", (row) => row.y], ["test", "test", (row) => row.net.accuracies.test?.[precision]]];
  const value = columns.find(([key]) => key === sorting.key)[2], sign = sorting.up ? 1 : -1;
  const sorted = [...rows].sort((a, b) => sign * ((value(a) ?? -1) < (value(b) ?? -1) ? -1 : 1));
  const made = table(columns.map(([key, text]) => element("button", { type: "button", onclick: () => {
    sorting = { key, up: sorting.key === key ? !sorting.up : key !== "accuracy" && key !== "test" };
    drawTable(rows, precision);
    by("nets").querySelector(`[aria-sort] button`).focus();
  } }, text)), sorted.map((row) => [element("a", { href: `#net/${row.name}` }, row.name),
    ...Object.keys(COSTS).map((key) => exact(row.net[key])), points(row.y), points(row.net.accuracies.test?.[precision])]));
  columns.forEach(([key], i) => key === sorting.key && made.querySelectorAll("thead th")[i].setAttribute("aria-sort", sorting.up ? "ascending" : "descending"));
  by("nets").replaceChildren(...made.children);
}

function drawCard(net) {
  by("shown").value = net.name;
  const { agreement } = net, shares = Object.entries(PRECISIONS).map(([key, text]) => [text, points(net.accuracies.validation[key]), points(net.accuracies.test?.[key])]);
  const facts = [["precision", net.precision], ["input", `${net.input_shape.join(" x ")}, ${net.dataset}`], ["MACs", exact(net.macs)], ["parameters", exact(net.params)], ["bytes", exact(net.size_bytes)]];
  if (net.ram_bytes != null) facts.push(["RAM", `${exact(net.ram_bytes)} bytes of arena`]);
  if (net.latency_ms != null) facts.push(["latency", `${exact(net.latency_ms)} ms${net.latency_machine ? ` on ${net.latency_machine}` : ""}`]);
  if (agreement) facts.push(["agreement with Keras", `top-1 ${points(agreement.top1)}, at most ${agreement.largest_lsb} LSB off`]);
  facts.push(["version", `${net.reference}, ${net.published}`], ["licence of the weights", net.licence ?? "none stated"]);
  const names = element("p", { className: "soft" }, `Classes: ${net.class_names.join(", ")}`);
  const links = [["card", net.page, null], ...net.files.map((file) => [file.role, file.path, file.size_bytes])].map(([role, path, size]) =>
    element("a", { href: path, className: "button" }, role, ...(size == null ? [] : [element("small", {}, ` ${short(size / 1e3)} kB`)])));
  by("card").replaceChildren(element("div", { className: "two" },
    element("dl", {}, ...facts.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)])),
    element("div", {}, scrolling(table(["accuracy", "validation", "test"], shares), "Accuracies"), names)),
    element("p", { className: "row" }, ...links), element("p", {}, "Trained by ", element("code", {}, net.command)),
    ...(net.layers.length ? [element("h3", {}, "Layers"), scrolling(layersOf(net), `Layers of ${net.name}`)] : []));
}

function layersOf(net) {
  const most = Math.max(...net.layers.map((layer) => layer.macs));
  return table(["layer", "kind", "groups", "output", "MACs", "weight bytes"], net.layers.map((layer) =>
    [layer.layer, layer.kind, String(layer.groups), layer.output_shape.join(" x "), bar(layer.macs / most, exact(layer.macs)), exact(layer.weight_bytes)]));
}

function drawComparison() {
  const [a, b] = ["first", "second"].map((id) => named(by(id).value));
  const number = (title, key) => [title, exact(a[key]), exact(b[key]), a[key] && b[key] ? `x ${short(b[key] / a[key])}` : ""];
  const score = (title, read) => [title, points(read(a)), points(read(b)), read(a) != null && read(b) != null ? `${read(b) < read(a) ? "\u2212" : "+"}${(100 * Math.abs(read(b) - read(a))).toFixed(2)}` : ""];
  const rows = [number("MACs", "macs"), number("parameters", "params"), number("bytes", "size_bytes"), number("RAM", "ram_bytes"), number("latency, ms", "latency_ms"),
    ...["validation", "test"].flatMap((split) => Object.entries(PRECISIONS).map(([key, text]) => score(`${split}, ${text}`, (net) => net.accuracies[split]?.[key])))];
  const most = Math.max(1, ...[a, b].flatMap((net) => net.layers.map((layer) => layer.macs)));
  const layers = [...new Set([a, b].flatMap((net) => net.layers.map((layer) => layer.layer)))].map((name) => {
    const found = [a, b].map((net) => net.layers.find((layer) => layer.layer === name));
    return [name, ...found.flatMap((layer) => (layer ? [`${layer.kind}${layer.groups > 1 ? `, ${layer.groups} groups` : ""}`, bar(layer.macs / most, exact(layer.macs))] : ["", ""]))];
  });
  by("comparison").replaceChildren(
    scrolling(table(["", a.name, b.name, "second against first"], rows.filter((row) => row[1] || row[2])), "Numbers of the two nets"),
    element("h3", {}, "Layers"), scrolling(table(["layer", a.name, "MACs", b.name, "MACs"], layers), "Layers of the two nets"));
}

/** Show the nets of a data set everywhere. */
function choose(dataset) {
  nets = data.nets.filter((net) => net.dataset === dataset);
  const runs = nets.filter((net) => net.run).sort((a, b) => a.macs - b.macs);
  const front = frontierOf((runs.length ? runs : nets).map((net) => ({ net, x: net.macs, y: net.validation_accuracy }))).map((row) => row.net);
  const few = front.length <= 4 ? front : [0, 1, 2, 3].map((i) => front[Math.round((i * (front.length - 1)) / 3)]);
  by("summary").textContent = `${runs.length} int8 and ${nets.length - runs.length} float nets of ${dataset}: what each costs, how well it does, and what it says to your image.`;
  by("filters").precision.value = runs.length ? "tflite" : "float";
  for (const id of ["shown", "first", "second"]) options(by(id), nets.map((net) => [net.name, net.name]));
  by("first").value = few[0].name;
  by("second").value = few.at(-1).name;
  const machines = [...new Set(nets.map((net) => net.latency_machine).filter(Boolean))];
  by("measured").textContent = `RAM: the arena of TensorFlow Lite for Microcontrollers with its reference kernels.${machines.length ? ` Latency: LiteRT with XNNPACK, one thread, on ${machines.join("; ")}.` : ""} Nets are ranked by validation accuracy; test accuracy is for report.`;
  drawFrontier();
  drawComparison();
  follow(few.at(-1));
  offer(runs, runs.length ? few : []);
}

/** Show the net that the address names, and go there; else another. */
function follow(otherwise) {
  const found = named(location.hash.replace("#net/", ""));
  if (found || otherwise) drawCard(found ?? otherwise);
  if (found && !otherwise) {
    by("net").scrollIntoView();
    by("net-title").focus({ preventScroll: true });
  }
}

async function start() {
  try {
    const response = await fetch("gallery.json");
    if (!response.ok) throw new Error(`the server answers ${response.status}`);
    data = await response.json();
    if (!data.nets?.length) throw new Error("it has no nets");
  } catch (error) {
    by("notice").textContent = `gallery.json cannot be read (${error.message}); build the page again: factorizenet gallery --out FOLDER`;
    return;
  }
  by("notice").hidden = true;
  by("page").hidden = false;
  const form = by("filters"), count = (name) => data.nets.filter((net) => net.dataset === name).length;
  const datasets = [...new Set(data.nets.map((net) => net.dataset))].sort((one, other) => count(other) - count(one)); // the most nets first
  options(form.precision, Object.entries(PRECISIONS));
  options(form.cost, Object.entries(COSTS).map(([key, { title }]) => [key, title]));
  options(by("dataset"), datasets.map((name) => [name, name]));
  by("datasets").hidden = datasets.length === 1;
  by("version").textContent = `Made by factorizenet_tf ${data.version}.`;
  by("dataset").addEventListener("change", () => choose(by("dataset").value));
  form.addEventListener("input", drawFrontier);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(drawFrontier));
  by("shown").addEventListener("change", () => drawCard(named(by("shown").value)));
  for (const id of ["first", "second"]) by(id).addEventListener("change", drawComparison);
  addEventListener("hashchange", () => follow());
  new ResizeObserver(drawFrontier).observe(by("chart"));
  listen();
  choose(datasets[0]);
}

start();
