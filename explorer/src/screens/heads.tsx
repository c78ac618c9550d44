// Head view: two columns of tokens, lines in the colours of their heads; or one head as a map.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { tensors } from "../api";
import { headColour, ink } from "../draw/colours";
import { MOST, paint, strongest, type Edge } from "../draw/edges";
import { image, place } from "../draw/heatmap";
import type { Token } from "../schema";
import { base, Canvas, Choice, Exports, Honest, LayerSlider, Piece, plain, Side, Slider, Snippet, StackChoice, Tick, tokenLabel, useAsked, useSize, Waiting } from "../parts/common";
import { current, headCount, hover, isSink, keys, look, point, queries, shownHeads, useHover, useShared, view, type View } from "../state";
import { ROOT } from "../tensors";
import { count, fill, number, percent, type Words } from "../words";

const WHOLE = 512; // tokens up to which a layer is fetched whole
const CHUNK = 256; // rows by which a longer one is fetched, two chunks at a time
const ROW = 26, TALL = 42; // pixels of a token, at least and at most
const SIDE = 170; // pixels of a column of tokens

export interface Layer {
  at(head: number, q: number): ArrayLike<number> | null; // a dense row of weights, where there is one
  edges(heads: number[], rows: [number, number]): Edge[];
  has(q: number): boolean; // whether a row is here
  bytes: Uint8Array | null; rows: number; cols: number; scale: number; rest(heads: number[], q: number): number;
}

/** The layer that is looked at: whole if it is small, else the strongest 32 keys of the queries in sight. */
export function useLayer(first: number): ReturnType<typeof useAsked<Layer>> {
  const { view, known } = useShared();
  const nq = queries().length, nk = keys().length, small = Math.max(nq, nk) <= WHOLE;
  const there = known.run && current()?.layers[view.layer]?.attn !== "none" && known.run.caps.includes("attn");
  const path = `runs/${view.run}/attn/${view.stack}/${view.layer}`;
  const value = small ? view.value : "weight";
  const enc = value === "score" ? "f16" : "u8sqrt";
  const from = Math.floor(first / CHUNK) * CHUNK;
  const call = small ? `${path}?enc=${enc}&value=${value}` : `${path}/topk?k=32&rows=${from}:${Math.min(nq, from + 2 * CHUNK)}`;
  return useAsked<Layer>(there && view.run === known.run?.run && nq > 0 ? call : null, async () => {
    const got = await tensors(call);
    return small ? whole(got.get("pattern"), Number(got.meta.scale ?? 1), enc === "f16") : listed(got, from, nq);
  }, true);
}

function whole({ shape, data }: { shape: number[]; data: ArrayLike<number> }, scale: number, score: boolean): Layer {
  const [, rows, cols] = shape;
  const bytes = score ? stretched(data) : data as Uint8Array;
  return {
    rows, cols, bytes, scale, rest: () => 0, has: () => true,
    at: (head, q) => Float32Array.from({ length: cols }, (_, k) => {
      const i = (head * rows + q) * cols + k;
      return score ? data[i] : ROOT[bytes[i]] * scale;
    }),
    edges: (heads, [a, b]) => {
      const found: Edge[] = [];
      for (const head of heads) {
        for (let q = a; q < b; q++) {
          const from = (head * rows + q) * cols;
          for (let k = 0; k < cols; k++) if (bytes[from + k] > 0) found.push({ head, q, k, w: ROOT[bytes[from + k]] });
        }
      }
      return found;
    },
  };
}

/** Scores as bytes, from the lowest to the highest; what a mask hides (-inf) is 0. */
function stretched(scores: ArrayLike<number>): Uint8Array {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < scores.length; i++) {
    if (Number.isFinite(scores[i])) { low = Math.min(low, scores[i]); high = Math.max(high, scores[i]); }
  }
  return Uint8Array.from(scores, (x) => Number.isFinite(x) ? 1 + Math.round(254 * (x - low) / (high - low || 1)) : 0);
}

