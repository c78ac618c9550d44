// The sampler, over the full vocabulary, step for step as mirada.generate.sampling.

export interface Choices { temperature: number; topK: number; topP: number; minP: number; penalty: number }
export interface Chances { scaled: Float64Array; p: Float32Array; kept: number; entropy: number; order: Uint32Array }

export const NEUTRAL: Choices = { temperature: 1, topK: 0, topP: 1, minP: 0, penalty: 1 };

/**
 * Chances of every token. `before` are the tokens read so far (for the repetition penalty). A
 * temperature of 0 puts all on the likeliest token. `order` lists the tokens kept, likeliest first.
 */
export function chances(logits: ArrayLike<number>, options: Choices, before: number[] = []): Chances {
  const n = logits.length;
  const scaled = new Float64Array(n);
  for (let i = 0; i < n; i++) scaled[i] = logits[i];
  if (options.penalty !== 1) {
    for (const id of new Set(before)) {
      if (id < n) scaled[id] = scaled[id] < 0 ? scaled[id] * options.penalty : scaled[id] / options.penalty;
    }
  }
  if (options.temperature === 0) return greedy(scaled);
  let ranked = options.penalty === 1 ? orderOf(logits, scaled) : sorted(scaled);
  for (let i = 0; i < n; i++) scaled[i] /= options.temperature;

  const k = options.topK > 0 ? Math.min(options.topK, n) : n;
  if (k < n) {
    const least = scaled[ranked[k - 1]];
    let end = k;
    while (end < n && scaled[ranked[end]] >= least) end++;
    ranked = ranked.subarray(0, end);
  }
  if (options.topP < 1) ranked = nucleus(scaled, ranked, options.topP);
  if (options.minP > 0) {
    const least = scaled[ranked[0]] + Math.log(options.minP);
    let end = 1;
    while (end < ranked.length && scaled[ranked[end]] >= least) end++;
    ranked = ranked.subarray(0, end);
  }
  return spread(scaled, ranked);
}

/** The fewest best tokens whose mass reaches p: those dropped have at most 1 - p together. */
function nucleus(scaled: Float64Array, ranked: Uint32Array, p: number): Uint32Array {
  const top = scaled[ranked[0]];
  let sum = 0;
  for (const i of ranked) sum += Math.exp(scaled[i] - top);
  let tail = 0;
  let end = ranked.length;
  while (end > 1) {
    tail += Math.exp(scaled[ranked[end - 1]] - top) / sum;
    if (tail > 1 - p) break;
    end--;
  }
  return ranked.subarray(0, end);
}

function spread(scaled: Float64Array, ranked: Uint32Array): Chances {
  const p = new Float32Array(scaled.length);
  const top = scaled[ranked[0]];
  let sum = 0;
  for (const i of ranked) sum += Math.exp(scaled[i] - top);
  let entropy = 0;
  for (const i of ranked) {
    const chance = Math.exp(scaled[i] - top) / sum;
    p[i] = chance;
    if (chance > 0) entropy -= chance * Math.log2(chance);
  }
  return { scaled, p, kept: ranked.length, entropy, order: ranked };
}

function greedy(scaled: Float64Array): Chances {
  let best = 0;
  for (let i = 1; i < scaled.length; i++) if (scaled[i] > scaled[best]) best = i;
  const p = new Float32Array(scaled.length);
  p[best] = 1;
  return { scaled, p, kept: 1, entropy: 0, order: Uint32Array.of(best) };
}

const orders = new WeakMap<object, Uint32Array>();

/** The order of logits, found once: no temperature changes it. */
function orderOf(logits: ArrayLike<number>, scaled: Float64Array): Uint32Array {
  let order = orders.get(logits);
  if (!order) orders.set(logits, order = sorted(scaled));
  return order;
}

/** Tokens by falling score. Scores are sorted as numbers: a comparison callback takes 10 times longer at 128k. */
function sorted(scaled: Float64Array): Uint32Array {
  const n = scaled.length;
  const keys = new BigUint64Array(n);
  const view = new Float32Array(1);
  const bits = new Uint32Array(view.buffer);
  for (let i = 0; i < n; i++) {
    view[0] = scaled[i];
    const b = bits[0] & 0x80000000 ? ~bits[0] >>> 0 : (bits[0] | 0x80000000) >>> 0; // rises with the number
    keys[i] = (BigInt(~b >>> 0) << 32n) | BigInt(i);
  }
  keys.sort();
  const order = new Uint32Array(n);
  for (let i = 0; i < n; i++) order[i] = Number(keys[i] & 0xffffffffn);
  return order;
}

/** A token drawn by its chance; u is a number in [0, 1). */
export function draw(found: Chances, u: number): number {
  let left = u;
  for (const i of found.order) {
    left -= found.p[i];
    if (left < 0) return i;
  }
  return found.order[0];
}
