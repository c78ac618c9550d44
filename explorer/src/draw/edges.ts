// Chooses and paints the lines of the head view: at most 6,000 in a frame, strongest first.
import { headColour } from "./colours";

export const MOST = 6000;
export interface Edge { head: number; q: number; k: number; w: number }

/** The strongest edges by falling weight, and how much of the mass the others had. */
export function strongest(all: Edge[], most = MOST): { edges: Edge[]; rest: number; dropped: number } {
  all.sort((a, b) => b.w - a.w);
  const edges = all.slice(0, most);
  let whole = 0, rest = 0;
  all.forEach((e, at) => { whole += e.w; if (at >= most) rest += e.w; });
  return { edges, rest: whole ? rest / whole : 0, dropped: Math.max(0, all.length - most) };
}

export interface Frame { width: number; height: number; top: number; row: number; left: number; right: number; heads: number[] }

/** Draws edges as curves from a query's row at the left to a key's row at the right; the strongest
 * of them at `strength`, the others by their weight against it. */
export function paint(ctx: CanvasRenderingContext2D, edges: Edge[], frame: Frame, strength: number): number {
  const { top, row, left, right, height, heads } = frame;
  const middle = (left + right) / 2;
  const most = edges.reduce((top, e) => Math.max(top, e.w), 1e-9);
  let drawn = 0;
  ctx.lineCap = "round";
  for (let at = edges.length - 1; at >= 0; at--) { // the strongest last, on top
    const e = edges[at];
    const aside = spread(heads.indexOf(e.head), heads.length) * row; // heads side by side, not one on another
    const a = (e.q + 0.5) * row - top + aside, b = (e.k + 0.5) * row - top + aside;
    if ((a < -200 && b < -200) || (a > height + 200 && b > height + 200)) continue;
    ctx.globalAlpha = Math.min(1, strength * Math.max(0.06, e.w / most));
    ctx.strokeStyle = headColour(e.head);
    ctx.lineWidth = 0.8 + 3.4 * Math.sqrt(most) * (e.w / most);
    ctx.beginPath();
    ctx.moveTo(left, a);
    ctx.bezierCurveTo(middle, a, middle, b, right, b);
    ctx.stroke();
    drawn++;
  }
  ctx.globalAlpha = 1;
  return drawn;
}

const spread = (at: number, of: number): number => of < 2 ? 0 : (at / (of - 1) - 0.5) * 0.66;
