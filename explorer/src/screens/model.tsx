// Model view: every head of every layer as a small picture; only the rows in sight are asked for.
import { useEffect, useRef, useState } from "preact/hooks";
import { tensors } from "../api";
import { headColour, ink, signed } from "../draw/colours";
import { image, place } from "../draw/heatmap";
import type { Stack } from "../schema";
import { base, Canvas, Choice, Exports, Honest, Side, Snippet, StackChoice, Tick, useSize } from "../parts/common";
import { current, known, look, turn, useShared } from "../state";
import type { Tensors } from "../tensors";
import { fill, number, type Words } from "../words";
import { Legend, roleColours, roleWord } from "./roles";

const POOL = 64, CHUNK = 8, LABEL = 64, TOP = 26; // cells of a picture; layers a call; pixels of labels
const SORTS = ["layer", "entropy", "role", "effect"] as const;
type Sort = typeof SORTS[number];
const COMPARED = 8; // heads side by side

export function Model() {
  const { view, known, w } = useShared();
  const stack = current();
  const [compared, compare] = useState<Cell[]>([]);
  const [tinted, tint] = useState(true);
  if (!known.run || !stack || view.run !== known.run.run) return null;
  const roles = known.roles[known.run.model.id], effects = known.sweeps[known.run.run + stack.id];
  const sort = SORTS.find((s) => s === view.part) ?? "layer";
  const sorts: [Sort, string, string?][] = [["layer", w.byLayer], ["entropy", w.byEntropy]];
  if (roles) sorts.push(["role", w.byRole]);
  if (effects) sorts.push(["effect", w.byEffect]);
  return <>
    <section class="work" id="picture">
      <div class="bar"><StackChoice />
        <Choice label={w.sort} value={sort} options={sorts} onChange={(part) => look({ part })} />
        {roles ? <Tick label={w.tint} value={tinted} onChange={tint} /> : known.run.caps.includes("roles") && <button class="small" onClick={() => turn("roles")}>{w.rolesStart} →</button>}
        {!effects && known.run.caps.includes("sweep") && <button class="small" onClick={() => turn("lab")}>{w.sweep} →</button>}</div>
      <p class="says">{w.modelHint}</p>
      {roles && tinted && <Legend colours={roleColours(roles)} />}
      <Grid key={view.run + stack.id} stack={stack} sort={sort} tinted={tinted} compared={compared} onCompare={compare} />
    </section>
    <Side><Chosen />{compared.length > 0 && <Compared stack={stack} cells={compared} onClear={() => compare([])} />}<Honest test /><Snippet code={`${base()}\nprint(tape.pooled(${POOL}, stack="${stack.id}").shape)`} />
      <Exports name="model" rows={() => [["layer", "head", "entropy", "role", "effect"], ...cellsOf(stack).map((c) => [c.layer, c.head, entropies.get(view.run + stack.id)?.(c) ?? "", roleOf(c) ?? "", effectOf(c) ?? ""])]} /></Side>
  </>;
}

interface Cell { layer: number; head: number }
const entropies = new Map<string, (c: Cell) => number | null>(); // of the grid in sight, for its export

const same = (a: Cell, b: Cell) => a.layer === b.layer && a.head === b.head;
const range = (n: number) => Array.from({ length: n }, (_, i) => i);
const cellsOf = (stack: Stack): Cell[] => stack.layers.flatMap((l, layer) => range(l.heads).map((head) => ({ layer, head })));
const nameOf = (w: Words, c: Cell) => `${w.layer} ${c.layer}, ${fill(w.headN, { h: c.head }).toLowerCase()}`;
const roleOf = (c: Cell): string | null => known.roles[known.run!.model.id]?.heads.find((h) => h.stack === current()!.id && same(h, c))?.role ?? null;
const effectOf = (c: Cell): number | null => known.sweeps[known.run!.run + current()!.id]?.effects[c.layer]?.[c.head] ?? null;

