// Controls, keyboard, toolbar and the road to the kernel: what every explorer is operated with.

/** A DOM element with properties (and `aria-..`, `data-..` attributes) and children. */
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** Listen to traits by name; `watch.stop()` forgets everything. */
function watcher(model) {
  const known = [];
  const watch = (names, action) => names.forEach((name) => {
    model.on(`change:${name}`, action);
    known.push([`change:${name}`, action]);
  });
  watch.stop = () => known.forEach(([event, action]) => model.off(event, action));
  return watch;
}

/** Set traits and tell the kernel, once. */
function set(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
}

/** Call `action` once, soon, however often it is asked for in the meantime. */
function soon(action) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => ((waiting = false), action()));
  };
}

/** Only one run of an async `action` at a time; of the calls that come meanwhile the last one runs afterwards. */
function latest(action) {
  let busy = false, next = null;
  return async function run(...given) {
    if (busy) return void (next = given);
    busy = true;
    try {
      await action(...given);
    } finally {
      busy = false;
      if (next) [given, next] = [next, null], run(...given);
    }
  };
}

/**
 * A question to the kernel: `Explorer.answer` of the Python side. A page without a kernel has no answer: null.
 * @returns {Promise<{answer: Object, buffers: DataView[]} | null>}
 */
function ask(model, question, buffers = []) {
  if (!model.get("live")) return Promise.resolve(null);
  return new Promise((done, fail) => {
    const id = crypto.randomUUID?.() ?? String(Math.random());
    const hear = (content, replies) => {
      if (content.id !== id) return;
      model.off("msg:custom", hear);
      if (content.error) fail(new Error(content.error));
      else done({ answer: content.answer, buffers: replies });
    };
    model.on("msg:custom", hear);
    model.send({ id, question }, undefined, buffers);
  });
}

/** A slider for a number, with its value in words. `also(value)`: other traits to set with it. */
function slider(model, watch, name, { label, min, max, step, words = String, also = () => ({}) }) {
  const input = element("input", { type: "range", min, max, step, name, "aria-label": label }), shown = element("output", {}, "");
  const read = () => {
    input.value = model.get(name);
    shown.textContent = words(model.get(name));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => set(model, { [name]: Number(input.value), ...also(Number(input.value)) }));
  watch([name], read);
  read();
  return element("label", { className: "control" }, element("span", {}, label), input, shown);
}

/** A list to choose from, shown where there is a choice; `options()`: pairs of value and text, read again when one of `depends` changes; `also` as in `slider`. */
function choice(model, watch, name, { label, options, depends = [], also = () => ({}) }) {
  const input = element("select", { name, "aria-label": label }), root = element("label", { className: "control" }, element("span", {}, label), input);
  const read = () => {
    const known = options(), now = model.get(name);
    input.replaceChildren(...known.map(([value, text]) => element("option", { value: String(value) }, text)));
    input.selectedIndex = known.findIndex(([value]) => value === now);
    root.hidden = known.length < 2;
  };
  input.addEventListener("change", () => {
    const value = options()[input.selectedIndex][0];
    set(model, { [name]: value, ...also(value) });
  });
  watch([name, ...depends], read);
  read();
  return root;
}

/** A box to tick. */
function toggle(model, watch, name, { label }) {
  const input = element("input", { type: "checkbox", name, "aria-label": label });
  const read = () => (input.checked = model.get(name));
  input.addEventListener("change", () => set(model, { [name]: input.checked }));
  watch([name], read);
  read();
  return element("label", { className: "control" }, input, element("span", {}, label));
}

const button = (text, action, title = text) => element("button", { type: "button", title, onclick: action }, text);

/**
 * Mouse and keyboard over a panel's lattice of patches, numbered in reading order.
 * `move(patch)`: the cursor is there now; `press(patch, first)`: it was clicked, entered by a drag, or Enter or Space was hit.
 * Returns `to(patch)`, which puts the cursor somewhere without a call.
 */