/** Rows from..from + n of a layer, the strongest keys of each. */
function listed(got: Awaited<ReturnType<typeof tensors>>, from: number, rows: number): Layer {
  const index = got.get("index").data, weight = got.get("weight"), rest = got.get("rest").data;
  const [, n, k] = weight.shape, has = (q: number) => q >= from && q < from + n;
  return {
    at: () => null, rows, cols: rows, bytes: null, scale: 1, has,
    rest: (heads, q) => has(q) ? heads.reduce((sum, h) => sum + rest[h * n + q - from], 0) / Math.max(1, heads.length) : 0,
    edges: (heads, [a, b]) => {
      const found: Edge[] = [];
      for (const head of heads) {
        for (let q = Math.max(a, from); q < Math.min(b, from + n); q++) {
          for (let j = 0; j < k; j++) {
            const i = (head * n + q - from) * k + j;
            if (weight.data[i] > 0) found.push({ head, q, k: index[i], w: ROOT[weight.data[i]] });
          }
        }
      }
      return found;
    },
  };
}

export function HeadChips() {
  const { view, w } = useShared();
  const n = headCount(), on = shownHeads();
  const toggle = (h: number) => {
    const next = on.includes(h) ? on.filter((x) => x !== h) : [...on, h].sort((a, b) => a - b);
    look({ heads: next.length === n ? null : next });
  };
  return <div class="heads" role="group" aria-label={w.heads_} title={w.soloHint}>
    {Array.from({ length: n }, (_, h) => <button key={h} class="head" aria-pressed={on.includes(h)} aria-label={fill(w.headN, { h })}
      style={{ "--head": headColour(h) }} onClick={(e) => { if (e.detail < 2) toggle(h); }}
      onDblClick={() => look({ heads: [h] })}>{h}</button>)}
    <button class="small" disabled={!view.heads} onClick={() => look({ heads: null })}>{w.allHeads}</button>
  </div>;
}

export function Heads() {
  const { view, known, w } = useShared();
  const [first, setFirst] = useState(0); // the first row in sight
  const asked = useLayer(first);
  const [expanded, expand] = useState(false);
  const stack = current(), layer = stack?.layers[view.layer];
  const paired = queries().some((t) => t.seq === 1);
  const n = Math.max(queries().length, keys().length);
  if (!known.run) return null;
  return <>
    <section class={`work${expanded ? " expanded" : ""}`} id="picture">
      <div class="bar">
        <StackChoice /><LayerSlider />
        <Choice label={w.show} value={view.mode} options={[["lines", w.lines], ["map", w.map]]}
          onChange={(mode) => look({ mode, value: view.value === "score" ? "weight" : view.value, heads: mode === "map" && view.heads?.length !== 1 ? [shownHeads()[0] ?? 0] : view.heads })} />
        {n <= WHOLE && <Choice label={w.value} value={view.value} onChange={(value) => look({ value })}
          options={view.mode === "map" ? [...VALUES(w), ["score", w.score, w.scoreWhat]] : VALUES(w)} />}
      </div>
      <div class="bar"><HeadChips />
        <button class="small push" aria-pressed={expanded} onClick={() => expand(!expanded)}>{expanded ? w.shrink : w.expand}</button>
        {view.mode === "lines" && <Tick label={w.sinks} title={w.sinksWhat} value={view.sinks} onChange={(sinks) => look({ sinks })} />}
        {view.mode === "lines" && <Slider label={w.least} value={view.least} min={0} max={0.5} step={0.01} text={percent(view.lang, view.least)} onInput={(least) => look({ least })} />}
        {paired && <Choice label={w.query} value={view.pair} options={[["all", w.bothWays], ["ab", w.ab], ["ba", w.ba]]} onChange={(pair) => look({ pair })} />}
      </div>
      <Says layer={asked.value} />
      {layer?.attn === "none" ? <p class="quiet">{w.noMatrix}</p> : <Waiting of={asked} />}
      {asked.value && asked.value.rows === queries().length && layer?.attn !== "none" && (view.mode === "lines" ? <Lines layer={asked.value} onFirst={setFirst} /> : <Matrix layer={asked.value} />)}
    </section>
    <Side><Row value={view.value} /><Honest test /><Snippet code={snippet()} /><Exports name={`heads-${view.layer}`} rows={asked.value ? () => csvOf(asked.value!) : undefined} /></Side>
  </>;
}

