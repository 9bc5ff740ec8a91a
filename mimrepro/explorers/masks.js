// The masking explorer: who sees what of an image, in every method.

const WIDTH = 392; // of the picture to paint on, in pixels

/** The masks that the state asks for, changed by hand where it says so, or the reason why there are none. */
function currentMasks(model) {
  const side = model.get("side") / model.get("patch"), n = side * side;
  try {
    const drawn = samplers[model.get("sampler")](generator(model.get("seed")), { rows: side, columns: side, ratio: model.get("ratio"), masks: model.get("masks") });
    for (const place of model.get("flipped")) if (place < drawn.length * n) drawn[Math.floor(place / n)][place % n] ^= 1;
    return { masks: drawn };
  } catch (error) {
    return { masks: Array.from({ length: model.get("masks") }, () => new Uint8Array(n)), problem: error.message };
  }
}

/**
 * Pictures of what the branches of a method are given, before masking: `Method.views` in Python, asked for, or made ahead.
 * @returns {(method: string, seed: number) => Promise<Object<string, ImageBitmap>>}
 */
function viewStore(model) {
  let known = {}, of = model.get("image");
  const fetch = async (method, seed) => {
    const found = await ask(model, { method, seed }), ahead = model.get("views")[`${method}/${seed}`] ?? {};
    const files = found ? Object.fromEntries(found.answer.names.map((name, i) => [name, found.buffers[i]])) : model.get("dropped") ? {} : ahead;
    return Object.fromEntries(await Promise.all(Object.entries(files).map(async ([name, file]) => [name, await bitmap(file)])));
  };
  return (method, seed) => {
    if (model.get("image") !== of) (known = {}), (of = model.get("image"));
    return (known[`${method}/${seed}`] ??= fetch(method, seed));
  };
}

/** Rectangles over the patches where `mask` has the value `hide`. */
function covers(mask, columns, alpha, hide = 1) {
  const marks = [];
  mask.forEach((value, i) => value === hide && marks.push({ row: Math.floor(i / columns), column: i % columns, fill: HIDDEN, alpha }));
  return marks;
}

/** Operations of an encoder's forward pass on `tokens` visible patches: a polynomial that Python counted. */
function operations(model, tokens) {
  const found = model.get("costs")[`${model.get("methods")[model.get("method")].encoder}/${model.get("patch")}`];
  return found ? found[0] + found[1] * tokens + found[2] * tokens * tokens : null;
}

const giga = (flops) => `${(flops / 1e9).toPrecision(3)} GFLOP`;

/** The line below a branch: tokens, and operations saved. */
function branchNote(model, branch, mask) {
  const n = mask.length, hidden = mask.reduce((a, b) => a + b, 0);
  if (branch.shows === "hidden") return `${hidden} patches asked for`;
  const tokens = branch.shows === "all" ? n : n - hidden, cost = operations(model, tokens), whole = operations(model, n);
  if (cost === null) return `${tokens} of ${n} tokens`;
  return `${tokens} of ${n} tokens · ${giga(cost)}` + (tokens < n ? ` (−${Math.round(100 * (1 - cost / whole))} %)` : "");
}

/** All encoders together, in words. */
function costNote(model, branches, masks) {
  const seeing = branches.filter((branch) => branch.shows !== "hidden"), n = masks[0].length;
  const count = (tokens) => seeing.reduce((sum, branch) => sum + operations(model, tokens(branch)), 0);
  const now = count((branch) => (branch.shows === "all" ? n : n - masks[branch.mask].reduce((a, b) => a + b, 0))), whole = count(() => n);
  const bare = model.get("dropped") && !model.get("live") ? " Your image is shown as it is: flips, shifts and colours need Jupyter." : "";
  return `Forward pass of the encoders, at base size: ${giga(now)} an image instead of ${giga(whole)}.${bare}`;
}

/** The branches that are drawn: those of the method, one for each mask where it says so. */
function branchesOf(model) {
  const { branches } = model.get("methods")[model.get("method")];
  return branches.flatMap((branch) => (branch.mask === "each" ? Array.from({ length: model.get("masks") }, (_, mask) => ({ ...branch, mask, title: `${branch.title} ${mask + 1}` })) : [branch]));
}

/** Settings of a method, when it is chosen. */
function settingsOf(model, name) {
  const { samplers: known, ratio, patch, masks } = model.get("methods")[name];
  return { sampler: known[0][0], ratio, patch, masks, mask: 0, flipped: [] };
}

