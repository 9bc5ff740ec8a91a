// The embedding explorer: which images, and which patches of other images, are near to the chosen one in an encoder's features.

const THUMBNAIL = 108, SHOWN = 8; // side in pixels, and number, of the neighbours drawn

/**
 * Vectors of length 1.
 * @param {Float32Array|Int8Array} numbers vectors one after another, each in a scale of its own
 * @returns {Float32Array} the same, each divided by its length
 */
function unitVectors(numbers, width) {
  const vectors = Float32Array.from(numbers);
  for (let start = 0; start < vectors.length; start += width) {
    let square = 0;
    for (let i = start; i < start + width; i++) square += vectors[i] ** 2;
    const scale = 1 / Math.sqrt(square || 1);
    for (let i = start; i < start + width; i++) vectors[i] *= scale;
  }
  return vectors;
}

/** Cosines of vector `query` with all others. @param {Float32Array} vectors of length 1 */
function cosines(vectors, width, query) {
  const found = new Float32Array(vectors.length / width);
  for (let k = 0; k < found.length; k++) {
    let sum = 0;
    for (let i = 0, a = k * width, b = query * width; i < width; i++) sum += vectors[a + i] * vectors[b + i];
    found[k] = sum;
  }
  return found;
}

/** An encoder's vectors: 16-bit floats for images, 8-bit integers for patches. */
function readEncoder(model, { width, patch_width: patchWidth, grid, vectors, patches }) {
  const part = (name, [start, stop]) => bytes(model.get(name)).subarray(start, stop), small = part("patches", patches);
  return {
    grid,
    images: { width, vectors: unitVectors(fromHalf(part("vectors", vectors)), width) },
    patches: { width: patchWidth, vectors: unitVectors(new Int8Array(small.buffer, small.byteOffset, small.length), patchWidth) },
  };
}

/**
 * The nearest other images.
 * @returns {{image: number, score: number, patch: ?number}[]} nearest first; for a patch, each image with its nearest patch
 */
function nearest(encoder, count, query, patch) {
  const others = Array.from({ length: count }, (_, image) => image).filter((image) => image !== query);
  const found = patch === null ? nearestImages(encoder.images, others, query) : nearestPatches(encoder, others, query, patch);
  return found.sort((a, b) => b.score - a.score).slice(0, SHOWN);
}

function nearestImages({ vectors, width }, others, query) {
  const scores = cosines(vectors, width, query);
  return others.map((image) => ({ image, score: scores[image], patch: null }));
}

function nearestPatches({ patches: { vectors, width }, grid }, others, query, patch) {
  const n = grid[0] * grid[1], scores = cosines(vectors, width, query * n + patch);
  return others.map((image) => {
    const own = scores.subarray(image * n, (image + 1) * n), score = own.reduce((a, b) => Math.max(a, b));
    return { image, score, patch: own.indexOf(score) };
  });
}

/** Cosines of a patch with all patches of its own image, as colours: from the least to the largest. */
function ownMap({ patches: { vectors, width }, grid }, query, patch) {
  const n = grid[0] * grid[1], own = cosines(vectors, width, query * n + patch).subarray(query * n, (query + 1) * n);
  const low = Math.min(...own), high = Math.max(...own.filter((_, k) => k !== patch));
  return { low, high, image: heat(Array.from(own, (score) => (255 * Math.min(1, Math.max(0, score - low) / (high - low || 1)))), ...grid) };
}

/** One image of the sheet that holds them all. */
function cutout(sheet, columns, size, k) {
  const canvas = newCanvas(size, size);
  canvas.getContext("2d").drawImage(sheet, -(k % columns) * size, -Math.floor(k / columns) * size);
  return canvas;
}

/** An encoder's row: where in the query its patch is found again, then the nearest images. `draw` fills it. */
function encoderRow(model, { name }, encoder, images) {
  const make = (title, lattice, label) => panel({ title, lattice, width: THUMBNAIL, label: `${name}: ${label}` });
  const own = make("same image", encoder.grid, "similarity of the patches of the query image"), near = Array.from({ length: SHOWN }, (_, i) => make(String(i + 1), encoder.grid, `neighbour ${i + 1}`));
  const about = element("p", { className: "note" }), labels = model.get("labels");
  const box = (patch) => (patch === null ? [] : [{ row: Math.floor(patch / encoder.grid[1]), column: patch % encoder.grid[1], stroke: palette.orange, width: 2 }]);
  const draw = (query, patch) => {
    const found = nearest(encoder, images.length, query, patch), alike = found.filter(({ image }) => labels[image] && labels[image] === labels[query]).length;
    near.forEach((one, i) => {
      one.root.hidden = i >= found.length;
      if (i >= found.length) return;
      one.show({ image: images[found[i].image], marks: box(found[i].patch) });
      one.caption(`${found[i].score.toFixed(3)} ${labels[found[i].image] ?? ""}`);
      one.canvas.setAttribute("aria-label", `${name}: neighbour ${i + 1}, image ${found[i].image} ${labels[found[i].image] ?? ""}, cosine ${found[i].score.toFixed(3)}`);
    });
    own.root.hidden = patch === null;
    if (patch !== null) {
      const map = ownMap(encoder, query, patch);
      own.show({ image: map.image, marks: box(patch) });
      own.caption(`${map.low.toFixed(2)} to ${map.high.toFixed(2)}`);
    }
    about.textContent = labels[query] ? `${alike} of ${found.length} are of the class ${labels[query]}, like the query` : "";
    return { found, alike };
  };
  const root = element("section", { "aria-label": name }, element("h3", {}, name), about, element("div", { className: "panels" }, own.root, ...near.map((one) => one.root)));
  return { root, near, panels: () => [own, ...near].filter((one) => !one.root.hidden), draw };
}

