// The reconstruction explorer: paint a mask, and see what one or two models make of the rest.

const LEGEND = "Errors are squared differences; the brightest colour is no better than answering every patch with the mean of the image. Grey: visible, or not asked.";

/** What is seen and what is under the cursor, in words. */
function sceneWords(scene, sides, means) {
  const [rows, columns] = scene.units, count = rows * columns, gone = scene.hidden.reduce((sum, one) => sum + one, 0);
  const place = `Row ${Math.floor(scene.cursor / columns) + 1}, column ${(scene.cursor % columns) + 1} is ${scene.hidden[scene.cursor] ? "hidden" : "visible"}.`;
  const errors = sides.map((side, k) => `${side.name} ${means[k].map((mean) => mean.toFixed(3)).join(", ")}`).join("; ");
  return `${gone} of ${count} patches hidden (${Math.round((100 * gone) / count)} %). ${place}` + (gone && means.length ? ` Error of hidden patches: ${errors}.` : "");
}

/** The choice of image and of statistics, and the reader's own image. */
function pictureControls(model, watch, stage, paintable) {
  const sides = model.get("sides"), names = model.get("names"), largest = sides.reduce((size, side) => (side.size[0] > size[0] ? side.size : size), [0, 0]);
  const controls = [choice(model, watch, "shown", { label: "Image", depends: ["dropped"], options: () => [...names, ...(model.get("dropped") ? [model.get("dropped")] : [])].map((name) => [name, name]) })];
  if (sides.some((side) => side.tasks[0].kind === "norm_pixels")) {
    controls.push(choice(model, watch, "statistics", { label: "Mean and contrast of", options: () => [["near", "visible patches nearby"], ["visible", "all visible patches"], ["true", "the TRUE patches (leaks)"]] }));
  }
  controls.push(toggle(model, watch, "overlay", { label: "errors over the image" }));
  const use = async (canvas, name) => {
    const given = [...model.get("given").filter((text) => !text.startsWith("image=")), `image=${literal(name)}`];
    set(model, { image: await canvasPNG(canvas), given, dropped: name, shown: name });
  };
  if (paintable) controls.push(imageInput(stage, () => largest, use));
  return controls;
}

/** The state as it is drawn: mask, picture, statistics; the cursor stays. */
function readScene(model, scene, own) {
  const [first] = model.get("sides"), [height, width] = first.size;
  scene.hidden = currentMask(model);
  scene.statistics = model.get("statistics");
  scene.overlay = model.get("overlay");
  scene.own = imageNumber(model) < model.get("names").length ? null : own;
  scene.picture = canvasOf(toImage(toPatches(pixelsOf(model, first, scene.own), [height, width], 1), [height, width], 1));
}

/** The original and the board that is painted on. */
function drawBoards(original, board, scene) {
  const { units: [, columns], hidden, cursor } = scene, place = (unit) => ({ row: Math.floor(unit / columns), column: unit % columns });
  const covers = [...hidden.keys()].filter((unit) => hidden[unit]).map((unit) => ({ ...place(unit), fill: HIDDEN }));
  scene.marks = framed(cursor, columns, palette.vermillion);
  board.show({ image: scene.picture, marks: [...covers, ...scene.marks] });
  original.show({ image: scene.picture, marks: scene.marks });
}

async function render({ model, el }) {
  const watch = watcher(model), units = model.get("units"), sides = model.get("sides"), paintable = model.get("live") || sides.every((side) => side.plan);
  const scene = { units, cursor: 0 }, views = sides.map((side, k) => sideView(model, side, k, units)), stage = element("div", { className: "stage" });
  const status = element("p", { className: "status", role: "status", "aria-live": "polite" }), original = panel({ title: "original", lattice: units, width: 146 });
  let started = performance.now(), means = [], own = null;

  const paint = (hidden) => ((started = performance.now()), set(model, { hidden: maskText(hidden) }));
  const say = () => {
    views.forEach((view) => means.length && view.point(scene));
    status.textContent = sceneWords(scene, sides, means);
  };
  const point = (unit) => ((scene.cursor = unit), drawBoards(original, board, scene), say());
  const board = easel(model, units, point, paintable ? paint : null);
  const answerAll = latest(async () => {
    await new Promise(requestAnimationFrame); // the mask is drawn first
    const now = { ...scene };
    const problem = await Promise.all(views.map((view) => view.refresh(now))).then((found) => ((means = found), null), (error) => error);
    say();
    status.classList.toggle("alarm", Boolean(problem));
    if (problem) status.textContent = problem.message;
    Object.assign(el.dataset, { drawn: maskText(now.hidden), lag: performance.now() - started, draws: 1 + Number(el.dataset.draws ?? 0) });
  });
  const redraw = () => {
    if (imageNumber(model) === model.get("names").length && !own) return; // the reader's image is being read
    readScene(model, scene, own);
    drawBoards(original, board, scene);
    answerAll();
  };
  const refresh = async () => ((own = model.get("image").byteLength ? await bitmap(model.get("image")) : null), redraw());

  watch(["hidden", "ratio", "seed", "statistics", "overlay", "shown"], soon(redraw));
  watch(["image"], refresh);
  el.classList.add("mim");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys stay away
  stage.append(element("div", { className: "boards" }, board.root, original.root), element("div", { className: "sides" }, ...views.map((view) => view.root), element("p", { className: "note" }, LEGEND)));
  const panels = () => [original, board, ...views.flatMap((view) => view.panels)];
  el.replaceChildren(...headOf(model, watch, stage, paintable, paint), stage, status, toolbar(model, watch, { panels, name: "reconstruct" }));
  await refresh();
  return watch.stop;
}

/** Controls, and what is to be said where nobody can answer for a painted mask. */
function headOf(model, watch, stage, paintable, paint) {
  const foreign = model.get("sides").filter((side) => !side.plan).map((side) => side.name).join(" and ");
  const note = element("p", { className: "note" }, `This page has no kernel, and ${foreign} is of a kind or size that a page cannot run by itself: it shows masks that were computed beforehand. To paint, run the call below in Jupyter.`);
  const controls = element("div", { className: "controls" }, ...pictureControls(model, watch, stage, paintable), ...maskControls(model, watch, paintable, paint));
  return paintable ? [controls] : [controls, note];
}
