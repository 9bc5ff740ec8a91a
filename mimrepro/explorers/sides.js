// A side of the reconstruction explorer: one model, who answers for it, and the panels that show what it says.

const WIDTH = 200; // of a model's panels, in pixels

/** The image that is looked at, by number; one more than there are: the reader's own. */
function imageNumber(model) {
  const names = model.get("names"), place = names.indexOf(model.get("shown"));
  return place >= 0 ? place : model.get("image").byteLength ? names.length : 0;
}

/** The pixels that a side sees: height × width × 3, of a built-in image or of the reader's own (a bitmap). */
function pixelsOf(model, side, own) {
  const [height, width] = side.size, count = height * width * 3, shown = imageNumber(model);
  if (!own) return bytes(model.get("pixels")).subarray(side.pixels + shown * count, side.pixels + (shown + 1) * count);
  const context = newCanvas(width, height).getContext("2d");
  context.drawImage(own, 0, 0, width, height);
  return Uint8Array.from(context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 < 3));
}

/**
 * Who answers for a side: the kernel, the page itself, or what was computed beforehand.
 * @returns {function(Uint8Array, Uint8Array): Promise<Float32Array>} a mask of units and pixels -> numbers of all tasks, one after another
 */
function answerer(model, side, k) {
  if (model.get("live")) {
    return async (hidden, pixels) => fromHalf(bytes((await ask(model, { side: k, hidden: maskText(hidden) }, [pixels.slice().buffer])).buffers[0]));
  }
  if (side.plan) {
    const run = maskedAutoencoder(side.plan, bytes(model.get("weights")).subarray(...side.weights)), [task] = side.tasks;
    return async (hidden, pixels) => {
      const mask = Uint8Array.from(maskAt(hidden, model.get("units"), task.grid)), said = run(toPatches(pixels, task.grid, task.cell), mask);
      return side.everywhere ? said : said.map((value, i) => (mask[Math.floor(i / task.numbers)] ? value : NaN));
    };
  }
  const stored = bytes(model.get("stored")).subarray(...side.stored), size = side.stored_size;
  return async (hidden) => {
    const place = imageNumber(model) * model.get("masks").length + model.get("masks").indexOf(maskText(hidden));
    return fromHalf(stored.subarray(place * size, (place + 1) * size));
  };
}

/** The numbers of an answer, task by task: what was said and what was asked for. */
function readAnswer(side, numbers, pixels) {
  let place = 0;
  const next = (task) => numbers.subarray(place, (place += task.grid[0] * task.grid[1] * task.numbers));
  return side.tasks.map((task) => {
    const said = next(task), count = task.grid[0] * task.grid[1];
    if (task.kind === "hog") return { said, target: next(task) };
    const patches = toPatches(pixels, task.grid, task.cell), own = moments(patches, count);
    return { said, patches, own, target: task.kind === "norm_pixels" ? rescale(patches, own, false) : patches };
  });
}

/** The panels of one task of one side: `fill(answer, scene)` draws them, `point(scene)` moves the cursor. */
function taskView(side, task, units) {
  const several = side.tasks.length > 1 || task.kind === "hog", make = (title, label) => panel({ title, lattice: units, width: WIDTH, label: `${side.name}: ${label}` });
  const pictures = several ? [make(`target ${task.grid[0]} × ${task.grid[1]}`, "what it should say")] : [];
  pictures.push(make("output", "what it says"));
  if (!several) pictures.push(make("pasted", "what it says, pasted into the visible patches"));
  const panels = [...pictures, make("error", "error of each patch")];
  let errors, shares;
  const point = (scene) => {
    panels.forEach((one) => one.show({ ...one.picture, marks: scene.marks }));
    panels.at(-1).caption(errorWords(errors, shares, scene, task));
  };
  const fill = (answer, scene) => {
    shares = maskAt(scene.hidden, units, task.grid);
    errors = cellErrors(answer.said, answer.target, shares.length);
    const drawn = task.kind === "hog" ? strokePictures(task, answer, shares) : pixelPictures(task, answer, scene, shares, several);
    pictures.forEach((one, i) => one.show({ image: drawn[i] }));
    const wrong = errorPicture(errors, shares, answer, task);
    panels.at(-1).show(scene.overlay ? { image: scene.picture, smooth: true, over: wrong, alpha: 0.7 } : { image: wrong });
    point(scene);
    return hiddenMean(errors, shares);
  };
  return { panels, fill, point };
}