/** Everything above the pictures. */
function controlsOf(model, watch, target) {
  const now = () => model.get("methods")[model.get("method")], fresh = () => ({ flipped: [] }), option = (list) => list.map((value) => [value, String(value)]);
  const count = (n) => Array.from({ length: n }, (_, i) => i);
  const parts = [
    choice(model, watch, "method", { label: "Method", options: () => Object.entries(model.get("methods")).map(([name, { title }]) => [name, title]), also: (name) => settingsOf(model, name) }),
    choice(model, watch, "sampler", { label: "Sampler", options: () => now().samplers, depends: ["method"], also: fresh }),
    slider(model, watch, "ratio", { label: "Hidden", min: 0, max: 0.95, step: 0.01, words: percent, also: fresh }),
    slider(model, watch, "seed", { label: "Seed", min: 0, max: model.get("seeds") - 1, step: 1, also: fresh }),
    choice(model, watch, "patch", { label: "Patch", options: () => now().patches.map((p) => [p, `${p} px`]), depends: ["method"], also: fresh }),
    choice(model, watch, "masks", { label: "Masks", options: () => option(now().several ? [1, 2, 3, 4, 5, 6, 8] : [now().masks]), depends: ["method"], also: () => ({ flipped: [], mask: 0 }) }),
    choice(model, watch, "mask", { label: "Edit mask", options: () => count(model.get("masks")).map((i) => [i, String(i + 1)]), depends: ["method", "masks"] }),
    imageInput(target, () => [model.get("side"), model.get("side")], takeImage(model)),
  ];
  return element("div", { className: "controls" }, ...parts);
}

async function render({ model, el }) {
  const watch = watcher(model), store = viewStore(model), lattice = () => Array(2).fill(model.get("side") / model.get("patch"));
  const main = panel({ title: "Click or drag to hide and show patches", label: "Patches of the image. Arrow keys move, Enter hides or shows", lattice: lattice(), width: WIDTH, focusable: true });
  const strip = element("div", { className: "panels" }), status = element("p", { className: "status", role: "status", "aria-live": "polite" });
  let cursor = null, painting = 1, panels = [], views = {}, original = await bitmap(model.get("image"));

  const rebuild = () => {
    main.resize(lattice());
    panels = branchesOf(model).map((branch) => Object.assign(panel({ title: branch.title, label: `${branch.title}: ${branch.about}`, lattice: lattice(), width: 238 }), { branch }));
    const said = new Set();
    for (const { root, branch } of panels) if (said.size < said.add(branch.about).size) root.append(element("p", { className: "note" }, branch.about));
    strip.replaceChildren(...panels.map((one) => one.root));
  };
  const viewOf = (name) => views[name] ?? original;
  const draw = () => {
    const { masks, problem } = currentMasks(model), [, columns] = lattice(), edited = Math.min(model.get("mask"), masks.length - 1), mask = masks[edited];
    const first = panels.find((one) => one.branch.mask === edited && one.branch.shows === "visible") ?? panels[0];
    const marks = covers(mask, columns, 0.86);
    if (cursor !== null) marks.push(...framed(cursor, columns, palette.vermillion));
    main.show({ image: viewOf(first.branch.view), smooth: true, marks });
    for (const { branch, show, caption } of panels) {
      const own = masks[branch.mask ?? 0];
      show({ image: viewOf(branch.view), smooth: true, marks: branch.shows === "all" ? [] : covers(own, columns, 1, branch.shows === "visible" ? 1 : 0) });
      caption(problem ? "" : branchNote(model, branch, own));
    }
    status.classList.toggle("alarm", Boolean(problem));
    status.textContent = problem ?? describe(model, masks, edited, cursor, columns) + (operations(model, 1) === null ? "" : " " + costNote(model, panels.map((one) => one.branch), masks));
    el.dataset.draws = Number(el.dataset.draws ?? 0) + 1;
  };
  const redraw = soon(draw);
  const refresh = latest(async () => {
    original = await bitmap(model.get("image"));
    views = await store(model.get("method"), model.get("seed"));
    draw();
  });
  gridCursor(main, {
    move: (patch) => ((cursor = patch), redraw()),
    press: (patch, first) => {
      const edited = Math.min(model.get("mask"), model.get("masks") - 1), place = edited * lattice()[0] ** 2 + patch, mask = currentMasks(model).masks[edited];
      if (first) painting = 1 - mask[patch];
      if (mask[patch] === painting) return;
      const flipped = model.get("flipped");
      set(model, { flipped: flipped.includes(place) ? flipped.filter((known) => known !== place) : [...flipped, place] });
    },
  });
  watch(["method", "masks", "patch"], soon(() => (rebuild(), draw())));
  watch(["sampler", "ratio", "seed", "mask", "flipped"], redraw);
  watch(["method", "seed", "image"], refresh);
  el.classList.add("mim");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys stay away
  const undo = button("Undo edits", () => set(model, { flipped: [] }), "Back to the drawn mask");
  const tools = toolbar(model, watch, { panels: () => panels, name: "masks" });
  tools.prepend(undo);
  el.replaceChildren(controlsOf(model, watch, el), element("div", { className: "stage" }, main.root, strip), status, tools);
  rebuild();
  await refresh();
  return watch.stop;
}

/** What is seen, in words. */
function describe(model, masks, edited, cursor, columns) {
  const mask = masks[edited], hidden = mask.reduce((a, b) => a + b, 0), by = model.get("flipped").length;
  const here = cursor === null ? "" : `Row ${Math.floor(cursor / columns) + 1}, column ${(cursor % columns) + 1} is ${mask[cursor] ? "hidden" : "visible"}. `;
  const which = masks.length > 1 ? `Mask ${edited + 1} of ${masks.length}: ` : "";
  return `${here}${which}${hidden} of ${mask.length} patches hidden${by ? `, ${by} changed by hand` : ""}.`;
}
