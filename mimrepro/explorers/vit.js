// The forward pass of a small masked autoencoder, so that a page without a kernel reconstructs under a painted mask.
// Weights travel as 16-bit floats and a table of their names, shapes and places; the arithmetic here is that of
// `mimrepro.vit`: pre-norm blocks, erf GELU, an encoder on the class token and the visible patches only.

const LN_EPS = 1e-6;

/**
 * 16-bit floats, little endian, as numbers.
 * @param {Uint8Array} bytes
 * @returns {Float32Array}
 */
function fromHalf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const powers = Float64Array.from({ length: 32 }, (_, e) => 2 ** (e - 15));
  const numbers = new Float32Array(bytes.byteLength >> 1);
  for (let i = 0; i < numbers.length; i++) {
    const half = view.getUint16(2 * i, true), exponent = (half >> 10) & 31, fraction = (half & 1023) / 1024;
    const size = exponent === 31 ? (fraction ? NaN : Infinity) : exponent ? (1 + fraction) * powers[exponent] : fraction * powers[1];
    numbers[i] = half & 0x8000 ? -size : size;
  }
  return numbers;
}

/**
 * x wᵀ + b, computed in tiles of four rows and two columns so that each number read serves several products.
 * @param {Float32Array} x rows × inner
 * @param {Float32Array} w outer × inner, as PyTorch stores it
 * @param {Float32Array} b outer
 * @returns {Float32Array} rows × outer
 */
function linear(x, w, b, rows, inner, outer) {
  const y = new Float32Array(rows * outer);
  let r = 0;
  for (; r + 4 <= rows; r += 4) fourRows(x, w, b, y, r, inner, outer);
  for (; r < rows; r++) {
    for (let o = 0; o < outer; o++) {
      let sum = b[o];
      for (let i = 0, a = r * inner, c = o * inner; i < inner; i++) sum += x[a + i] * w[c + i];
      y[r * outer + o] = sum;
    }
  }
  return y;
}

/** Rows r to r+3 of `linear`. */
function fourRows(x, w, b, y, r, inner, outer) {
  const x0 = r * inner, x1 = x0 + inner, x2 = x1 + inner, x3 = x2 + inner;
  const y0 = r * outer, y1 = y0 + outer, y2 = y1 + outer, y3 = y2 + outer;
  for (let o = 0; o < outer; o += 2) {
    const pair = o + 1 < outer, u0 = o * inner, v0 = pair ? u0 + inner : u0;
    let p0 = 0, p1 = 0, p2 = 0, p3 = 0, q0 = 0, q1 = 0, q2 = 0, q3 = 0;
    for (let i = 0; i < inner; i++) {
      const u = w[u0 + i], v = w[v0 + i], a = x[x0 + i], c = x[x1 + i], d = x[x2 + i], e = x[x3 + i];
      p0 += a * u; p1 += c * u; p2 += d * u; p3 += e * u;
      q0 += a * v; q1 += c * v; q2 += d * v; q3 += e * v;
    }
    y[y0 + o] = p0 + b[o]; y[y1 + o] = p1 + b[o]; y[y2 + o] = p2 + b[o]; y[y3 + o] = p3 + b[o];
    if (!pair) return;
    y[y0 + o + 1] = q0 + b[o + 1]; y[y1 + o + 1] = q1 + b[o + 1]; y[y2 + o + 1] = q2 + b[o + 1]; y[y3 + o + 1] = q3 + b[o + 1];
  }
}

/** Each row with mean 0 and variance 1, then scaled and shifted: rows × width. */
function layerNorm(x, weight, bias, width) {
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += width) {
    let mean = 0, variance = 0;
    for (let i = 0; i < width; i++) mean += x[start + i];
    mean /= width;
    for (let i = 0; i < width; i++) variance += (x[start + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / width + LN_EPS);
    for (let i = 0; i < width; i++) y[start + i] = (x[start + i] - mean) * scale * weight[i] + bias[i];
  }
  return y;
}

/** The error function to 1.5e-7 (Abramowitz and Stegun 7.1.26). */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

/** GELU with the error function, as timm's, in place. */
function gelu(x) {
  for (let i = 0; i < x.length; i++) x[i] *= 0.5 * (1 + erf(x[i] * Math.SQRT1_2));
  return x;
}

