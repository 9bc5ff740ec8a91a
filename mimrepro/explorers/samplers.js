// The samplers of `mimrepro.masking`, number by number: the same seed gives the same mask as in Python (a test compares them).

/** torch's generator on a CPU (Mersenne Twister 19937): each call is the next float32 of `torch.rand`. */
function generator(seed) {
  const state = new Uint32Array(624);
  let at = 624;
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  const refill = () => {
    for (let i = 0; i < 624; i++) {
      const pair = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (pair >>> 1) ^ (pair & 1 ? 0x9908b0df : 0);
    }
    at = 0;
  };
  return () => {
    if (at === 624) refill();
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    y ^= y >>> 18;
    return (y & 0xffffff) / 2 ** 24;
  };
}

const numbers = (rand, n) => Float32Array.from({ length: n }, rand);

/** Patches by rising noise; of equal ones the first comes first. */
const ordered = (noise) => [...noise.keys()].sort((a, b) => noise[a] - noise[b]);

const percent = (ratio) => `${Math.round(100 * ratio)} %`;

/** How many patches stay visible. */
function kept(patches, ratio) {
  const visible = Math.trunc(patches * (1 - ratio));
  if (visible < 1) throw new Error(`${percent(ratio)} of ${patches} leaves none visible: lower the ratio`);
  return visible;
}

/** A mask, 1 = hidden, in which only the first `visible` patches of an order are seen. */
function firstSeen(order, visible) {
  const mask = new Uint8Array(order.length).fill(1);
  for (const patch of order.slice(0, visible)) mask[patch] = 0;
  return mask;
}

const maskFromNoise = (noise, ratio) => firstSeen(ordered(noise), kept(noise.length, ratio));

/** Masks that share no visible patch. */
function disjointMasks(noise, ratio, masks) {
  const n = noise.length, visible = kept(n, ratio), order = ordered(noise);
  if (masks * visible > n) throw new Error(`${masks} disjoint masks that leave ${visible} patches each need ${masks * visible}, and there are ${n}: raise the ratio, or take fewer masks`);
  return Array.from({ length: masks }, (_, i) => firstSeen([...order.slice(i * visible), ...order.slice(0, i * visible)], visible));
}

const roundEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/** A rectangle of a wanted area with a random aspect and place; null where it does not fit. All arithmetic in float32, as in torch. */
function drawRectangle(rand, area, rows, columns) {
  const f = Math.fround, aspect = f(Math.exp(f(f(f(rand() * 2) - 1) * f(Math.log(1 / 0.3)))));
  const sides = [f(area * aspect), f(area / aspect)].map((x) => roundEven(f(Math.sqrt(x))));
  const starts = [rows, columns].map((length, i) => Math.floor(f(rand() * (length - sides[i] + 1))));
  const fits = [rows, columns].every((length, i) => sides[i] >= 1 && sides[i] <= length);
  return fits ? { row: starts[0], column: starts[1], rows: sides[0], columns: sides[1] } : null;
}

/** Noise above 1 inside a few large rectangles, exact in number (BEiT's sampler). */
function blockNoise(rand, rows, columns, ratio) {
  const n = rows * columns, f = Math.fround, noise = numbers(rand, n), covered = new Uint8Array(n), wanted = n - kept(n, ratio), smallest = f(Math.min((16 / 196) * n, wanted));
  let missing = wanted;
  for (let tries = 0; tries < 40; tries++) {
    const area = f(smallest + f(Math.max(0, f(missing - smallest)) * rand())), block = drawRectangle(rand, area, rows, columns);
    if (!block) continue;
    const fresh = [];
    for (let r = block.row; r < block.row + block.rows; r++) for (let c = block.column; c < block.column + block.columns; c++) if (!covered[r * columns + c]) fresh.push(r * columns + c);
    if (!fresh.length || fresh.length > missing) continue;
    for (const patch of fresh) covered[patch] = 1;
    missing -= fresh.length;
  }
  return noise.map((x, i) => x + covered[i]);
}

/** Noise below 1 only at the top-left patch of every `s` x `s` cell. */
function gridNoise(rand, rows, columns, ratio) {
  const cell = ratio < 1 ? roundEven((1 - ratio) ** -0.5) : 0;
  if (cell < 1 || Math.abs(1 - 1 / cell ** 2 - ratio) > 1e-6 || rows % cell || columns % cell)
    throw new Error(`no lattice hides ${percent(ratio)} of ${rows} x ${columns} patches: the ratio must be 1 - 1/s², as 75 % for s = 2, and s divide both sides`);
  return numbers(rand, rows * columns).map((x, i) => x + (Math.floor(i / columns) % cell || (i % columns) % cell ? 1 : 0));
}

/** Whole cells of 2 x 2 patches. */
function cellMask(rand, rows, columns, ratio) {
  const wide = columns / 2, cells = (rows / 2) * wide, order = ordered(numbers(rand, cells));
  const patches = order.flatMap((cell) => {
    const first = 2 * Math.floor(cell / wide) * columns + 2 * (cell % wide);
    return [first, first + 1, first + columns, first + columns + 1];
  });
  return firstSeen(patches, 4 * kept(cells, ratio));
}

/** One mask of units for a whole batch: those with the smallest noise are hidden, one more than the ratio says. */
function unitMask(rand, units, ratio) {
  const hidden = Math.trunc(ratio * units) + 1, order = ordered(numbers(rand, units));
  if (hidden >= units) throw new Error(`${percent(ratio)} hides ${hidden} of ${units} units: lower the ratio`);
  return firstSeen(order.reverse(), units - hidden);
}

/** By name: from a generator and `{rows, columns, ratio, masks}` to masks, `Uint8Array(rows * columns)` with 1 = hidden. */
const samplers = {
  random: (rand, o) => [maskFromNoise(numbers(rand, o.rows * o.columns), o.ratio)],
  block: (rand, o) => [maskFromNoise(blockNoise(rand, o.rows, o.columns, o.ratio), o.ratio)],
  grid: (rand, o) => [maskFromNoise(gridNoise(rand, o.rows, o.columns, o.ratio), o.ratio)],
  cells: (rand, o) => [cellMask(rand, o.rows, o.columns, o.ratio)],
  units: (rand, o) => [unitMask(rand, o.rows * o.columns, o.ratio)],
  disjoint: (rand, o) => disjointMasks(numbers(rand, o.rows * o.columns), o.ratio, o.masks),
  independent: (rand, o) => Array.from({ length: o.masks }, () => maskFromNoise(numbers(rand, o.rows * o.columns), o.ratio)),
};