/** A canvas of an `ImageData`. */
function canvasOf(image) {
  const canvas = newCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Output and pasted, or, with several tasks, target and output. */
function pixelPictures(task, answer, scene, shares, several) {
  const drawnWith = () => statistics(scene.statistics, task, answer.own, scene.seen, scene.hidden, scene.units);
  const output = task.kind === "norm_pixels" ? rescale(answer.said, drawnWith(), true) : answer.said;
  const pair = several ? [answer.patches, output] : [output, paste(output, answer.patches, shares)];
  return pair.map((patches) => canvasOf(toImage(patches, task.grid, task.cell)));
}

/** Target and output as strokes, those of visible cells pale. */
function strokePictures(task, answer, shares) {
  return [answer.target, answer.said].map((histograms) => {
    const canvas = newCanvas(3 * WIDTH, (3 * WIDTH * task.grid[0]) / task.grid[1]), context = canvas.getContext("2d");
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    drawStrokes(context, histograms, task.grid, task.bins, canvas.width, (cell) => (shares[cell] > 0 ? "#10131a" : "#b9bec7"));
    return canvas;
  });
}

/** Errors of hidden cells as colours; the brightest is no better than answering every cell with the mean of all. */
function errorPicture(errors, shares, answer, task) {
  const worst = errorOfMean(answer.target, shares.length);
  return heat(Array.from(errors, (error, k) => (shares[k] > 0 && !Number.isNaN(error) ? 255 * Math.min(1, error / worst) : -1)), ...task.grid);
}

/** The mean error of hidden cells, and that of the unit under the cursor. */
function errorWords(errors, shares, scene, task) {
  const mean = hiddenMean(errors, shares), here = maskAt(Uint8Array.from(scene.hidden, (one, i) => Number(one && i === scene.cursor)), scene.units, task.grid);
  return Number.isNaN(mean) ? "nothing is hidden" : `mean ${mean.toFixed(3)}` + (scene.hidden[scene.cursor] ? `, here ${hiddenMean(errors, here).toFixed(3)}` : "");
}

/** One model: its heading and its panels. `refresh(scene)` asks where need be, draws, and gives the mean error of each task. */
function sideView(model, side, k, units) {
  const answer = answerer(model, side, k), views = side.tasks.map((task) => taskView(side, task, units));
  const about = element("p", { className: "note" }), panels = views.flatMap((view) => view.panels), several = views.length > 1;
  const lines = several ? [0, 1, 2].map((row) => views.map((view) => view.panels[row])) : [panels]; // a column for each task
  const rows = lines.map((line) => element("div", { className: several ? "tasks" : "panels" }, ...line.map((one) => one.root)));
  let known = [], numbers;
  const refresh = async (scene) => {
    const pixels = pixelsOf(model, side, scene.own), question = [maskText(scene.hidden), model.get("shown"), scene.own];
    if (question.some((part, i) => part !== known[i])) [numbers, known] = [await answer(scene.hidden, pixels), question];
    const seen = moments(toPatches(pixels, units, side.size[0] / units[0]), scene.hidden.length);
    about.textContent = side.about[scene.statistics];
    return readAnswer(side, numbers, pixels).map((one, i) => views[i].fill(one, { ...scene, seen }));
  };
  const root = element("section", { "aria-label": side.name }, element("h3", {}, side.name), about, ...rows);
  return { root, panels, refresh, point: (scene) => views.forEach((view) => view.point(scene)) };
}