/** An image by its number and, where it has one, its class. */
const named = (labels, image) => `image ${image}${labels[image] ? ` ${labels[image]}` : ""}`;

/** What is chosen and what was found, in words. */
function neighbourWords(model, rows, found) {
  const labels = model.get("labels"), query = model.get("query"), patch = model.get("patch"), [, columns] = model.get("encoders")[0].grid;
  const what = model.get("compare") === "images" ? "as a whole" : `its patch in row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
  const first = model.get("encoders").map(({ name }, k) => `${name}: ${named(labels, found[k].found[0]?.image)}`).join("; ");
  return `I${named(labels, query).slice(1)}, ${what}. Nearest by ${first}.`;
}

async function render({ model, el }) {
  const watch = watcher(model), size = model.get("size"), columns = model.get("columns"), count = model.get("labels").length, grid = model.get("encoders")[0].grid;
  const sheet = await bitmap(model.get("image")), images = Array.from({ length: count }, (_, k) => cutout(sheet, columns, size, k));
  const encoders = model.get("encoders").map((one) => readEncoder(model, one)), rows = encoders.map((one, k) => encoderRow(model, model.get("encoders")[k], one, images));
  const gallery = panel({ title: "Choose an image", lattice: [Math.ceil(count / columns), columns], width: 400, focusable: true, label: `gallery of ${count} images; arrow keys move, Enter chooses` });
  const query = panel({ title: "Choose a patch", lattice: grid, width: 240, focusable: true, label: "the chosen image; arrow keys move, Enter chooses a patch" });
  const status = element("p", { className: "status", role: "status", "aria-live": "polite" });
  const cursor = { image: null, patch: null };
  const name = (image) => named(model.get("labels"), image), chosenPatch = () => (model.get("compare") === "patches" ? model.get("patch") : null);
  const drawChoice = () => {
    const marks = (across, chosen, at) => [[at, palette.blue], [chosen, palette.vermillion]].filter(([place]) => place !== null).flatMap(([place, stroke]) => framed(place, across, stroke));
    gallery.show({ image: sheet, marks: marks(columns, model.get("query"), cursor.image) });
    query.show({ image: images[model.get("query")], marks: marks(grid[1], chosenPatch(), cursor.patch) });
    query.caption(name(model.get("query")));
  };
  const draw = () => {
    const chosen = model.get("query"), patch = chosenPatch(), started = performance.now();
    drawChoice();
    const found = rows.map((row, k) => row.draw(chosen, patch === null ? null : samePlace(patch, grid, encoders[k].grid)));
    status.textContent = neighbourWords(model, rows, found);
    Object.assign(el.dataset, { found: JSON.stringify(found.map((one) => one.found.map(({ image }) => image))), draws: 1 + Number(el.dataset.draws ?? 0), lag: performance.now() - started });
  };
  const move = (what, place, words) => ((cursor[what] = place), drawChoice(), (status.textContent = words));
  gridCursor(gallery, { move: (image) => image < count && move("image", image, `On ${name(image)}.`), press: (image) => image < count && set(model, { query: image }) });
  gridCursor(query, { move: (patch) => move("patch", patch, `On row ${Math.floor(patch / grid[1]) + 1}, column ${(patch % grid[1]) + 1}.`), press: (patch) => set(model, { patch, compare: "patches" }) });
  rows.forEach((row) => row.near.forEach((one, i) => one.canvas.addEventListener("click", () => set(model, { query: JSON.parse(el.dataset.found)[rows.indexOf(row)][i] }))));
  watch(["query", "patch", "compare"], soon(draw));
  el.classList.add("mim");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys stay away
  const controls = element("div", { className: "controls" }, choice(model, watch, "compare", { label: "Compare", options: () => [["images", "whole images"], ["patches", "a patch"]] }));
  const panels = () => [query, ...rows.flatMap((row) => row.panels())];
  el.replaceChildren(controls, element("div", { className: "stage" }, gallery.root, query.root), ...rows.map((row) => row.root), status, toolbar(model, watch, { panels, name: "neighbours" }));
  draw();
  return watch.stop;
}

/** The patch at the same place on another grid. */
function samePlace(patch, [rows, columns], [otherRows, otherColumns]) {
  const along = (place, from, to) => Math.min(to - 1, Math.floor(((place + 0.5) * to) / from));
  return along(Math.floor(patch / columns), rows, otherRows) * otherColumns + along(patch % columns, columns, otherColumns);
}
