// int8 nets on LiteRT.js, which is loaded when the first image is classified.
const LOADER = "./runtime/core/litert_wasm_compat_internal.js";
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 22, 1, 20, 0, 253, 12, ...Array(16).fill(0), 11];
const TIMED_MS = 30; // that a net is run for, to time it

let litert; // a promise of the library
const compiled = new Map(); // promises of nets, by path

/** Say why this browser cannot run nets and what to do, or "". */
export function obstacle() {
  const enough = typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(SIMD));
  return enough ? "" : "This browser has no WebAssembly with SIMD, or has it switched off, so no net can run here; open the page in a current Firefox, Chrome, Edge or Safari. All else works.";
}

/** Run a net on pixels (uint8, channels last): {logits: integers, probabilities, milliseconds of one run}. */
export async function classify(net, pixels) {
  const { Tensor } = await (litert ??= load());
  if (!compiled.has(net.run.path)) compiled.set(net.run.path, compile(net));
  const model = await compiled.get(net.run.path);
  const numbers = net.run.pixels ? pixels.map((pixel) => net.run.pixels[pixel]) : pixels;
  const input = new Tensor(numbers, [1, ...net.input_shape]);
  const found = Array.from(await once(model, input));
  let runs = 0;
  const start = performance.now();
  do {
    await once(model, input);
    runs++;
  } while (performance.now() - start < TIMED_MS);
  const milliseconds = (performance.now() - start) / runs;
  input.delete();
  const highest = Math.max(...found);
  const shares = found.map((number) => Math.exp((number - highest) * net.run.scale));
  const total = shares.reduce((sum, share) => sum + share, 0);
  return { logits: found.map((number) => number - 128), probabilities: shares.map((share) => share / total), milliseconds };
}

async function once(model, input) {
  const [output] = await model.run(input);
  const numbers = output.toTypedArray().slice();
  output.delete();
  return numbers;
}

async function load() {
  try {
    const library = await import("@litertjs/core");
    self.Module = { printErr: (text) => (/^(ERROR|FATAL)/.test(text) ? console.error(text) : console.debug(text)) }; // it logs there
    await library.loadLiteRt(new URL(LOADER, import.meta.url).href);
    return library;
  } catch (error) {
    litert = undefined;
    throw new Error(`LiteRT.js could not be loaded (${error?.message ?? "a file is missing"}); build the page again.`);
  }
}

async function compile(net) {
  try {
    const response = await fetch(net.run.path);
    if (!response.ok) throw new Error(`the server answers ${response.status}`);
    const { loadAndCompile } = await litert;
    return await loadAndCompile(new Uint8Array(await response.arrayBuffer()), { accelerator: "wasm" });
  } catch (error) {
    compiled.delete(net.run.path);
    throw new Error(`${net.run.path} does not run (${error?.message ?? error}); build the page again.`);
  }
}
