// Colours, pictures and files: what every explorer draws with. The files of an explorer are joined into one module, so this one has no imports and no exports.

/** Okabe and Ito's colours: told apart by every kind of colour vision. */
const palette = { blue: "#0072B2", vermillion: "#D55E00", green: "#009E73", pink: "#CC79A7", orange: "#E69F00", sky: "#56B4E9", black: "#000000" };
const HIDDEN = "#9a9fa8"; // a patch that is not seen
const anchors = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];

/** Matplotlib's viridis in 256 steps, as a canvas keeps pixels: opaque, red in the lowest byte. */
const viridis = Uint32Array.from({ length: 256 }, (_, i) => {
  const place = (i / 255) * (anchors.length - 1), low = Math.min(Math.floor(place), anchors.length - 2);
  const [r, g, b] = anchors[low].map((from, c) => Math.round(from + (place - low) * (anchors[low + 1][c] - from)));
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
});

/** The bytes of a trait or of a message's buffer. */
function bytes(value) {
  if (value instanceof Uint8Array) return value;
  return value instanceof ArrayBuffer ? new Uint8Array(value) : new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
}

/** A picture to draw, from the bytes of a PNG, JPEG or any file that the browser reads. */
const bitmap = (file) => createImageBitmap(file instanceof Blob ? file : new Blob([bytes(file)]));

function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** A canvas of `columns` x `rows` pixels in viridis. `values`: 0 to 255, in reading order; negative ones stay transparent. */
function heat(values, rows, columns) {
  const canvas = newCanvas(columns, rows), picture = new ImageData(columns, rows), pixels = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < values.length; i++) if (values[i] >= 0) pixels[i] = viridis[Math.round(values[i])];
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

/**
 * A picture over a lattice of patches.
 * @typedef {Object} Picture
 * @property {CanvasImageSource} [image] stretched over the whole lattice
 * @property {CanvasImageSource} [over] a second one above it, with `alpha`
 * @property {boolean} [smooth] interpolate `image`; otherwise its pixels stay squares
 * @property {{row: number, column: number, rows?: number, columns?: number, fill?: string, stroke?: string, alpha?: number, width?: number}[]} [marks]
 *   rectangles in patches; `width` of the stroke in pixels
 */

/** Draw a picture over `width` x `height` pixels of a 2D context; `lattice`: rows and columns of patches. */
function drawPicture(context, picture, [rows, columns], width, height) {
  const layer = (image, smooth, alpha) => {
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, width, height);
    context.globalAlpha = 1;
  };
  context.fillStyle = HIDDEN;
  context.fillRect(0, 0, width, height);
  if (picture.image) layer(picture.image, picture.smooth ?? false, 1);
  if (picture.over) layer(picture.over, false, picture.alpha ?? 0.6);
  for (const mark of picture.marks ?? []) {
    const edges = boxOf(mark, rows, columns, width, height);
    context.globalAlpha = mark.alpha ?? 1;
    if (mark.fill) (context.fillStyle = mark.fill), context.fillRect(...edges);
    if (mark.stroke) (context.strokeStyle = mark.stroke), (context.lineWidth = mark.width ?? 2), context.strokeRect(...edges);
    context.globalAlpha = 1;
  }
}

/** Left, top, width and height in pixels of a mark; whole pixels, so that neighbours meet without a seam. */
function boxOf({ row, column, rows: tall = 1, columns: wide = 1 }, rows, columns, width, height) {
  const x = (i) => Math.round((i / columns) * width), y = (i) => Math.round((i / rows) * height);
  return [x(column), y(row), x(column + wide) - x(column), y(row + tall) - y(row)];
}

/** A frame around a patch that is seen on every picture. */
const framed = (cell, columns, colour) => [["#ffffff", 5], [colour, 2.5]].map(([stroke, width]) => ({ row: Math.floor(cell / columns), column: cell % columns, stroke, width }));

const escapeXML = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