/** x += y */
function addTo(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/**
 * Attention of all heads.
 * @param {Float32Array} qkv tokens × 3·width: queries, keys, values
 * @returns {Float32Array} tokens × width
 */
function attend(qkv, tokens, width, heads) {
  const size = width / heads, stride = 3 * width, scale = size ** -0.5;
  const y = new Float32Array(tokens * width), weights = new Float64Array(tokens);
  for (let head = 0; head < heads; head++) {
    for (let t = 0; t < tokens; t++) {
      const query = t * stride + head * size, out = t * width + head * size;
      let largest = -Infinity, sum = 0;
      for (let s = 0; s < tokens; s++) {
        let dot = 0;
        for (let i = 0, key = s * stride + width + head * size; i < size; i++) dot += qkv[query + i] * qkv[key + i];
        weights[s] = dot * scale;
        if (weights[s] > largest) largest = weights[s];
      }
      for (let s = 0; s < tokens; s++) sum += weights[s] = Math.exp(weights[s] - largest);
      for (let s = 0; s < tokens; s++) {
        const share = weights[s] / sum;
        for (let i = 0, value = s * stride + 2 * width + head * size; i < size; i++) y[out + i] += share * qkv[value + i];
      }
    }
  }
  return y;
}

/** One pre-norm transformer block on z (tokens × width), in place. @param {function(string): Float32Array} w weights by name */
function transformerBlock(z, tokens, width, heads, w) {
  const hidden = w("mlp.fc1.bias").length;
  const qkv = linear(layerNorm(z, w("norm1.weight"), w("norm1.bias"), width), w("attn.qkv.weight"), w("attn.qkv.bias"), tokens, width, 3 * width);
  addTo(z, linear(attend(qkv, tokens, width, heads), w("attn.proj.weight"), w("attn.proj.bias"), tokens, width, width));
  const inner = linear(layerNorm(z, w("norm2.weight"), w("norm2.bias"), width), w("mlp.fc1.weight"), w("mlp.fc1.bias"), tokens, width, hidden);
  addTo(z, linear(gelu(inner), w("mlp.fc2.weight"), w("mlp.fc2.bias"), tokens, hidden, width));
}

/**
 * A masked autoencoder from its packed weights.
 * @param {{width, depth, heads, decoderWidth, decoderDepth, decoderHeads, patches, patchNumbers, out, tensors}} plan sizes; `tensors`: name -> [place, count]
 * @param {Uint8Array} bytes 16-bit floats
 * @returns {function(Float32Array, Uint8Array): Float32Array} normalised patches (N × numbers) and a mask (N, 1 = hidden) -> predictions (N × out)
 */
function maskedAutoencoder(plan, bytes) {
  const numbers = fromHalf(bytes);
  const tensor = (name) => numbers.subarray(plan.tensors[name][0], plan.tensors[name][0] + plan.tensors[name][1]);
  const run = (part, z, width, depth, heads) => {
    for (let k = 0; k < depth; k++) transformerBlock(z, z.length / width, width, heads, (name) => tensor(`${part}.blocks.${k}.${name}`));
    return layerNorm(z, tensor(`${part}.norm.weight`), tensor(`${part}.norm.bias`), width);
  };
  return (patches, hidden) => {
    const keep = [...hidden.keys()].filter((i) => !hidden[i]);
    const z = run("encoder", embedVisible(patches, keep, plan, tensor), plan.width, plan.depth, plan.heads);
    const y = run("decoder", fillHidden(z, keep, plan, tensor), plan.decoderWidth, plan.decoderDepth, plan.decoderHeads);
    return linear(y.subarray(plan.decoderWidth), tensor("decoder.pred.weight"), tensor("decoder.pred.bias"), plan.patches, plan.decoderWidth, plan.out);
  };
}

/** Class token and visible patches with their positions: 1+K × width. */
function embedVisible(patches, keep, plan, tensor) {
  const { width, patchNumbers } = plan, place = tensor("encoder.pos_embed"), z = new Float32Array((1 + keep.length) * width);
  const seen = new Float32Array(keep.length * patchNumbers);
  keep.forEach((patch, k) => seen.set(patches.subarray(patch * patchNumbers, (patch + 1) * patchNumbers), k * patchNumbers));
  z.set(tensor("encoder.cls_token"));
  z.set(linear(seen, tensor("encoder.embed.weight"), tensor("encoder.embed.bias"), keep.length, patchNumbers, width), width);
  keep.forEach((patch, k) => { for (let i = 0; i < width; i++) z[(1 + k) * width + i] += place[(1 + patch) * width + i]; });
  return z;
}

/** What the decoder reads: class token, then for every patch its token or the mask token, with positions: 1+N × decoder width. */
function fillHidden(z, keep, plan, tensor) {
  const width = plan.decoderWidth, token = tensor("decoder.mask_token"), y = new Float32Array((1 + plan.patches) * width);
  const seen = linear(z, tensor("decoder.embed.weight"), tensor("decoder.embed.bias"), 1 + keep.length, plan.width, width);
  for (let patch = 0; patch < plan.patches; patch++) y.set(token, (1 + patch) * width);
  y.set(seen.subarray(0, width));
  keep.forEach((patch, k) => y.set(seen.subarray((1 + k) * width, (2 + k) * width), (1 + patch) * width));
  addTo(y, tensor("decoder.pos_embed"));
  return y;
}