/** Every weight of the heads shown, as drawn. */
const csvOf = (layer: Layer): (string | number)[][] => [["head", "query", "key", "weight"],
  ...layer.edges(shownHeads(), [0, layer.rows]).map((e) => [e.head, e.q, e.k, e.w * layer.scale])];

const VALUES = (w: Words): [View["value"], string, string][] => [["weight", w.weight, w.weightWhat], ["norm", w.norm, w.normWhat]];

const snippet = (): string => {
  const heads = view.heads ? `[${view.heads.join(", ")}]` : "None";
  const rows = view.q === null ? "" : `, rows=slice(${view.q}, ${view.q + 1})`;
  return `${base()}\nprint(tape.pattern(layer=${view.layer}, heads=${heads}${rows}, stack="${view.stack}"))`;
};

/** The edges that the filters let through, and why the others are not drawn. */
function useEdges(layer: Layer, rows: [number, number]) {
  const { view } = useShared();
  const heads = shownHeads();
  return useMemo(() => {
    const nq = queries(), nk = keys();
    const all = layer.edges(heads, rows);
    const lost = { remainderSinks: 0, remainderPair: 0, remainderLeast: 0, remainderTop: 0, remainderTopk: 0 };
    let mass = 0;
    for (let q = rows[0]; q < rows[1]; q++) { const r = layer.rest(heads, q) * heads.length; lost.remainderTopk += r; mass += r; }
    const left = all.filter((e) => {
      mass += e.w;
      if (!view.sinks && (isSink(nk[e.k], e.k) || nq[e.q].special)) lost.remainderSinks += e.w;
      else if (view.pair !== "all" && !(nq[e.q].seq === (view.pair === "ab" ? 0 : 1) && nk[e.k].seq === (view.pair === "ab" ? 1 : 0))) lost.remainderPair += e.w;
      else if (e.w < view.least) lost.remainderLeast += e.w;
      else return true;
      return false;
    });
    const kept = left.reduce((sum, e) => sum + e.w, 0);
    const top = strongest(left);
    lost.remainderTop = top.rest * kept;
    const share = mass ? Object.fromEntries(Object.entries(lost).map(([why, x]) => [why, x / mass])) : {};
    return { edges: top.edges, share: share as Partial<typeof lost> };
  }, [layer, rows[0], rows[1], heads.join(), view.sinks, view.least, view.pair]);
}

