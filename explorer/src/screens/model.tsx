// Model view: every head of every layer as a small picture; only the rows in sight are asked for.
import { useEffect, useRef, useState } from "preact/hooks";
import { tensors } from "../api";
import { headColour, ink } from "../draw/colours";
import { image, place } from "../draw/heatmap";
import type { Stack } from "../schema";
import { base, Canvas, Choice, Exports, Honest, Side, Snippet, StackChoice, useSize } from "../parts/common";
import { current, look, useShared } from "../state";
import type { Tensors } from "../tensors";
import { fill, number } from "../words";

const POOL = 64, CHUNK = 8, LABEL = 64, TOP = 26; // cells of a picture; layers a call; pixels of labels

export function Model() {
  const { view, known, w } = useShared();
  const stack = current();
  const [sort, setSort] = useState<"layer" | "entropy">("layer");
  if (!known.run || !stack || view.run !== known.run.run) return null;
  return <>
    <section class="work" id="picture">
      <div class="bar"><StackChoice />
        <Choice label={w.sort} value={sort} options={[["layer", w.byLayer], ["entropy", w.byEntropy]]} onChange={setSort} /></div>
      <p class="says">{w.modelHint}</p>
      <Grid key={view.run + stack.id} stack={stack} sort={sort} />
    </section>
    <Side><Chosen /><Honest test /><Snippet code={`${base()}\nprint(tape.pooled(${POOL}, stack="${stack.id}").shape)`} /><Exports name="model" /></Side>
  </>;
}

interface Cell { layer: number; head: number }