function gridCursor(one, { move = () => {}, press = () => {} }) {
  let at = null, dragging = false;
  const under = (event) => {
    const box = one.canvas.getBoundingClientRect(), [rows, columns] = one.lattice;
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows), column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return row >= 0 && column >= 0 && row < rows && column < columns ? row * columns + column : null;
  };
  const go = (patch) => patch !== at && move((at = patch));
  const listen = (name, action) => one.canvas.addEventListener(name, action);
  listen("pointerdown", (event) => {
    const patch = under(event);
    if (patch === null) return;
    dragging = true;
    one.canvas.setPointerCapture(event.pointerId);
    go(patch);
    press(patch, true);
  });
  listen("pointermove", (event) => {
    const patch = under(event);
    if (patch === null || patch === at) return;
    go(patch);
    if (dragging) press(patch, false);
  });
  for (const end of ["pointerup", "pointercancel"]) listen(end, () => (dragging = false));
  listen("keydown", (event) => {
    const [rows, columns] = one.lattice, now = at ?? 0, row = Math.floor(now / columns), column = now % columns;
    const steps = { ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], Home: [row, 0], End: [row, columns - 1] };
    if (event.key in steps) {
      const [r, c] = steps[event.key];
      if (r >= 0 && c >= 0 && r < rows && c < columns) go(r * columns + c);
    } else if (event.key === "Enter" || event.key === " ") go(now), press(now, true);
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has meanings of its own for these keys
  });
  return { to: (patch) => (at = patch) };
}

/** A Python literal. */
function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "string") return `'${value.replace(/[\\']/g, "\\$&")}'`;
  return { true: "True", false: "False", null: "None" }[String(value)] ?? String(value);
}

/** The Python call that makes this explorer as it is now, like `Explorer.code`. */
function codeOf(model) {
  const state = model.get("state_names").map((name) => `${name}=${literal(model.get(name))}`);
  const place = model.get("call").split("."), name = place.pop();
  return `from ${place.join(".")} import ${name}\n\n${name}(${[...model.get("given"), ...state].join(", ")})`;
}

/** Buttons and a line that is read aloud. `panels()`: what is exported; `name`: of the files. */
function toolbar(model, watch, { panels, name }) {
  const code = element("code", {}, codeOf(model)), told = element("span", { className: "told", role: "status" });
  const copy = async (text, what) => {
    await navigator.clipboard.writeText(text).then(() => (told.textContent = `${what} copied`), () => (told.textContent = "this page may not copy: mark the text below"));
  };
  watch(["given", ...model.get("state_names")], soon(() => (code.textContent = codeOf(model))));
  const link = model.link ? [button("Copy link", () => copy(model.link(), "link"), "Copy a link to this state")] : [];
  const buttons = [
    button("Copy call", () => copy(codeOf(model), "call"), "Copy the Python call that makes this state"), ...link,
    button("PNG", async () => download(await panelsPNG(panels()), `${name}.png`), "Save the pictures as PNG"),
    button("SVG", () => download(new Blob([panelsSVG(panels())], { type: "image/svg+xml" }), `${name}.svg`), "Save the pictures as SVG"),
  ];
  return element("div", { className: "toolbar" }, ...buttons, told, element("details", {}, element("summary", {}, "Python"), element("pre", {}, code)));
}

/** A field for an image of the reader's own, by dialogue or dropped on `target`; `use(canvas, name)` gets its central part, `sides` high and wide. */
function imageInput(target, sides, use) {
  const input = element("input", { type: "file", accept: "image/*", "aria-label": "Your image" });
  const read = async (file) => {
    if (!file?.type.startsWith("image/")) return;
    const picture = await bitmap(file), [height, width] = sides(), scale = Math.max(height / picture.height, width / picture.width);
    const canvas = newCanvas(width, height), context = canvas.getContext("2d"), wide = picture.width * scale, tall = picture.height * scale;
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, (width - wide) / 2, (height - tall) / 2, wide, tall);
    use(canvas, file.name);
  };
  input.addEventListener("change", () => read(input.files[0]));
  target.addEventListener("dragover", (event) => event.preventDefault());
  target.addEventListener("drop", (event) => (event.preventDefault(), read(event.dataTransfer.files[0])));
  return element("label", { className: "control" }, element("span", {}, "Your image"), input);
}

/** For `imageInput`: make the reader's image the explorer's own, and say so in its call. */
function takeImage(model) {
  const others = () => model.get("given").filter((text) => !text.startsWith("image="));
  return async (canvas, name) => set(model, { dropped: name, given: [...others(), `image=${literal(name)}`], image: await canvasPNG(canvas) });
}

/** The bytes of a canvas as a PNG. */
const canvasPNG = (canvas) => new Promise((done) => canvas.toBlob(async (blob) => done(new DataView(await blob.arrayBuffer())), "image/png"));
