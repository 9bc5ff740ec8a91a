// From predictions to pictures: patches of an image, the statistics they are drawn with, errors, and gradients as strokes.
// A task is { grid: [rows, columns], cell: side in pixels, kind: 'norm_pixels' | 'pixels' | 'hog', bins }; a mask has a
// byte per unit of its own grid, 1 = hidden. Cells that a model was not asked for are NaN.

const LEVEL_MEAN = [0.485, 0.456, 0.406], LEVEL_SPREAD = [0.229, 0.224, 0.225], NORM_EPS = 1e-6;

/**
 * Normalised patches in reading order, as `mimrepro.patches.patchify` of a normalised image.
 * @param {Uint8Array} pixels height × width × 3
 * @returns {Float32Array} cells × cell·cell·3
 */
function toPatches(pixels, [rows, columns], cell) {
  const numbers = cell * cell * 3, patches = new Float32Array(rows * columns * numbers), width = columns * cell;
  for (let y = 0; y < rows * cell; y++) {
    for (let x = 0; x < width; x++) {
      const place = (Math.floor(y / cell) * columns + Math.floor(x / cell)) * numbers + ((y % cell) * cell + (x % cell)) * 3;
      for (let c = 0; c < 3; c++) patches[place + c] = (pixels[(y * width + x) * 3 + c] / 255 - LEVEL_MEAN[c]) / LEVEL_SPREAD[c];
    }
  }
  return patches;
}

/** The way back: RGBA bytes of an image; what is NaN stays transparent. */
function toImage(patches, [rows, columns], cell) {
  const width = columns * cell, image = new ImageData(width, rows * cell), numbers = cell * cell * 3;
  for (let y = 0; y < rows * cell; y++) {
    for (let x = 0; x < width; x++) {
      const place = (Math.floor(y / cell) * columns + Math.floor(x / cell)) * numbers + ((y % cell) * cell + (x % cell)) * 3;
      if (Number.isNaN(patches[place])) continue;
      for (let c = 0; c < 3; c++) image.data[(y * width + x) * 4 + c] = 255 * (patches[place + c] * LEVEL_SPREAD[c] + LEVEL_MEAN[c]);
      image.data[(y * width + x) * 4 + 3] = 255;
    }
  }
  return image;
}

/** Mean and variance (n-1) of each patch. @returns {{mean: Float64Array, variance: Float64Array}} */
function moments(patches, count) {
  const numbers = patches.length / count, mean = new Float64Array(count), variance = new Float64Array(count);
  for (let k = 0; k < count; k++) {
    const patch = patches.subarray(k * numbers, (k + 1) * numbers);
    for (const value of patch) mean[k] += value / numbers;
    for (const value of patch) variance[k] += (value - mean[k]) ** 2 / (numbers - 1);
  }
  return { mean, variance };
}

/** The mask of units on a grid that is finer or coarser: for each cell the share of it that is hidden. @returns {Float64Array} */
function maskAt(hidden, [rows, columns], [cellRows, cellColumns]) {
  const shares = new Float64Array(cellRows * cellColumns), parts = Math.max(1, rows / cellRows);
  for (let y = 0; y < Math.max(rows, cellRows); y++) {
    for (let x = 0; x < Math.max(columns, cellColumns); x++) {
      const unit = Math.floor(y * rows / Math.max(rows, cellRows)) * columns + Math.floor(x * columns / Math.max(columns, cellColumns));
      const cell = Math.floor(y * cellRows / Math.max(rows, cellRows)) * cellColumns + Math.floor(x * cellColumns / Math.max(columns, cellColumns));
      shares[cell] += hidden[unit] / parts ** 2;
    }
  }
  return shares;
}

/**
 * The mean and variance that each cell is drawn with, where a model predicts patches without them.
 * @param {string} mode 'near': of visible units, the nearer the more; 'visible': of all visible units alike; 'true': the cell's own, which leaks the answer
 * @param {{mean, variance}} seen of the units
 */
