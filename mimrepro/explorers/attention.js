// The attention explorer: where every head of a block looks from the patch under the cursor.

/**
 * The attention of one block, as Python packed it: row by row scaled to 255.
 * `queryCells` and `keyCells`: `windows * queries` and `windows * keys` places in `grid`, -1 for the class token, -2 for nobody;
 * `peaks`: the largest weight of each row among patches, `taken`: what the class token takes of it, both `windows * heads * queries`;
 * `weights`: `windows * heads * queries * keys`.
 */
function readLayer(data, grid) {
  const buffer = bytes(data).slice().buffer, [windows, heads, queries, keys] = new Int32Array(buffer, 0, 4);
  let at = 16;
  const part = (Kind, length) => {
    const view = new Kind(buffer, at, length);
    at += view.byteLength;
    return view;
  };
  const rows = windows * heads * queries;
  return { grid, windows, heads, queries, keys, queryCells: part(Int32Array, windows * queries), keyCells: part(Int32Array, windows * keys),
    peaks: part(Float32Array, rows), taken: part(Float32Array, rows), weights: part(Uint8Array, rows * keys) };
}

/** Where the weights of a head begin for the query in `slot`, and of which row they are. */
function rowOf(layer, slot, head) {
  const window = Math.floor(slot / layer.queries), row = (window * layer.heads + head) * layer.queries + (slot % layer.queries);
  return { row, first: row * layer.keys, cells: layer.keyCells.subarray(window * layer.keys, (window + 1) * layer.keys) };
}

/** One head's weights over the grid, 0 to 255 of its largest; -1 where it does not look. */
function headMap(layer, slot, head) {
  const map = new Float32Array(layer.grid[0] * layer.grid[1]).fill(-1), { first, cells } = rowOf(layer, slot, head);
  cells.forEach((cell, i) => cell >= 0 && (map[cell] = layer.weights[first + i]));
  return map;
}

/** The mean of all heads over the grid, in the same scale, and its largest weight. */
function meanMap(layer, slot) {
  const map = new Float32Array(layer.grid[0] * layer.grid[1]).fill(-1);
  for (let head = 0; head < layer.heads; head++) {
    const { row, first, cells } = rowOf(layer, slot, head), scale = layer.peaks[row] / 255 / layer.heads;
    cells.forEach((cell, i) => cell >= 0 && (map[cell] = Math.max(0, map[cell]) + scale * layer.weights[first + i]));
  }
  const peak = map.reduce((a, b) => Math.max(a, b), 0);
  return { map: map.map((x) => (x < 0 ? -1 : (255 * x) / (peak || 1))), peak };
}

/** Whether nobody but the class token asks: ExtreMA's class-attention blocks. */
const onlyClass = (layer) => layer.queryCells.length === 1 && layer.queryCells[0] === -1;

/** The cell of another grid in which the middle of a cell lies. */
function sameplace(cell, from, to) {
  const row = Math.floor(((Math.floor(cell / from[1]) + 0.5) / from[0]) * to[0]), column = Math.floor((((cell % from[1]) + 0.5) / from[1]) * to[1]);
  return row * to[1] + column;
}

/** The visible patch nearest to a hidden one. */
function nearestVisible(query, hidden, [rows, columns]) {
  const gone = new Set(hidden), far = (cell) => Math.hypot(Math.floor(cell / columns) - Math.floor(query / columns), (cell % columns) - (query % columns));
  return Array.from({ length: rows * columns }, (_, cell) => cell).filter((cell) => !gone.has(cell)).reduce((best, cell) => (far(cell) < far(best) ? cell : best));
}

/** Blocks that have been fetched: `get(model, block)` gives one, or null where this page has none. */
function layerStore(model) {
  const known = new Map();
  const keyOf = (number, block) => [number, block, ...(model.get("masked") ? [model.get("ratio"), model.get("seed")] : [])].join("/");
  const fetch = async (number, block, grid) => {
    const ahead = model.get("data")[keyOf(number, block)];
    if (ahead) return readLayer(ahead, grid);
    const question = { model: number, block, masked: model.get("masked"), ratio: model.get("ratio"), seed: model.get("seed") };
    const found = await ask(model, question);
    return found && readLayer(found.buffers[0], grid);
  };
  return {
    forget: () => known.clear(),
    get(number, block) {
      const key = keyOf(number, block), { grid } = model.get("models")[number].layers[block];
      if (!known.has(key)) known.set(key, fetch(number, block, grid));
      return known.get(key);
    },
  };
}

