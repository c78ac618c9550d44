// Two rows of tokens laid beside each other: what both have, and what only one has.
import type { Token } from "./schema";

export interface Step { a: Token | null; b: Token | null }
const MOST = 1500; // tokens a side up to which the longest common row is sought: its cost is their product

/** Rows of equal length stand place by place; others by the longest row that they share. */
export function aligned(a: Token[], b: Token[]): Step[] {
  if (a.length === b.length || Math.max(a.length, b.length) > MOST) {
    return Array.from({ length: Math.max(a.length, b.length) }, (_, i) => ({ a: a[i] ?? null, b: b[i] ?? null }));
  }
  const width = b.length + 1, best = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      best[i * width + j] = a[i].id === b[j].id ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const steps: Step[] = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i].id === b[j].id) steps.push({ a: a[i++], b: b[j++] });
    else if (j >= b.length || (i < a.length && best[(i + 1) * width + j] >= best[i * width + j + 1])) steps.push({ a: a[i++], b: null });
    else steps.push({ a: null, b: b[j++] });
  }
  return steps;
}

export const differ = ({ a, b }: Step): boolean => a?.id !== b?.id;