function statistics(mode, task, own, seen, hidden, units) {
  if (mode === "true") return own;
  const [rows, columns] = task.grid, keep = [...hidden.keys()].filter((i) => !hidden[i]);
  const found = { mean: new Float64Array(rows * columns), variance: new Float64Array(rows * columns) };
  for (let k = 0; k < rows * columns; k++) {
    const y = (Math.floor(k / columns) + 0.5) * units[0] / rows, x = (k % columns + 0.5) * units[1] / columns;
    let total = 0;
    for (const unit of keep) {
      const distance = (Math.floor(unit / units[1]) + 0.5 - y) ** 2 + (unit % units[1] + 0.5 - x) ** 2;
      const weight = mode === "near" ? (distance + 0.01) ** -2 : 1;
      total += weight;
      found.mean[k] += weight * seen.mean[unit];
      found.variance[k] += weight * seen.variance[unit];
    }
    found.mean[k] /= total;
    found.variance[k] /= total;
  }
  return found;
}

/** Normalised patches to pixels (`back`), or pixels to normalised patches: each cell by its mean and variance. */
function rescale(patches, { mean, variance }, back) {
  const numbers = patches.length / mean.length, scaled = new Float32Array(patches.length);
  for (let i = 0; i < patches.length; i++) {
    const cell = Math.floor(i / numbers), spread = Math.sqrt(variance[cell] + NORM_EPS);
    scaled[i] = back ? patches[i] * spread + mean[cell] : (patches[i] - mean[cell]) / spread;
  }
  return scaled;
}

/** Hidden cells from one set of patches, visible ones from another. */
function paste(hiddenOnes, visibleOnes, shares) {
  const numbers = visibleOnes.length / shares.length;
  return visibleOnes.map((value, i) => shares[Math.floor(i / numbers)] > 0 ? hiddenOnes[i] : value);
}

/** Mean squared difference of each cell. @returns {Float64Array} NaN where nothing was predicted */
function cellErrors(predicted, target, count) {
  const numbers = target.length / count, errors = new Float64Array(count);
  for (let i = 0; i < target.length; i++) errors[Math.floor(i / numbers)] += (predicted[i] - target[i]) ** 2 / numbers;
  return errors;
}

/** The mean of errors over hidden cells, as the loss takes it. */
function hiddenMean(errors, shares) {
  let sum = 0, weight = 0;
  errors.forEach((error, k) => { if (shares[k] > 0) { sum += shares[k] * error; weight += shares[k]; } });
  return weight ? sum / weight : NaN;
}

/** The mean squared error of answering each cell with the mean of all. */
function errorOfMean(target, count) {
  const numbers = target.length / count, mean = new Float64Array(numbers);
  target.forEach((value, i) => (mean[i % numbers] += value / count));
  return target.reduce((sum, value, i) => sum + (value - mean[i % numbers]) ** 2, 0) / target.length;
}

/**
 * Histograms of oriented gradients: in each cell a stroke per orientation, along the edge, as long as its share.
 * @param {Float32Array} histograms cells × channels·bins
 * @param {function(number): string} ink colour of a cell
 */
function drawStrokes(context, histograms, [rows, columns], bins, size, ink) {
  const side = size / columns, perCell = histograms.length / (rows * columns), channels = perCell / bins;
  context.lineWidth = Math.max(0.6, side / 14);
  for (let cell = 0; cell < rows * columns; cell++) {
    const x = (cell % columns + 0.5) * side, y = (Math.floor(cell / columns) + 0.5) * side;
    context.strokeStyle = ink(cell);
    context.beginPath();
    for (let bin = 0; bin < bins; bin++) {
      let share = 0;
      for (let c = 0; c < channels; c++) share += histograms[cell * perCell + c * bins + bin] / channels;
      if (!(share > 0.2)) continue;
      const angle = (bin + 0.5) * Math.PI / bins, dx = Math.cos(angle) * side / 2 * share, dy = -Math.sin(angle) * side / 2 * share;
      context.moveTo(x - dx, y - dy);
      context.lineTo(x + dx, y + dy);
    }
    context.stroke();
  }
}
