// Images as the package's read_image makes them: Pillow's grey, and its bilinear resampling with antialiasing to within one
// level of 255 (its versions differ in which pass comes first; here it is the one across).
const BITS = 22; // of a weight's fraction in that resampling of 8-bit pixels
const MAX_BYTES = 64 * 2 ** 20, MAX_PIXELS = 89_478_485; // read_image's own limit
const LARGE = 4096 * 4096; // pixels of a canvas that phones still hold

/** Decode a file: {width, height, data (RGBA), note: what was done to it}. Throws an Error that says what to do. */
export async function readImage(blob) {
  const wanted = "give a PNG, JPEG or WebP of at most 89 megapixels";
  if (blob.size > MAX_BYTES) throw new Error(`The file has ${Math.round(blob.size / 2 ** 20)} MiB, more than 64; scale it down.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new Error(`That is no image that this browser can read, or too large a one; ${wanted}.`);
  }
  let { width, height } = bitmap, note = "";
  if (width * height > MAX_PIXELS) throw new Error(`The image has ${width} x ${height} pixels; ${wanted}.`);
  if (width * height > LARGE) {
    const scale = Math.sqrt(LARGE / (width * height));
    note = `${width} x ${height} pixels, shrunk by the browser first`;
    [width, height] = [Math.floor(width * scale), Math.floor(height * scale)];
  }
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return { width, height, data: context.getImageData(0, 0, width, height).data, note };
}

/** Fit an image to [height, width, channels] by "stretch", "crop" or "pad": uint8 pixels, channels last. */
export function fitted(image, [height, width, channels], resize) {
  let planes = planesOf(image, channels), from = [image.width, image.height];
  const to = [width, height], result = new Uint8Array(width * height * channels);
  let target = to, corner = [0, 0];
  if (resize === "crop" && String(from) !== String(to)) {
    const scale = Math.min(from[0] / to[0], from[1] / to[1]);
    const part = to.map((n) => Math.max(1, halfToEven(scale * n)));
    const [left, top] = from.map((n, i) => Math.floor((n - part[i]) / 2));
    planes = planes.map((plane) => Uint8Array.from({ length: part[0] * part[1] }, (_, i) =>
      plane[(top + Math.floor(i / part[0])) * image.width + left + (i % part[0])]));
    from = part;
  } else if (resize === "pad" && String(from) !== String(to)) {
    const scale = Math.min(to[0] / from[0], to[1] / from[1]);
    target = from.map((n) => Math.max(1, halfToEven(scale * n)));
    corner = to.map((n, i) => Math.floor((n - target[i]) / 2));
  }
  planes.forEach((plane, channel) => {
    if (String(from) !== String(target)) {
      plane = resampledAcross(resampledAcross(plane, ...from, target[0]), from[1], target[0], target[1]);
    }
    for (let y = 0; y < target[1]; y++) for (let x = 0; x < target[0]; x++) {
      result[((y + corner[1]) * width + x + corner[0]) * channels + channel] = plane[y * target[0] + x];
    }
  });
  return result;
}

/** The image's channels, each by itself; one is its luma in Pillow's fixed point. */
function planesOf({ width, height, data }, channels) {
  const planes = Array.from({ length: channels }, () => new Uint8Array(width * height));
  for (let i = 0; i < width * height; i++) {
    if (channels === 1) planes[0][i] = (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 32768) >> 16;
    else for (let channel = 0; channel < 3; channel++) planes[channel][i] = data[4 * i + channel];
  }
  return planes;
}

/** Resample each row to `to` pixels and write it as a column: twice gives the plane at another size. */
function resampledAcross(plane, width, height, to) {
  const result = new Uint8Array(to * height), support = Math.max(width / to, 1);
  for (let i = 0; i < to; i++) {
    const center = (i + 0.5) * (width / to);
    const first = Math.max(0, Math.trunc(center - support + 0.5)), last = Math.min(width, Math.trunc(center + support + 0.5));
    const shares = [];
    for (let x = first; x < last; x++) shares.push(Math.max(0, 1 - Math.abs((x - center + 0.5) * (1 / support))));
    const total = shares.reduce((sum, share) => sum + share, 0);
    const weights = Int32Array.from(shares, (share) => Math.trunc(0.5 + (share / total) * 2 ** BITS));
    for (let y = 0; y < height; y++) {
      let sum = 1 << (BITS - 1);
      for (let k = 0; k < weights.length; k++) sum += plane[y * width + first + k] * weights[k];
      result[i * height + y] = sum >> BITS;
    }
  }
  return result;
}

function halfToEven(number) {
  const rounded = Math.round(number);
  return rounded - number === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