function Lines({ layer, onFirst }: { layer: Layer; onFirst: (row: number) => void }) {
  const { view, w } = useShared();
  const [node, size] = useSize<HTMLDivElement>();
  const [top, setTop] = useState(0);
  const n = Math.max(layer.rows, layer.cols), row = Math.max(ROW, Math.min(TALL, Math.floor(size.height / n))), whole = n * row;
  const height = Math.min(whole, Math.max(240, size.height));
  const first = Math.max(0, Math.floor(top / row) - 4), last = Math.min(n, Math.ceil((top + height) / row) + 4);
  const { edges, share } = useEdges(layer, n <= WHOLE ? [0, layer.rows] : [Math.min(first, layer.rows), Math.min(last, layer.rows)]);
  const side = Math.min(SIDE, Math.floor(size.width * 0.3)), right = Math.max(side + 100, Math.min(size.width - side, side + 560));
  useEffect(() => () => point(null), []);
  useEffect(() => onFirst(first), [first]);
  useEffect(() => { // a word locked elsewhere comes into sight
    const box = document.querySelector<HTMLElement>(".columns");
    if (box && view.q !== null && (view.q * row < box.scrollTop || (view.q + 1) * row > box.scrollTop + box.clientHeight)) box.scrollTop = (view.q - 3) * row;
  }, [view.q, size.height]);
  if (!shownHeads().length) return <p class="quiet">{w.noHeads}</p>;
  const frame = { width: size.width, height, top, row, left: side, right, heads: shownHeads() };
  return <>
    <div class="titles" style={{ width: `${right + side}px` }}><span style={{ width: `${side}px` }}>{w.query} ({w.looks})</span><span style={{ width: `${side}px` }}>{w.key} ({w.isLookedAt})</span></div>
    <div class="columns" ref={node} tabIndex={-1} onScroll={(e) => setTop(e.currentTarget.scrollTop)} onPointerLeave={() => point(null)}>
      <div class="long" style={{ height: `${whole}px` }}>
        <Faint edges={edges} frame={frame} /><Focus edges={edges} frame={frame} />
        <Column tokens={queries()} side="q" first={first} last={last} left={0} edges={edges} heads={shownHeads().length} row={row} width={side} />
        <Column tokens={keys()} side="k" first={first} last={last} left={right} edges={edges} heads={shownHeads().length} row={row} width={side} />
      </div>
    </div>
    <Rest share={share} edges={edges.length} />
    <p class="fine">{w.lockHint} {view.value === "weight" && w.quantised}</p>
  </>;
}

interface Layered { edges: Edge[]; frame: Parameters<typeof paint>[2] }

function Faint({ edges, frame }: Layered) {
  const { view, w } = useShared();
  const busy = edges.length > 1200 ? 0.35 : edges.length > 300 ? 0.6 : 0.9;
  return <Canvas class="layer" width={frame.width} height={frame.height} style={{ top: `${frame.top}px` }} label={w.headsWhat}
    deps={[edges, frame.top, frame.row, frame.right, view.q]} draw={(ctx) => { paint(ctx, edges, frame, view.q === null ? busy : busy * 0.18); }} />;
}

/** Lines of the word under the pointer, or of the locked one: a small overlay, painted at each move. */
function Focus({ edges, frame }: Layered) {
  const { view } = useShared();
  const { q, k } = useHover();
  const mine = q !== null ? edges.filter((e) => e.q === q) : k !== null ? edges.filter((e) => e.k === k)
    : view.q !== null ? edges.filter((e) => e.q === view.q) : [];
  const [a, b] = [frame.left, frame.right];
  return <Canvas class="layer" width={frame.width} height={frame.height} style={{ top: `${frame.top}px` }} deps={[edges, frame.top, frame.row, frame.right, q, k, view.q]}
    draw={(ctx) => {
      if (!mine.length) return;
      if (q !== null || k !== null) {
        ctx.globalAlpha = 0.82;
        ctx.fillStyle = ink("paper");
        ctx.fillRect(a, 0, b - a, frame.height);
        ctx.globalAlpha = 1;
      }
      paint(ctx, mine, frame, 1.6);
    }} />;
}

