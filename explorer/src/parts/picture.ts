// What a screen shows, drawn anew: as pixels for PNG, as lines and letters for SVG. Controls stay out.
import { Pen } from "../draw/vector";

type Draw = (ctx: CanvasRenderingContext2D) => void;
interface Box { x: number; y: number; w: number; h: number }

const painters = new WeakMap<Element, Draw>();
/** Remembers how a canvas was painted. */
export const paintedBy = (canvas: HTMLCanvasElement, draw: Draw): void => { painters.set(canvas, draw); };

const CONTROLS = ".bar, .exports, .snippet, .fault, .plan, form, input, select, textarea, progress, button.small, button.main";
const EDGE = 14, FOOT = 34; // pixels around, and for the line below

/** The picture of the screen as SVG. */
export function svg(root: HTMLElement, caption: string): Blob {
  const pen = new Pen();
  const { w, h } = whole(pen as unknown as CanvasRenderingContext2D, root, caption);
  return new Blob([pen.text(w, h, caption)], { type: "image/svg+xml" });
}

/** The same as PNG, two pixels for each of the screen's. */
export function png(root: HTMLElement, caption: string): Promise<Blob | null> {
  const out = document.createElement("canvas"), box = bounds(root);
  out.width = 2 * (box.w + 2 * EDGE);
  out.height = 2 * (box.h + EDGE + FOOT);
  const ctx = out.getContext("2d")!;
  ctx.scale(2, 2);
  whole(ctx, root, caption);
  return new Promise((done) => out.toBlob(done));
}

function bounds(root: HTMLElement): Box {
  const r = root.getBoundingClientRect();
  return { x: r.left, y: r.top - root.scrollTop, w: root.clientWidth, h: root.scrollHeight };
}

function whole(ctx: CanvasRenderingContext2D, root: HTMLElement, caption: string): { w: number; h: number } {
  const box = bounds(root), w = box.w + 2 * EDGE, h = box.h + EDGE + FOOT, body = getComputedStyle(document.body);
  ctx.fillStyle = body.backgroundColor;
  ctx.fillRect(0, 0, w, h);
  ctx.save();
  ctx.translate(EDGE - box.x, EDGE - box.y);
  for (const child of root.children) element(ctx, child, box, 1);
  ctx.restore();
  ctx.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--quiet");
  ctx.font = `12px ${body.fontFamily}`;
  ctx.fillText(caption, EDGE, h - 12);
  return { w, h };
}

function element(ctx: CanvasRenderingContext2D, node: Element, clip: Box, alpha: number): void {
  const style = getComputedStyle(node);
  if (style.display === "none" || style.visibility === "hidden" || node.matches(CONTROLS)) return;
  const r = node.getBoundingClientRect(), seen = cut({ x: r.left, y: r.top, w: r.width, h: r.height }, clip);
  if (r.width && r.height && (!seen.w || !seen.h)) return;
  alpha *= Number(style.opacity);
  ctx.globalAlpha = alpha;
  if (style.backgroundColor !== "rgba(0, 0, 0, 0)" && seen.w) {
    ctx.fillStyle = style.backgroundColor;
    ctx.fillRect(seen.x, seen.y, seen.w, seen.h);
  }
  const draw = painters.get(node);
  if (draw) within(ctx, seen, () => {
    ctx.save();
    ctx.translate(r.left, r.top);
    draw(ctx);
    ctx.restore();
  });
  const inner = style.overflow === "visible" ? clip : seen;
  for (const child of node.childNodes) {
    if (child instanceof Element) element(ctx, child, inner, alpha);
    else if (child instanceof Text) letters(ctx, child, style, inner, alpha);
  }
}

function within(ctx: CanvasRenderingContext2D, { x, y, w, h }: Box, body: () => void): void {
  if (ctx instanceof Pen) return ctx.within(x, y, w, h, body);
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, w, h);
  ctx.clip();
  body();
  ctx.restore();
}

/** A text node: in one piece where it stands on one line, else word by word. */
function letters(ctx: CanvasRenderingContext2D, node: Text, style: CSSStyleDeclaration, clip: Box, alpha: number): void {
  if (!node.data.trim()) return;
  const range = document.createRange();
  range.selectNodeContents(node);
  const parts = range.getClientRects().length > 1 ? [...node.data.matchAll(/\S+/g)].map((m) => [m.index!, m.index! + m[0].length]) : [[0, node.length]];
  ctx.globalAlpha = alpha;
  ctx.fillStyle = style.color;
  ctx.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  for (const [a, b] of parts) {
    range.setStart(node, a);
    range.setEnd(node, b);
    const r = range.getBoundingClientRect(), middle = r.top + r.height / 2;
    if (r.width && r.left < clip.x + clip.w && r.left >= clip.x - 1 && middle >= clip.y && middle <= clip.y + clip.h) ctx.fillText(node.data.slice(a, b), r.left, middle);
  }
  ctx.textBaseline = "alphabetic";
}

function cut(a: Box, b: Box): Box {
  const x = Math.max(a.x, b.x), y = Math.max(a.y, b.y);
  return { x, y, w: Math.max(0, Math.min(a.x + a.w, b.x + b.w) - x), h: Math.max(0, Math.min(a.y + a.h, b.y + b.h) - y) };
}