/** An SVG element. */
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Mean attention distance of every head, block by block; a click chooses a block. `far`: the top of the scale in pixels. */
function distanceChart(layers, far, chosen, choose) {
  const width = 34 + 22 * layers.length, height = 128, x = (i) => 38 + 22 * i, y = (d) => 104 - (92 * d) / far;
  const text = (at, up, words, anchor = "middle") => svg("text", { x: at, y: up, "text-anchor": anchor, "font-size": 10, fill: "currentColor" }, words);
  const column = ({ distance, name }, i) => {
    const dots = distance.map((d) => svg("circle", { cx: x(i), cy: y(d), r: 2.6, fill: "var(--accent)", "fill-opacity": 0.65 }));
    const back = svg("rect", { x: x(i) - 10, y: 4, width: 20, height: 104, rx: 3, fill: "currentColor", "fill-opacity": i === chosen ? 0.16 : 0 });
    const group = svg("g", { style: "cursor:pointer" }, svg("title", {}, name), back, ...dots, text(x(i), 121, name.replace("block ", "").replace("class ", "c")));
    group.addEventListener("click", () => choose(i));
    return group;
  };
  const axis = [0, far / 2, far].flatMap((d) => [text(26, y(d) + 3, String(Math.round(d)), "end"), svg("line", { x1: 29, x2: width, y1: y(d), y2: y(d), stroke: "currentColor", "stroke-opacity": 0.2 })]);
  return svg("svg", { width, height, role: "img", "aria-label": "Mean attention distance of every head in every block" }, ...axis, ...layers.map(column));
}

/** The part of the page that belongs to one model: mean, class token, heads, distances. */
function modelSection(model, number, pick) {
  const { name, layers } = model.get("models")[number], heads = element("div", { className: "panels heads" }), chart = element("div", { className: "chart" });
  const root = element("section", { className: "model", "aria-label": name }, element("h3", {}, name), heads, element("div", { className: "note" }, "Mean attention distance of every head in pixels, block by block"), chart);
  let panels = [], shape = "";
  const far = Math.max(1, ...model.get("models").flatMap((one) => one.layers.flatMap((layer) => layer.distance)));
  const build = (layer) => {
    const titles = ["mean", ...(model.get("has_class") ? ["class token"] : []), ...Array.from({ length: layer.heads }, (_, i) => `head ${i + 1}`)];
    panels = titles.map((title) => panel({ title, label: `${name}: ${title}`, lattice: layer.grid, width: 97 }));
    for (const one of panels) one.title = model.get("models").length > 1 ? `${number + 1}: ${one.title}` : one.title; // in an exported picture
    heads.replaceChildren(...panels.map((one) => one.root));
  };
  const picture = (layer, map, image) => {
    const over = heat(map, ...layer.grid), unseen = [], [, columns] = layer.grid;
    if (!model.get("overlay")) return { image: over };
    if (model.get("masked")) map.forEach((value, cell) => value < 0 && unseen.push({ row: Math.floor(cell / columns), column: cell % columns, fill: HIDDEN }));
    return { image, smooth: true, over, alpha: 0.7, marks: unseen };
  };
  const show = (layer, block, cell, image) => {
    if (`${layer.heads}/${layer.grid}` !== shape) build(layer), (shape = `${layer.heads}/${layer.grid}`);
    const token = layer.queryCells.indexOf(-1), slot = onlyClass(layer) ? token : layer.queryCells.indexOf(cell), { distance } = layers[block];
    const fill = (one, at, map, words) => (one.show(at < 0 ? {} : picture(layer, map(), image)), one.caption(at < 0 ? "–" : words()));
    const mean = (one, at) => {
      const found = at < 0 ? null : meanMap(layer, at);
      fill(one, at, () => found.map, () => `up to ${found.peak.toPrecision(2)}`);
    };
    const first = panels.length - layer.heads;
    mean(panels[0], slot);
    if (first === 2) mean(panels[1], token);
    for (let head = 0; head < layer.heads; head++)
      fill(panels[first + head], slot, () => headMap(layer, slot, head), () => `${layer.peaks[rowOf(layer, slot, head).row].toPrecision(2)}` + (distance.length ? ` · ${Math.round(distance[head])} px` : ""));
    return slot >= 0;
  };
  const mark = (block) => chart.replaceChildren(distanceChart(layers, far, block, pick));
  return { root, show, mark, name, panels: () => panels };
}