function Grid({ stack, sort, tinted, compared, onCompare }: { stack: Stack; sort: Sort; tinted: boolean; compared: Cell[]; onCompare: (cells: Cell[]) => void }) {
  const { view, known, w } = useShared();
  const [node, size] = useSize<HTMLDivElement>();
  const [top, setTop] = useState(0);
  const [at, setAt] = useState<Cell | null>(null);
  const [brush, setBrush] = useState<[number, number, number, number] | null>(null); // row, column to row, column
  const chunks = useChunks(stack);
  entropies.set(view.run + stack.id, chunks.entropy);
  const columns = Math.max(...stack.layers.map((l) => l.heads));
  const side = Math.max(30, Math.min(104, Math.floor((size.width - LABEL - 8) / columns)));
  const rows = arranged(stack, chunks.got, sort, columns);
  const first = Math.max(0, Math.floor((top - TOP) / side)), last = Math.min(rows.length, Math.ceil((top + size.height) / side) + 1);
  const wanted = [...new Set(rows.slice(first, last).flat().map((c) => Math.floor(c.layer / CHUNK)))].join();
  useEffect(() => { (sort === "entropy" ? range(Math.ceil(stack.layers.length / CHUNK)) : wanted.split(",").map(Number)).forEach(chunks.ask); }, [wanted, sort]);
  const spot = (e: PointerEvent): [number, number] => [Math.floor((e.offsetY + top - TOP) / side), Math.floor((e.offsetX - LABEL) / side)];
  const cellAt = (e: PointerEvent): Cell | null => { const [r, c] = spot(e); return r >= 0 && c >= 0 ? rows[r]?.[c] ?? null : null; };
  const open = (c: Cell) => turn("heads", { layer: c.layer, heads: [c.head] });
  const toggle = (c: Cell) => onCompare(compared.some((x) => same(x, c)) ? compared.filter((x) => !same(x, c)) : [...compared, c].slice(-COMPARED));
  const brushed = ([r, c, s, d]: [number, number, number, number]) => rows.slice(Math.min(r, s), Math.max(r, s) + 1).flatMap((row) => row.slice(Math.max(0, Math.min(c, d)), Math.max(c, d) + 1));
  const release = (e: PointerEvent) => {
    if (!brush) return;
    const cells = brushed(brush);
    setBrush(null);
    if (cells.length > 1) onCompare(cells.slice(0, COMPARED));
    else if (cells[0]) e.shiftKey ? toggle(cells[0]) : open(cells[0]);
  };
  const focus = { layer: view.layer, head: view.heads?.length === 1 ? view.heads[0] : 0 };
  const keys = (e: KeyboardEvent) => {
    const r = rows.findIndex((row) => row.some((c) => same(c, focus))), c = rows[r]?.findIndex((x) => same(x, focus)) ?? 0;
    const step: Record<string, [number, number]> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (e.key === "Enter") open(focus);
    else if (e.key === " ") { e.preventDefault(); toggle(focus); }
    else if (step[e.key]) {
      const to = rows[r + step[e.key][0]]?.[c + step[e.key][1]];
      e.preventDefault();
      e.stopPropagation();
      if (to) look({ layer: to.layer, heads: [to.head] });
    }
  };
  const roles = known.roles[known.run!.model.id], colours = roleColours(roles);
  const marks = brush ? brushed(brush) : compared;
  const tip = at && chunks.entropy(at), role = at && roleOf(at), effect = at && effectOf(at);
  return <>
    <div class="grid" ref={node} tabIndex={0} role="application" aria-label={w.modelHint} onKeyDown={keys} onScroll={(e) => setTop(e.currentTarget.scrollTop)}>
      <div class="long" style={{ height: `${TOP + rows.length * side + 8}px` }}>
        <Canvas class="layer" style={{ top: `${top}px` }} width={size.width} height={size.height} label={w.model} deps={[chunks.version, top, side, sort, tinted, roles, view.layer, view.heads?.join(), at, brush?.join(), compared]}
          onPointerDown={(e) => { const p = spot(e as unknown as PointerEvent); if (e.button === 0 && cellAt(e as unknown as PointerEvent)) { (e.currentTarget as Element).setPointerCapture(e.pointerId); setBrush([...p, ...p]); } }}
          onPointerMove={(e) => {
            const c = cellAt(e as unknown as PointerEvent);
            if (!(at && c && same(at, c))) setAt(c);
            if (brush) { const [r, k] = spot(e as unknown as PointerEvent); if (r !== brush[2] || k !== brush[3]) setBrush([brush[0], brush[1], r, k]); }
          }} onPointerLeave={() => setAt(null)} onPointerUp={(e) => release(e as unknown as PointerEvent)} onPointerCancel={() => setBrush(null)}
          draw={(ctx) => {
            ctx.font = "12px system-ui, sans-serif";
            for (let r = first; r < last; r++) {
              const y = TOP + r * side - top;
              ctx.fillStyle = ink("quiet");
              ctx.textAlign = "right";
              if (sort === "layer") ctx.fillText(`${w.layer} ${rows[r][0].layer}`, LABEL - 8, y + side / 2 + 4);
              ctx.textAlign = "center";
              rows[r].forEach((cell, c) => {
                const x = LABEL + c * side, role = roleOf(cell), effect = effectOf(cell);
                chunks.paint(ctx, cell, x + 2, y + 2, side - 4);
                if (tinted && role !== null) { ctx.strokeStyle = colours[role]; ctx.lineWidth = 3; ctx.strokeRect(x + 3, y + 3, side - 6, side - 6); }
                if (sort === "effect" && effect !== null) { ctx.fillStyle = signed(effect / largest(stack)); ctx.fillRect(x + 3, y + side - 9, side - 6, 6); }
                if (sort !== "layer") label(ctx, `${cell.layer}.${cell.head}`, x + side / 2, y + 14);
                const on = same(cell, focus) && view.heads?.length === 1, marked = marks.some((m) => same(m, cell));
                if (on || marked || (at && same(cell, at))) {
                  ctx.strokeStyle = marked ? ink("lock") : headColour(cell.head);
                  ctx.lineWidth = on || marked ? 3 : 2;
                  ctx.strokeRect(x + 1, y + 1, side - 2, side - 2);
                }
              });
            }
            ctx.clearRect(0, 0, size.width, Math.max(0, Math.min(TOP, TOP - top)));
            ctx.fillStyle = ink("quiet");
            ctx.textAlign = "center";
            if (sort === "layer" && top < TOP) for (let h = 0; h < columns; h++) ctx.fillText(String(h), LABEL + (h + 0.5) * side, TOP - 8 - top);
          }} />
      </div>
    </div>
    <p class="fine tip">{chunks.pool && fill(w.poolNote, { p: chunks.pool })} {at ? <strong>{nameOf(w, at)}{tip !== null && tip !== undefined && `, ${fill(w.entropy, { x: number(view.lang, tip, 2) })}`}{role && `, ${roleWord(w, role)}`}{effect !== null && `, ${w.effect} ${number(view.lang, effect, 3)}`}</strong> : w.brushHint}</p>
  </>;
}