function Column({ tokens, side, first, last, left, edges, heads, row, width }:
  { tokens: Token[]; side: "q" | "k"; first: number; last: number; left: number; edges: Edge[]; heads: number; row: number; width: number }) {
  const { view, w } = useShared();
  const at = useHover();
  const ref = useRef<HTMLDivElement>(null);
  const to = Math.min(last, tokens.length);
  const near = shares(edges, side, at.q ?? (at.k === null ? view.q : null), at.k, tokens.length, heads);
  const move = (e: KeyboardEvent, i: number) => {
    const j = e.key === "ArrowDown" ? i + 1 : e.key === "ArrowUp" ? i - 1 : i;
    if (j === i || j < 0 || j >= tokens.length) return;
    e.preventDefault();
    point(side === "q" ? j : null, side === "k" ? j : null);
    const scroller = ref.current!.closest<HTMLElement>(".columns")!;
    if (j * row < scroller.scrollTop || (j + 1) * row > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = (j - 3) * row;
    requestAnimationFrame(() => ref.current?.querySelector<HTMLElement>(`[data-i="${j}"]`)?.focus());
  };
  return <div class={`column ${side}`} ref={ref} role="group" aria-label={side === "q" ? w.query : w.key} style={{ left: `${left}px`, width: `${width}px` }}>
    {tokens.slice(first, to).map((t, j) => {
      const i = first + j;
      const on = side === "q" ? (at.q ?? (at.k === null ? view.q : null)) === i : at.k === i;
      const same = j > 0 && t.w !== null && tokens[i - 1].w === t.w;
      return <button key={i} data-i={i} aria-label={tokenLabel(w, t, i, tokens.length)} aria-pressed={side === "q" && view.q === i}
        class={`tok${on ? " on" : ""}${t.special ? " special" : ""}${same ? " same" : ""}${side === "q" && view.q === i ? " locked" : ""}`}
        style={{ top: `${i * row}px`, height: `${row - 1}px`, lineHeight: `${row - 1}px`, "--w": near ? near[i].toFixed(3) : "0" }} tabIndex={i === (side === "q" ? view.q ?? first : first) ? 0 : -1}
        onPointerEnter={() => point(side === "q" ? i : null, side === "k" ? i : null)}
        onFocus={() => point(side === "q" ? i : null, side === "k" ? i : null)} onKeyDown={(e) => move(e, i)}
        onClick={() => side === "q" ? look({ q: view.q === i ? null : i, k: null }) : look({ k: view.k === i ? null : i })}>
        <Piece s={t.s} /></button>;
    })}
  </div>;
}

/** How strongly each token of the other side is joined with the one in focus: mean of heads. */
function shares(edges: Edge[], side: "q" | "k", q: number | null, k: number | null, n: number, heads: number): Float32Array | null {
  if ((side === "k" ? q : k) === null) return null;
  const out = new Float32Array(n);
  for (const e of edges) {
    if (side === "k" ? e.q === q : e.k === k) out[side === "k" ? e.k : e.q] += e.w / heads;
  }
  return out;
}

/** One sentence: where the word in focus looked. It is what a screen reader says, too. */
function Says({ layer }: { layer: Layer | null }) {
  const { view, w } = useShared();
  const at = useHover();
  const q = at.q ?? view.q, heads = shownHeads();
  if (q === null || !layer?.has(q) || q >= layer.rows || !heads.length) return <p class="says quiet">{w.saysNothing}</p>;
  const tokens = keys();
  const sum = new Map<number, number>();
  for (const e of layer.edges(heads, [q, q + 1])) {
    if (view.sinks || !isSink(tokens[e.k], e.k)) sum.set(e.k, (sum.get(e.k) ?? 0) + e.w * layer.scale / heads.length);
  }
  const best = [...sum].sort((a, b) => b[1] - a[1]).slice(0, 3).filter(([, x]) => x > 0.004);
  return <p class="says" aria-live="polite">{fill(w.says, { q: plain(queries()[q]) })} {best.map(([k, x], i) =>
    <span key={k}>{i > 0 && ", "}<strong>{fill(w.quoted, { s: plain(tokens[k]) })}</strong> {view.value === "weight" ? percent(view.lang, x) : number(view.lang, x, 2)}</span>)}
    <span class="quiet"> ({heads.length === 1 ? fill(w.saysHead, { h: heads[0] }) : fill(w.saysAverage, { n: heads.length })})</span></p>;
}

function Rest({ share, edges }: { share: Record<string, number>; edges: number }) {
  const { view, w } = useShared();
  const why = Object.entries(share).filter(([, x]) => x > 0.001);
  const total = why.reduce((sum, [, x]) => sum + x, 0);
  const say = why.map(([name, x]) => `${percent(view.lang, x)} ${fill(String(w[name as keyof typeof w]), { n: count(view.lang, MOST) })}`).join(", ");
  return <div class="rest" data-edges={edges}><div class="track"><div style={{ width: `${Math.min(100, 100 * (1 - total))}%` }} /></div>
    {total > 0.001 && <span>{fill(w.remainder, { p: percent(view.lang, total), why: say })}</span>}</div>;
}

function Matrix({ layer }: { layer: Layer }) {
  const { view, w } = useShared();
  const [node, size] = useSize<HTMLDivElement>();
  const head = shownHeads()[0];
  const large = layer.bytes === null;
  const pool = useAsked(large ? `runs/${view.run}/attn/${view.stack}/overview?pool=128&layers=${view.layer}-${view.layer}` : null,
    () => tensors(`runs/${view.run}/attn/${view.stack}/overview?pool=128&layers=${view.layer}-${view.layer}`));
  if (head === undefined) return <p class="quiet">{w.noHeads}</p>;
  const shape = large ? pool.value?.get("pattern").shape.slice(2) : [layer.rows, layer.cols];
  const data = large ? pool.value?.get("pattern").data : layer.bytes;
  if (!shape || !data) return <Waiting of={pool} />;
  const [rows, cols] = shape;
  const labels = !large && Math.max(rows, cols) <= 48;
  const cell = Math.max(1, Math.min(labels ? 34 : 12, Math.floor(Math.min((size.width - 110) / cols, Math.max(300, size.height - 100) / rows))));
  const x0 = labels ? 100 : 8, y0 = labels ? 92 : 8;
  const where = (e: PointerEvent): [number, number] | null => {
    const k = Math.floor((e.offsetX - x0) / cell), q = Math.floor((e.offsetY - y0) / cell);
    return q >= 0 && q < rows && k >= 0 && k < cols ? [q, k] : null;
  };
  const width = x0 + cols * cell + 60, height = y0 + rows * cell + 8;
  return <div class="map" ref={node}><div class="stackup" style={{ width: `${width}px`, height: `${height}px` }}>
    <Canvas class="layer" width={width} height={height} label={`${w.map}. ${w.mapAxes}`} deps={[data, head, cell, view.layer]}
      onPointerMove={(e) => { const at = large ? null : where(e as unknown as PointerEvent); at ? point(at[0], at[1]) : point(null); }} onPointerLeave={() => point(null)}
      onClick={(e) => { const at = large ? null : where(e as unknown as PointerEvent); if (at) look({ q: at[0], k: at[1] }); }}
      draw={(ctx) => {
        place(ctx, image(data, rows, cols, head * rows * cols), x0, y0, cols * cell, rows * cell);
        ctx.strokeStyle = ink("line");
        ctx.strokeRect(x0 - 0.5, y0 - 0.5, cols * cell + 1, rows * cell + 1);
        if (!labels) return;
        ctx.fillStyle = ink("text");
        ctx.font = `${Math.min(13, cell - 2)}px system-ui, sans-serif`;
        ctx.textAlign = "right";
        queries().forEach((t, i) => ctx.fillText(t.s.slice(0, 12), x0 - 6, y0 + (i + 0.5) * cell + 4));
        ctx.textAlign = "left";
        keys().forEach((t, i) => { ctx.save(); ctx.translate(x0 + (i + 0.5) * cell + 4, y0 - 6); ctx.rotate(-Math.PI / 3); ctx.fillText(t.s.slice(0, 12), 0, 0); ctx.restore(); });
      }} />
    {!large && <Cross width={width} height={height} x0={x0} y0={y0} cell={cell} rows={rows} cols={cols} layer={layer} head={head} />}
  </div>
  <p class="fine">{w.mapAxes} {large && fill(w.pooled, { n: count(view.lang, Math.ceil(layer.rows / rows)) })} {!large && w.quantised}</p></div>;
}

function Cross({ width, height, x0, y0, cell, rows, cols, layer, head }: Record<"width" | "height" | "x0" | "y0" | "cell" | "rows" | "cols" | "head", number> & { layer: Layer }) {
  const { view } = useShared();
  useHover();
  const q = hover.q ?? view.q, k = hover.k ?? (hover.q === null ? view.k : null);
  return <Canvas class="layer through" width={width} height={height} deps={[q, k, cell, head, layer]} draw={(ctx) => {
    ctx.strokeStyle = headColour(head);
    ctx.lineWidth = 1.5;
    if (q !== null && q < rows) ctx.strokeRect(x0, y0 + q * cell, cols * cell, cell);
    if (k === null || q === null || k >= cols || q >= rows) return;
    ctx.strokeRect(x0 + k * cell, y0, cell, rows * cell);
    const w = layer.at(head, q)?.[k] ?? 0;
    const text = `${plain(queries()[q])} → ${plain(keys()[k])}  ${view.value === "weight" ? percent(view.lang, w) : number(view.lang, w, 3)}`;
    ctx.font = "13px system-ui, sans-serif";
    const wide = ctx.measureText(text).width + 14, x = Math.min(x0 + (k + 1) * cell + 8, width - wide), y = Math.max(4, y0 + q * cell - 30);
    ctx.fillStyle = ink("text");
    ctx.fillRect(x, y, wide, 24);
    ctx.fillStyle = ink("paper");
    ctx.fillText(text, x + 7, y + 16);
  }} />;
}

/** The exact numbers of a word: of `at`, of the locked one, else of the one under the pointer, after a moment. */
export function Row({ value, at: given }: { value: View["value"]; at?: number }) {
  const { view, w } = useShared();
  const at = useHover();
  const [slow, set] = useState<number | null>(null);
  useEffect(() => { const timer = setTimeout(() => set(at.q), 150); return () => clearTimeout(timer); }, [at.q]);
  const q = given ?? view.q ?? slow, heads = shownHeads(), tokens = keys();
  const low = heads[0] ?? 0, span = `${low}-${heads.at(-1)}`;
  const path = q !== null && q < queries().length && heads.length && current()?.layers[view.layer]?.attn !== "none"
    ? `runs/${view.run}/attn/${view.stack}/${view.layer}?heads=${span}&rows=${q}:${q + 1}&enc=f32&value=${value}` : null;
  const asked = useAsked(path, () => tensors(path!));
  const got = asked.value?.get("pattern");
  if (q === null) return <p class="quiet">{w.saysNothing}</p>;
  if (!got || got.shape[0] !== heads.at(-1)! - low + 1 || got.shape[2] !== tokens.length) return <Waiting of={asked} />;
  const n = got.shape[2];
  const mean = tokens.map((_, k) => heads.reduce((sum, h) => sum + got.data[(h - low) * n + k], 0) / heads.length);
  const order = mean.map((x, k) => [k, x] as const).filter(([, x]) => Number.isFinite(x)).sort((a, b) => b[1] - a[1]).slice(0, 14);
  const most = Math.max(...order.map(([, x]) => x), 1e-9);
  return <section><h2>{fill(w.exactRow, { q: plain(queries()[q]) })}</h2>
    <p class="fine">{heads.length === 1 ? fill(w.saysHead, { h: heads[0] }) : fill(w.saysAverage, { n: heads.length })} · {w[value]}
      {given === undefined && view.q !== null && <button class="small" onClick={() => look({ q: null, k: null })}>{w.unlock}</button>}</p>
    <table class="exact"><thead><tr><th>{w.key}</th><th class="num">{w[value]}</th></tr></thead><tbody>
      {order.map(([k, x]) => <tr key={k} class={view.k === k ? "on" : ""} onPointerEnter={() => point(q, k)} onPointerLeave={() => point(null)}>
        <th scope="row"><span class="meter" style={{ width: `${Math.max(0, 100 * x / most)}%` }} /><Piece s={tokens[k].s} /></th>
        <td class="num">{x.toFixed(6)}</td></tr>)}
    </tbody></table></section>;
}