/** A picture as SVG elements: images stay images, marks become rectangles. */
function pictureSVG(picture, [rows, columns], width, height) {
  const image = (source, smooth, alpha) => {
    const canvas = newCanvas(source.width, source.height);
    canvas.getContext("2d").drawImage(source, 0, 0);
    const style = smooth ? "" : ' style="image-rendering:pixelated"';
    return `<image width="${width}" height="${height}" preserveAspectRatio="none" opacity="${alpha}"${style} href="${canvas.toDataURL()}"/>`;
  };
  const rectangle = (mark) => {
    const [x, y, w, h] = boxOf(mark, rows, columns, width, height), line = mark.stroke ? ` stroke="${mark.stroke}" stroke-width="${mark.width ?? 2}"` : "";
    return `<rect x="${x}" y="${y}" width="${w}" height="${h}" fill="${mark.fill ?? "none"}" opacity="${mark.alpha ?? 1}"${line}/>`;
  };
  return [
    `<rect width="${width}" height="${height}" fill="${HIDDEN}"/>`,
    picture.image ? image(picture.image, picture.smooth, 1) : "",
    picture.over ? image(picture.over, false, picture.alpha ?? 0.6) : "",
    ...(picture.marks ?? []).map(rectangle),
  ].join("");
}

/**
 * A titled picture in the page.
 * `lattice`: rows and columns; `width`: in CSS pixels; `label`: for screen readers; `focusable`: takes the keyboard.
 * `show(picture)` draws; `caption(text)` is the small line below.
 */
function panel({ title = "", lattice, width, label = title, focusable = false }) {
  const ratio = window.devicePixelRatio || 1, note = element("figcaption", { className: "note" });
  const canvas = newCanvas(1, 1), context = canvas.getContext("2d"), heading = element("div", { className: "heading" }, title);
  const root = element("figure", { className: "panel" }, heading, canvas, note);
  const self = { root, canvas, title, lattice, width, height: 0, picture: {}, note: "" };
  canvas.setAttribute("role", focusable ? "application" : "img");
  canvas.setAttribute("aria-label", label);
  if (focusable) canvas.tabIndex = 0;
  root.style.width = `${width}px`;
  self.resize = (lattice) => {
    self.lattice = lattice;
    self.height = Math.round((width * lattice[0]) / lattice[1]);
    canvas.width = width * ratio;
    canvas.height = self.height * ratio;
    Object.assign(canvas.style, { width: `${width}px`, aspectRatio: `${width} / ${self.height}` });
  };
  self.show = (picture) => {
    self.picture = picture;
    drawPicture(context, picture, self.lattice, canvas.width, canvas.height);
  };
  self.name = (text) => (self.title = heading.textContent = text);
  self.caption = (text) => (self.note = note.textContent = text);
  self.resize(lattice);
  return self;
}

/** Panels side by side in rows of at most `room` pixels: where each goes, and the size of the whole. */
function arrange(panels, room = 1040, gap = 14, line = 17) {
  const places = [];
  let x = gap, y = gap, tall = 0, wide = 0;
  for (const one of panels) {
    if (x > gap && x + one.width > room) (x = gap), (y += tall + gap), (tall = 0);
    places.push({ one, x, y });
    x += one.width + gap;
    wide = Math.max(wide, x);
    tall = Math.max(tall, one.height + 2 * line);
  }
  return { places, width: wide, height: y + tall, line };
}

/** All panels as one SVG text. */
function panelsSVG(panels) {
  const { places, width, height, line } = arrange(panels);
  const words = (text, x, y, size) => `<text x="${x}" y="${y}" font-family="sans-serif" font-size="${size}" fill="#111">${escapeXML(text)}</text>`;
  const parts = places.map(({ one, x, y }) => words(one.title, x, y + 12, 12)
    + `<g transform="translate(${x} ${y + line})">${pictureSVG(one.picture, one.lattice, one.width, one.height)}</g>` + words(one.note, x, y + one.height + line + 12, 10));
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"><rect width="100%" height="100%" fill="#fff"/>${parts.join("")}</svg>`;
}

/** All panels as one PNG, `scale` device pixels to a CSS pixel. */
function panelsPNG(panels, scale = 2) {
  const { places, width, height, line } = arrange(panels), canvas = newCanvas(width * scale, height * scale), context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  for (const { one, x, y } of places) {
    const words = (text, at, size) => ((context.fillStyle = "#111"), (context.font = `${size}px sans-serif`), context.fillText(text, x, at));
    words(one.title, y + 12, 12);
    context.drawImage(one.canvas, x, y + line, one.width, one.height);
    words(one.note, y + one.height + line + 12, 10);
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/** Offer a file to the reader. */
function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