/** A name on a picture, readable on any. */
function label(ctx: CanvasRenderingContext2D, text: string, x: number, y: number): void {
  const wide = ctx.measureText(text).width + 6;
  ctx.globalAlpha = 0.8;
  ctx.fillStyle = ink("paper");
  ctx.fillRect(x - wide / 2, y - 11, wide, 14);
  ctx.globalAlpha = 1;
  ctx.fillStyle = ink("text");
  ctx.fillText(text, x, y);
}

const largest = (stack: Stack): number => Math.max(...cellsOf(stack).map((c) => Math.abs(effectOf(c) ?? 0)), 1e-9);

/** Rows of heads: one a layer, or all in one order. */
function arranged(stack: Stack, got: Record<number, Tensors>, sort: Sort, columns: number): Cell[][] {
  const rows = stack.layers.map((l, layer) => range(l.heads).map((head) => ({ layer, head })));
  if (sort === "layer") return rows;
  const order = (c: Cell): number | string => sort === "entropy" ? entropyOf(got, c) ?? Infinity : sort === "role" ? roleOf(c) ?? "\uffff" : -Math.abs(effectOf(c) ?? 0);
  const all = rows.flat().map((cell) => ({ cell, by: order(cell) })).sort((a, b) => a.by < b.by ? -1 : a.by > b.by ? 1 : 0).map((x) => x.cell);
  return range(Math.ceil(all.length / columns)).map((r) => all.slice(r * columns, (r + 1) * columns));
}

