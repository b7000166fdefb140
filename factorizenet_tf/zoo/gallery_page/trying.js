// An image, from wherever it comes, and what the picked nets make of it.
import { bar, element, percent, table } from "./elements.js";
import { fitted, readImage } from "./pixels.js";
import { classify, obstacle } from "./runtime.js";

const SAMPLES = [ // file, what it shows, its class
  ["cat.jpg", "A tabby cat's face", "cat"], ["ship.jpg", "A drawn ship", "ship"], ["airplane.jpg", "A drawn airplane", "airplane"],
  ["truck.jpg", "A drawn truck", "truck"], ["stop.jpg", "A drawn stop sign", "stop"], ["yield.jpg", "A drawn yield sign", "yield"],
  ["no-entry.jpg", "A drawn no entry sign", "no entry"], ["priority.jpg", "A drawn priority sign", "priority road"],
  ["digit-3.png", "A handwritten 3", "3"], ["digit-5.png", "A handwritten 5", "5"], ["digit-8.png", "A handwritten 8", "8"],
];
const TOP = 3; // classes of a net that are drawn as bars
const WAYS = { stretch: "stretched", crop: "its middle", pad: "with black bars" };
const by = (id) => document.getElementById(id);
const pad = by("pad"), context = pad.getContext("2d", { willReadFrequently: true });
let nets = [], picked = new Set(), image = null, turn = 0;

/** Offer these int8 nets; `first` are picked. The first sample of a class of theirs is classified. */
export function offer(offered, first) {
  [nets, picked] = [offered, new Set(first)];
  by("picks").replaceChildren(...nets.map((net) => {
    const box = element("input", { type: "checkbox", checked: picked.has(net), onchange: () => {
      picked[box.checked ? "add" : "delete"](net);
      run();
    } });
    return element("label", {}, box, ` ${net.name}`);
  }));
  const samples = SAMPLES.filter((row) => nets[0]?.class_names.includes(row[2]));
  by("samples").replaceChildren(...samples.map(([file, title]) =>
    element("button", { type: "button", onclick: () => sample(file, title) },
      element("img", { src: `samples/${file}`, alt: title, width: 52, height: 52 }))));
  const problem = nets.length ? obstacle() : "This zoo has no int8 net of this data set; nothing can run here.";
  trouble(problem);
  if (problem) return;
  if (samples.length) sample(...samples[0]);
  else if (image) run();
  else say("Choose, drop, paste, photograph or draw an image.");
}

/** Listen to all ways by which an image comes. */
export function listen() {
  for (const id of ["file", "photo"]) by(id).addEventListener("change", ({ target }) => {
    if (target.files[0]) take(target.files[0], target.files[0].name);
    target.value = ""; // the same file can be chosen again
  });
  document.addEventListener("paste", ({ clipboardData }) => clipboardData.files[0] && take(clipboardData.files[0], "Pasted image"));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) take(file, file.name);
    else trouble("That is no file; drop an image file, or save the image first.");
  });
  by("draw").addEventListener("click", () => {
    turn++;
    [pad.width, pad.height, image] = [280, 280, null];
    context.fillRect(0, 0, 280, 280);
    pad.className = "drawing"; // else a finger on it scrolls the page
    by("results").replaceChildren();
    say("Draw with a finger or the mouse; the button clears it.");
  });
  let last = null;
  const place = (event) => [event.offsetX * (pad.width / pad.clientWidth), event.offsetY * (pad.height / pad.clientHeight)];
  pad.addEventListener("pointerdown", (event) => {
    if (!pad.className) return;
    pad.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last, last);
  });
  pad.addEventListener("pointermove", (event) => {
    if (last) stroke(last, (last = place(event)));
  });
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => {
    if (!last) return;
    last = null;
    const { width, height } = pad;
    image = { width, height, data: context.getImageData(0, 0, width, height).data, note: "" };
    say("Your drawing");
    run();
  });
}