function Grid({ stack, sort }: { stack: Stack; sort: "layer" | "entropy" }) {
  const { view, w } = useShared();
  const [node, size] = useSize<HTMLDivElement>();
  const [top, setTop] = useState(0);
  const [at, setAt] = useState<Cell | null>(null);
  const chunks = useChunks(stack);
  const columns = Math.max(...stack.layers.map((l) => l.heads));
  const side = Math.max(30, Math.min(104, Math.floor((size.width - LABEL - 8) / columns)));
  const rows = arranged(stack, chunks.got, sort, columns);
  const first = Math.max(0, Math.floor((top - TOP) / side)), last = Math.min(rows.length, Math.ceil((top + size.height) / side) + 1);
  const wanted = [...new Set(rows.slice(first, last).flat().map((c) => Math.floor(c.layer / CHUNK)))].join();
  useEffect(() => { (sort === "entropy" ? range(Math.ceil(stack.layers.length / CHUNK)) : wanted.split(",").map(Number)).forEach(chunks.ask); }, [wanted, sort]);
  const cellAt = (e: MouseEvent): Cell | null => {
    const r = Math.floor((e.offsetY + top - TOP) / side), c = Math.floor((e.offsetX - LABEL) / side);
    return e.offsetX >= LABEL && r >= 0 ? rows[r]?.[c] ?? null : null;
  };
  const open = (c: Cell) => look({ screen: "heads", layer: c.layer, heads: [c.head] }, true);
  const focus = { layer: view.layer, head: view.heads?.length === 1 ? view.heads[0] : 0 };
  const keys = (e: KeyboardEvent) => {
    const r = rows.findIndex((row) => row.some((c) => same(c, focus))), c = rows[r]?.findIndex((x) => same(x, focus)) ?? 0;
    const step: Record<string, [number, number]> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (e.key === "Enter") open(focus);
    else if (step[e.key]) {
      const to = rows[r + step[e.key][0]]?.[c + step[e.key][1]];
      e.preventDefault();
      e.stopPropagation();
      if (to) look({ layer: to.layer, heads: [to.head] });
    }
  };
  const tip = at && chunks.entropy(at);
  return <>
    <div class="grid" ref={node} tabIndex={0} role="application" aria-label={w.modelHint} onKeyDown={keys} onScroll={(e) => setTop(e.currentTarget.scrollTop)}>
      <div class="long" style={{ height: `${TOP + rows.length * side + 8}px` }}>
        <Canvas class="layer" style={{ top: `${top}px` }} width={size.width} height={size.height} label={w.model} deps={[chunks.version, top, side, sort, view.layer, view.heads?.join(), at]}
          onPointerMove={(e) => { const c = cellAt(e as unknown as MouseEvent); if (!(at && c && same(at, c))) setAt(c); }} onPointerLeave={() => setAt(null)}
          onClick={(e) => { const c = cellAt(e as unknown as MouseEvent); if (c) open(c); }}
          draw={(ctx) => {
            ctx.font = "12px system-ui, sans-serif";
            for (let r = first; r < last; r++) {
              const y = TOP + r * side - top;
              ctx.fillStyle = ink("quiet");
              ctx.textAlign = "right";
              if (sort === "layer") ctx.fillText(`${w.layer} ${rows[r][0].layer}`, LABEL - 8, y + side / 2 + 4);
              ctx.textAlign = "center";
              rows[r].forEach((cell, c) => {
                chunks.paint(ctx, cell, LABEL + c * side + 2, y + 2, side - 4);
                if (sort === "entropy") { ctx.fillStyle = ink("text"); ctx.fillText(`${cell.layer}.${cell.head}`, LABEL + (c + 0.5) * side, y + side - 6); }
                const on = same(cell, focus) && view.heads?.length === 1;
                if (on || (at && same(cell, at))) {
                  ctx.strokeStyle = headColour(cell.head);
                  ctx.lineWidth = on ? 3 : 2;
                  ctx.strokeRect(LABEL + c * side + 1, y + 1, side - 2, side - 2);
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
    <p class="fine">{chunks.pool && fill(w.poolNote, { p: chunks.pool })} {at && <strong>{w.layer} {at.layer}, {fill(w.headN, { h: at.head }).toLowerCase()}{tip !== null && tip !== undefined && `, ${fill(w.entropy, { x: number(view.lang, tip, 2) })}`}</strong>}</p>
  </>;
}

const same = (a: Cell, b: Cell) => a.layer === b.layer && a.head === b.head;
const range = (n: number) => Array.from({ length: n }, (_, i) => i);

/** Rows of heads: one a layer, or all by rising entropy. */
function arranged(stack: Stack, got: Record<number, Tensors>, sort: string, columns: number): Cell[][] {
  const rows = stack.layers.map((l, layer) => range(l.heads).map((head) => ({ layer, head })));
  if (sort === "layer") return rows;
  const entropy = (c: Cell) => entropyOf(got, c, stack) ?? Infinity;
  const all = rows.flat().sort((a, b) => entropy(a) - entropy(b));
  return range(Math.ceil(all.length / columns)).map((r) => all.slice(r * columns, (r + 1) * columns));
}

function entropyOf(got: Record<number, Tensors>, c: Cell, _stack: Stack): number | null {
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
    const last = Math.min(stack.layers.length, (chunk + 1) * CHUNK) - 1;
    void tensors(`runs/${view.run}/attn/${stack.id}/overview?pool=${POOL}&layers=${chunk * CHUNK}-${last}`)
      .then((t) => { got.current[chunk] = t; again((n) => n + 1); });
  };
  const any = Object.values(got.current)[0];
  return {
    got: got.current, ask, version, pool: any ? Math.max(...any.get("pattern").shape.slice(2)) : null,
    entropy: (c: Cell) => entropyOf(got.current, c, stack),
    paint: (ctx: CanvasRenderingContext2D, c: Cell, x: number, y: number, side: number) => {
      const t = got.current[Math.floor(c.layer / CHUNK)]?.get("pattern");
      ctx.strokeStyle = ink("line");
      ctx.lineWidth = 1;
      if (t) {
        const [, H, P, Q] = t.shape;
        place(ctx, image(t.data, P, Q, ((c.layer % CHUNK) * H + c.head) * P * Q), x, y, side, side);
      }
      ctx.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
    },
  };
}

function Chosen() {
  const { view, w } = useShared();
  if (view.heads?.length !== 1) return null;
  return <section><h2>{w.layer} {view.layer}, {fill(w.headN, { h: view.heads[0] }).toLowerCase()}</h2>
    <button class="main" onClick={() => look({ screen: "heads" }, true)}>{w.heads} →</button></section>;
}