/** Everything above the pictures. */
function controlsOf(model, watch, target, first) {
  const named = () => model.get("blocks").map((block) => [block, nameOf(model.get("models"), block)]);
  const parts = [
    choice(model, watch, "block", { label: "Block", options: named }),
    toggle(model, watch, "overlay", { label: "over the image" }),
  ];
  if (model.get("has_class")) parts.push(toggle(model, watch, "from_class", { label: "ask the class token" }));
  if (model.get("can_mask")) parts.push(toggle(model, watch, "masked", { label: model.get("live") ? "hide patches" : `hide ${percentage(model.get("ratio"))} of the patches` }));
  if (model.get("can_mask") && model.get("live")) parts.push(slider(model, watch, "ratio", { label: "Share", min: 0.05, max: 0.95, step: 0.05, words: percentage }));
  if (model.get("live")) parts.push(imageInput(target, () => first.sides, takeImage(model)));
  return element("div", { className: "controls" }, ...parts);
}

/** What a block is called: in two models of different depth by both names. */
const nameOf = (models, block) => [...new Set(models.map(({ layers }) => layers[Math.min(block, layers.length - 1)].name))].join(" / ");

const percentage = (ratio) => `${Math.round(100 * ratio)} %`;

async function render({ model, el }) {
  const watch = watcher(model), store = layerStore(model), models = model.get("models"), grid = models[0].grid;
  const main = panel({ title: "Point at a patch", label: "Patches of the image. Arrow keys move the query", lattice: grid, width: 300, focusable: true });
  main.title = models.map((one, number) => (models.length > 1 ? `${number + 1}: ${one.name}` : one.name)).join(", "); // in an exported picture
  const status = element("p", { className: "status", role: "status", "aria-live": "polite" }), pick = (block) => model.get("blocks").includes(block) && set(model, { block });
  const sections = models.map((_, number) => modelSection(model, number, pick));
  let image = await bitmap(model.get("image")), layers = [];

  const blockOf = (number) => Math.min(model.get("block"), models[number].layers.length - 1);
  const draw = () => {
    const query = model.get("query"), [, columns] = grid, hidden = model.get("masked") ? model.get("hidden") : [];
    const marks = hidden.map((cell) => ({ row: Math.floor(cell / columns), column: cell % columns, fill: HIDDEN }));
    marks.push(...framed(query, columns, palette.vermillion));
    main.show({ image, smooth: true, marks });
    const answered = layers.map((layer, number) => layer && sections[number].show(layer, blockOf(number), model.get("from_class") ? -1 : sameplace(query, grid, layer.grid), image));
    status.textContent = wordsFor(model, models, query, columns, layers, answered);
    el.dataset.draws = Number(el.dataset.draws ?? 0) + 1;
    el.dataset.query = query;
  };
  const redraw = soon(draw);
  const load = latest(async () => {
    try {
      layers = await Promise.all(models.map((_, number) => store.get(number, blockOf(number))));
      sections.forEach((section, number) => section.mark(blockOf(number)));
      draw();
    } catch (error) {
      status.textContent = error.message;
    }
  });
  gridCursor(main, { move: (query) => set(model, { query, from_class: false }) }).to(model.get("query"));
  watch(["query", "from_class", "overlay", "hidden"], redraw);
  watch(["masked"], () => model.get("masked") && model.get("hidden").includes(model.get("query")) && set(model, { query: nearestVisible(model.get("query"), model.get("hidden"), grid) }));
  watch(["block", "masked", "ratio", "seed"], soon(load));
  watch(["image"], async () => ((image = await bitmap(model.get("image"))), store.forget(), load()));
  el.classList.add("mim");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys stay away
  const legend = element("p", { className: "note" }, "Every map is scaled to its own largest weight. Below each head: that weight, and the head's mean attention distance over all queries of the whole image.");
  const tools = toolbar(model, watch, { panels: () => [main, ...sections.flatMap((section) => section.panels())], name: "attention" });
  el.replaceChildren(controlsOf(model, watch, el, models[0]), element("div", { className: "stage" }, element("div", { className: "side" }, main.root, status), element("div", { className: "sections" }, ...sections.map((s) => s.root), legend)), tools);
  await load();
  return watch.stop;
}

/** What is seen, in words. */
function wordsFor(model, models, query, columns, layers, answered) {
  const where = model.get("from_class") ? "The class token" : `Patch in row ${Math.floor(query / columns) + 1}, column ${(query % columns) + 1}`;
  const missing = models.filter((_, number) => answered[number] === false).map(({ name }) => name);
  const why = model.get("from_class") ? "takes no part here" : "is hidden", alone = models.filter((_, number) => layers[number] && onlyClass(layers[number])).map(({ name }) => name);
  const asks = alone.length && !model.get("from_class") ? ` Here only the class token asks (${alone.join(", ")}).` : "";
  return (missing.length ? `${where} ${why} (${missing.join(", ")}).` : `${where}, ${nameOf(models, model.get("block"))}.`) + asks;
}