function stroke(from, to) {
  Object.assign(context, { strokeStyle: by("pen").value, lineWidth: Math.max(pad.width, pad.height) / 11, lineCap: "round" });
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

async function sample(file, title) {
  const response = await fetch(`samples/${file}`).catch(() => null);
  if (response?.ok) await take(await response.blob(), title);
  else trouble(`samples/${file} is missing; build the page again.`);
}

async function take(blob, title) {
  const mine = ++turn;
  try {
    const read = await readImage(blob);
    if (mine !== turn) return; // another came meanwhile
    image = read;
    trouble("");
    preview();
    say(`${title}, ${read.note || `${read.width} x ${read.height} pixels`}`);
    await run();
  } catch (error) {
    trouble(error.message);
  }
}

function preview() {
  pad.className = "";
  const scale = 280 / Math.max(image.width, image.height);
  const whole = canvasOf(image.data, image.width, image.height);
  [pad.width, pad.height] = [Math.max(1, Math.round(image.width * scale)), Math.max(1, Math.round(image.height * scale))];
  context.imageSmoothingEnabled = scale < 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(whole, 0, 0, pad.width, pad.height);
}

/** Run the picked nets on the image, one after another; what came in between ends it. */
async function run() {
  const mine = ++turn, chosen = nets.filter((net) => picked.has(net)), results = by("results");
  by("picked").textContent = `${chosen.length} of ${nets.length}`;
  if (!image || obstacle()) return;
  if (!chosen.length) return results.replaceChildren(element("p", {}, "Pick a net below."));
  results.setAttribute("aria-busy", "true");
  const cards = [];
  for (const net of chosen) {
    if (!cards.length && !results.children.length) results.replaceChildren(element("p", { className: "soft" }, "Loading LiteRT.js, 9 MB, once ..."));
    try {
      const pixels = fitted(image, net.input_shape, net.resize);
      cards.push(resultCard(net, pixels, await classify(net, pixels)));
    } catch (error) {
      cards.push(element("article", {}, element("h3", {}, net.name), element("p", { className: "wrong" }, error.message)));
    }
    if (mine !== turn) return;
  }
  results.replaceChildren(...cards);
  results.setAttribute("aria-busy", "false");
}

function resultCard(net, pixels, { logits, probabilities, milliseconds }) {
  const [height, width, channels] = net.input_shape, order = logits.map((_, i) => i).sort((a, b) => logits[b] - logits[a]);
  const colours = new Uint8ClampedArray(4 * width * height).map((_, i) => i % 4 === 3 ? 255 : pixels[Math.floor(i / 4) * channels + (channels === 1 ? 0 : i % 4)]);
  const seen = Object.assign(canvasOf(colours, width, height), { className: "seen", title: "What the net sees" });
  seen.setAttribute("role", "img");
  seen.setAttribute("aria-label", `What the net sees: ${width} x ${height} pixels`);
  const name = element("a", { href: `#net/${net.name}` }, net.name);
  const bars = order.slice(0, TOP).map((i) => bar(probabilities[i], net.class_names[i], percent(probabilities[i])));
  const rows = order.map((i) => [net.class_names[i], percent(probabilities[i]), String(logits[i])]);
  const own = image.width === width && image.height === height;
  const how = own ? "the image's own size" : `resized as the package does, ${WAYS[net.resize]}`;
  const card = element("article", {},
    element("div", { className: "head" }, seen, element("div", {}, element("h3", {}, name),
      element("p", { className: "answer" }, net.class_names[order[0]], element("span", {}, ` ${percent(probabilities[order[0]])}`)),
      element("p", { className: "soft time" }, `${milliseconds.toPrecision(3)} ms here`))),
    ...bars,
    element("details", {}, element("summary", {}, "All classes"), table(["class", "probability", "int8 logit"], rows),
      element("p", { className: "soft" }, `${width} x ${height} pixels, ${how}.`)));
  card.dataset.net = net.name;
  card.dataset.logits = logits;
  return card;
}

function canvasOf(data, width, height) {
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  return canvas;
}

function say(text) {
  by("caption").textContent = text;
  pad.setAttribute("aria-label", `The image: ${text}`);
}

function trouble(text) {
  by("trouble").textContent = text;
  by("trouble").hidden = !text;
}
