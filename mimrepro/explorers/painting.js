// Painting a mask: as text, from a seed, with the mouse and the keyboard, with sliders.

/** A mask as text: a hexadecimal digit for four units, the first unit in its highest bit. */
function maskText(hidden) {
  let text = "";
  for (let i = 0; i < hidden.length; i += 4) text += [0, 1, 2, 3].reduce((digit, k) => 2 * digit + (hidden[i + k] ?? 0), 0).toString(16);
  return text;
}

/** The way back: a byte per unit, 1 = hidden. */
const readMask = (text, count) => Uint8Array.from({ length: count }, (_, i) => (parseInt(text[i >> 2], 16) >> (3 - (i & 3))) & 1);

/** The mask that a seed draws: all units but the first of its order. `ranks`: seeds × units, 16 bits each. */
function drawnMask(ranks, seed, ratio, count) {
  const order = new DataView(ranks.buffer, ranks.byteOffset), visible = Math.max(1, Math.floor(count * (1 - ratio)));
  return Uint8Array.from({ length: count }, (_, i) => Number(order.getUint16(2 * (seed * count + i), true) >= visible));
}

/** The mask of the moment: painted by hand, else the one that ratio and seed draw. */
function currentMask(model) {
  const [rows, columns] = model.get("units"), painted = model.get("hidden");
  return painted ? readMask(painted, rows * columns) : drawnMask(bytes(model.get("ranks")), model.get("seed"), model.get("ratio"), rows * columns);
}

/** Units on the straight way between two units, both included. */
function unitsBetween(from, to, columns) {
  const [x, y, u, v] = [from % columns, Math.floor(from / columns), to % columns, Math.floor(to / columns)], steps = Math.max(Math.abs(u - x), Math.abs(v - y), 1);
  return Array.from({ length: steps + 1 }, (_, k) => Math.round(y + ((v - y) * k) / steps) * columns + Math.round(x + ((u - x) * k) / steps));
}

/** What is painted on: the image with its hidden units grey. `paint(hidden)`, if any, is called when the reader changes the mask. */
function easel(model, units, move, paint) {
  const view = panel({ title: paint ? "Paint here: drag to hide or show" : "mask", lattice: units, width: 300, focusable: true, label: `mask of ${units[0]} by ${units[1]} patches; arrow keys move, space hides or shows, dragging paints` });
  let hide = 1, last = 0;
  const press = (unit, first) => {
    const hidden = currentMask(model);
    if (first) hide = 1 - hidden[unit];
    for (const one of first ? [unit] : unitsBetween(last, unit, units[1])) hidden[one] = hide;
    last = unit;
    if (hidden.every(Boolean)) hidden[unit] = 0; // one has to be seen
    paint(hidden);
  };
  gridCursor(view, paint ? { move, press } : { move });
  return view;
}

/** Sliders and buttons for the mask, or a list of masks where nobody can answer for others. */
function maskControls(model, watch, paintable, paint) {
  if (!paintable) return [choice(model, watch, "hidden", { label: "Mask", options: () => model.get("masks").map((mask, i) => [mask, model.get("mask_names")[i]]) })];
  const also = () => ({ hidden: "" }), [rows, columns] = model.get("units"), seeds = bytes(model.get("ranks")).length / 2 / rows / columns;
  const swap = () => {
    const other = currentMask(model).map((one) => 1 - one);
    if (!other.every(Boolean)) paint(other);
  };
  return [
    slider(model, watch, "ratio", { label: "Hidden", min: 0, max: 0.95, step: 0.05, words: (ratio) => `${Math.round(100 * ratio)} %`, also }),
    slider(model, watch, "seed", { label: "Seed", min: 0, max: seeds - 1, step: 1, also }),
    button("New mask", () => set(model, { seed: (model.get("seed") + 1) % seeds, hidden: "" }), "Draw a mask with the next seed"),
    button("Show all", () => paint(new Uint8Array(rows * columns)), "Hide nothing"),
    button("Swap", swap, "Hide what is visible and show what is hidden"),
  ];
}