function entropyOf(got: Record<number, Tensors>, c: Cell): number | null {
  const t = got[Math.floor(c.layer / CHUNK)]?.get("entropy");
  return t ? t.data[(c.layer % CHUNK) * t.shape[1] + c.head] : null;
}

/** Pictures in calls of 8 layers, asked once each. */
function useChunks(stack: Stack) {
  const { view } = useShared();
  const got = useRef<Record<number, Tensors>>({});
  const asked = useRef(new Set<number>());
  const [version, again] = useState(0);
  const ask = (chunk: number) => {
    if (asked.current.has(chunk)) return;
    asked.current.add(chunk);
    void tensors(overview(view.run, stack, chunk)).then((t) => { got.current[chunk] = t; again((n) => n + 1); });
  };
  const any = Object.values(got.current)[0];
  return {
    got: got.current, ask, version, pool: any ? Math.max(...any.get("pattern").shape.slice(2)) : null,
    entropy: (c: Cell) => entropyOf(got.current, c),
    paint: (ctx: CanvasRenderingContext2D, c: Cell, x: number, y: number, side: number) => picture(ctx, got.current[Math.floor(c.layer / CHUNK)], c, x, y, side),
  };
}

function overview(run: string, stack: Stack, chunk: number): string {
  const last = Math.min(stack.layers.length, (chunk + 1) * CHUNK) - 1;
  return `runs/${run}/attn/${stack.id}/overview?pool=${POOL}&layers=${chunk * CHUNK}-${last}`;
}

function picture(ctx: CanvasRenderingContext2D, chunk: Tensors | undefined, c: Cell, x: number, y: number, side: number): void {
  ctx.strokeStyle = ink("line");
  ctx.lineWidth = 1;
  if (chunk) {
    const t = chunk.get("pattern"), [, H, P, Q] = t.shape;
    place(ctx, image(t.data, P, Q, ((c.layer % CHUNK) * H + c.head) * P * Q), x, y, side, side);
  }
  ctx.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
}

function Chosen() {
  const { view, w } = useShared();
  if (view.heads?.length !== 1) return null;
  return <section><h2>{nameOf(w, { layer: view.layer, head: view.heads[0] })}</h2>
    <button class="main" onClick={() => turn("heads")}>{w.heads} →</button></section>;
}

/** The brushed heads, larger and side by side. */
function Compared({ stack, cells, onClear }: { stack: Stack; cells: Cell[]; onClear: () => void }) {
  const { view, w } = useShared();
  const [got, set] = useState<Record<number, Tensors>>({});
  const chunks = [...new Set(cells.map((c) => Math.floor(c.layer / CHUNK)))];
  useEffect(() => { chunks.forEach((n) => void tensors(overview(view.run, stack, n)).then((t) => set((old) => ({ ...old, [n]: t })))); }, [chunks.join()]);
  const layers = new Set(cells.map((c) => c.layer));
  return <section class="compared"><h2>{fill(w.comparing, { n: cells.length })} <button class="small" onClick={onClear}>{w.close}</button></h2>
    <div class="pictures">{cells.map((c) => <button key={`${c.layer}.${c.head}`} aria-label={nameOf(w, c)} onClick={() => turn("heads", { layer: c.layer, heads: [c.head] })}>
      <Canvas width={118} height={118} deps={[got[Math.floor(c.layer / CHUNK)]]} draw={(ctx) => picture(ctx, got[Math.floor(c.layer / CHUNK)], c, 1, 1, 116)} /><small>{c.layer}.{c.head}{roleOf(c) && ` · ${roleWord(w, roleOf(c)!)}`}</small></button>)}</div>
    {layers.size === 1 && <button class="small" onClick={() => turn("heads", { layer: cells[0].layer, heads: cells.map((c) => c.head).sort((a, b) => a - b) })}>{w.together_} →</button>}</section>;
}
