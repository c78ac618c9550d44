// Flow: from which words a token's content may come, through all layers.
import { useEffect, useState } from "preact/hooks";
import { keptJson, tensors } from "../api";
import { headColour, ink } from "../draw/colours";
import { recorded, Canvas, Choice, Exports, Honest, LayerSlider, Piece, plain, Side, Slider, Snippet, StackChoice, Tick, useAsked, useSize, Waiting } from "../parts/common";
import type { Flow as Graph, Token } from "../schema";
import { current, isSink, known, look, queries, turn, useShared } from "../state";
import type { Tensors } from "../tensors";
import { count, fill, percent } from "../words";

const SHOWN = 16; // tokens in the table of a rollout
const STEP = 420, WHOLE = 4500; // milliseconds of a step along a path, and at most of the whole
const METHODS = ["rollout", "routes", "maxflow"] as const;
type Method = typeof METHODS[number];
type Row = (string | number)[];

export function Flow() {
  const { view, known, w } = useShared();
  const [least, setLeast] = useState(0.02);
  const stack = current()!, tokens = queries();
  const q = view.q !== null && view.q < tokens.length ? view.q : tokens.length - 1;
  const able = METHODS.filter((m) => m !== "maxflow" || tokens.length <= (known.models?.limits.maxflow_tokens ?? 64));
  const method: Method = able.find((m) => m === view.part) ?? "rollout";
  const cross = stack.kind === "cross" || view.run !== known.run!.run;
  const call = `runs/${view.run}/flow?method=${method}&stack=${view.stack}&from=${q}${method === "routes" ? `&threshold=${least}` : ""}`;
  const shares = useAsked(!cross && method === "rollout" ? call : null, () => tensors(call));
  const graph = useAsked(!cross && method !== "rollout" ? call : null, () => keptJson<Graph>(call));
  if (cross) return <><section class="work" id="picture"><div class="bar"><StackChoice /></div><p class="quiet">{w.noFlow}</p></section><Side><Honest /></Side></>;
  const words = { rollout: w.rolloutWhat, routes: w.routesWhat, maxflow: w.maxflowWhat }, names = { rollout: w.rollout, routes: w.routes, maxflow: w.maxflow };
  const rows = (): Row[] => {
    if (method === "rollout") {
      const { shape: [depths, T], data } = shares.value!.get("rollout");
      return [["token", ...Array.from({ length: depths }, (_, l) => l ? `after layer ${l - 1}` : "embedding")], ...tokens.map((t, k): Row => [t.s, ...Array.from({ length: depths }, (_, l) => data[l * T + k])])];
    }
    return [["kind", "layer", "query", "key", "head", "weight"], ...graph.value!.edges.map((e): Row => [e.kind, e.layer, e.query, e.key, e.head ?? "", e.weight])];
  };
  return <>
    <section class="work" id="picture">
      <div class="bar"><Choice label={w.show} value={method} options={able.map((m) => [m, names[m]])} onChange={(part) => look({ part })} /><StackChoice />
        <label class="pick">{w.from} <select value={q} onChange={(e) => look({ q: Number(e.currentTarget.value) })}>{tokens.map((t, i) => <option key={i} value={i}>{i} {plain(t)}</option>)}</select></label>
        {method === "routes" && <Slider label={w.threshold} value={least} min={0.005} max={0.2} step={0.005} text={percent(view.lang, least)} onInput={setLeast} />}</div>
      <p class="says">{words[method]}</p><p class="fine"><strong>{method === "routes" ? w.heuristicRoutes : w.heuristic}</strong> {known.run!.caps.includes("causal") && <button class="small" onClick={() => turn("lab")}>{w.lab} →</button>}</p>
      {method === "rollout" ? shares.value ? <Rollout q={q} tokens={tokens} found={shares.value} /> : <Waiting of={shares} />
        : graph.value ? <Ways key={call} method={method} q={q} tokens={tokens} graph={graph.value} /> : <Waiting of={graph} />}
    </section>
    <Side><Snippet code={`${recorded(method === "routes" ? 'v=True, resid="sublayers"' : "")}\nprint(mirada.look.flow(tape, "${method}", ${q}, stack="${view.stack}"${method === "routes" ? `, threshold=${least}` : ""}))`} />
      <Exports name={method} rows={(method === "rollout" ? shares : graph).value ? rows : undefined} /><Honest /></Side>
  </>;
}

/** Each input token's share of the chosen one beside what one layer looks at: how mixing spreads what a layer sees. */
function Rollout({ q, tokens, found }: { q: number; tokens: Token[]; found: Tensors }) {
  const { view, w } = useShared();
  const none = current()?.layers[view.layer]?.attn === "none";
  const path = `runs/${view.run}/attn/${view.stack}/${view.layer}?rows=${q}:${q + 1}&enc=f32`;
  const asked = useAsked(none ? null : path, () => tensors(path));
  const { shape: [depths, T], data } = found.get("rollout"); // depth 0 is the embedding
  if (T !== tokens.length) return null;
  const raw = asked.value?.get("pattern"), fits = raw?.shape[2] === T;
  const direct = (k: number) => Array.from({ length: raw!.shape[0] }, (_, h) => raw!.data[h * T + k]).reduce((a, b) => a + b, 0) / raw!.shape[0];
  const sunk = (k: number) => !view.sinks && isSink(tokens[k], k), left = tokens.reduce((sum, _, k) => sunk(k) ? sum + data[k] : sum, 0);
  const last = Array.from({ length: T }, (_, k) => k).filter((k) => !sunk(k)).sort((a, b) => data[b] - data[a]).slice(0, SHOWN);
  const most = Math.max(...last.map((k) => data[k]), 1e-9), mostRaw = fits ? Math.max(...last.map(direct), 1e-9) : 1;
  return <><h2>{fill(w.flowTable, { s: plain(tokens[q]) })}</h2><div class="bar"><LayerSlider /><Tick label={w.sinks} title={w.sinksWhat} value={view.sinks} onChange={(sinks) => look({ sinks })} /></div>
    <table class="terms flow"><thead><tr><th>{w.token}</th><th>{w.overLayers}</th><th class="wide">{w.rollout}</th><th class="num">{w.share}</th><th class="wide">{fill(w.rawLayer, { l: view.layer })}</th><th class="num">{w.weight}</th></tr></thead><tbody>
      {last.map((k) => <tr key={k} class={k === q ? "on" : ""}><th scope="row"><button class="plain" onClick={() => look({ q: k })}><Piece s={tokens[k].s} /></button></th>
        <td><Spark values={Array.from({ length: depths }, (_, l) => data[l * T + k])} /></td>
        <td class="wide"><span class="meter" style={{ width: `${100 * data[k] / most}%` }} /></td><td class="num">{percent(view.lang, data[k])}</td>
        <td class="wide">{fits && <span class="meter raw" style={{ width: `${100 * direct(k) / mostRaw}%` }} />}</td><td class="num">{fits && percent(view.lang, direct(k))}</td></tr>)}</tbody></table>
    <p class="fine">{w.rawHint} {left > 0 && fill(w.rolloutSunk, { p: percent(view.lang, left) })}</p></>;
}

const Spark = ({ values }: { values: number[] }) => <Canvas width={120} height={24} deps={[values.join()]} draw={(ctx) => {
  const most = Math.max(...values, 1e-9);
  ctx.strokeStyle = ink("accent");
  ctx.lineWidth = 1.6;
  ctx.beginPath();
  values.forEach((v, l) => ctx.lineTo(2 + (l / Math.max(1, values.length - 1)) * 116, 22 - 20 * (v / most)));
  ctx.stroke();
}} />;

type Edge = Graph["edges"][0];

/** The way from the chosen token back to one input token whose weakest step is the strongest. */
function strongest(graph: Graph, L: number): Edge[] {
  const best = new Map<string, { least: number; way: Edge[] }>([[`${L - 1} ${graph.from}`, { least: Infinity, way: [] }]]);
  for (let l = L - 1; l >= 0; l--) {
    for (const e of graph.edges) {
      if (e.layer !== l || e.kind === "mlp" || e.kind === "cross") continue;
      const from = best.get(`${l} ${e.query}`), to = `${l - 1} ${e.key}`, least = Math.min(from?.least ?? 0, e.weight);
      if (from && least > (best.get(to)?.least ?? 0)) best.set(to, { least, way: [...from.way, e] });
    }
  }
  const ends = [...best].filter(([at]) => at.startsWith("-1 "));
  const moved = ends.filter(([at]) => at !== `-1 ${graph.from}`); // one that only stays in place tells nothing
  return (moved.length ? moved : ends).sort((a, b) => b[1].least - a[1].least)[0]?.[1].way ?? [];
}

/** A graph of tokens by layers: the input below, the chosen token above. */
function Ways({ method, q, tokens, graph }: { method: Method; q: number; tokens: Token[]; graph: Graph }) {
  const { view, w } = useShared();
  const [node, size] = useSize<HTMLDivElement>();
  const [shown, show] = useState<number | null>(null); // steps of the path drawn; null: none asked for
  const L = known.run!.model.stacks.find((s) => s.id === view.stack)!.layers.length, n = tokens.length;
  const path = strongest(graph, L), words = [q, ...path.map((e) => e.key)].filter((k, i, all) => k !== all[i - 1]);
  useEffect(() => {
    if (shown === null || shown >= path.length) return;
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) { show(path.length); return; }
    const timer = setTimeout(() => show(shown + 1), Math.min(STEP, WHOLE / path.length));
    return () => clearTimeout(timer);
  }, [shown]);
  const step = Math.max(16, Math.min(90, (Math.max(400, size.width) - 80) / n)), row = Math.max(12, Math.min(44, (size.height - 46) / (L + 1)));
  const width = 70 + n * step, height = 44 + (L + 1) * row;
  const at = (layer: number, pos: number): [number, number] => [64 + (pos + 0.5) * step, 14 + (L - 1 - layer) * row + row / 2];
  const most: Record<string, number> = {}; // what stays in place would dwarf what moves: each kind has its own scale
  for (const e of graph.edges) most[e.kind] = Math.max(most[e.kind] ?? 1e-9, e.weight);
  const edges = [...graph.edges].sort((a, b) => a.weight - b.weight);
  const curve = (ctx: CanvasRenderingContext2D, e: Edge) => {
    const [x1, y1] = at(e.layer - 1, e.key), [x2, y2] = at(e.layer, e.query);
    ctx.beginPath();
    ctx.moveTo(x1, y1);
    ctx.bezierCurveTo(x1, (y1 + y2) / 2, x2, (y1 + y2) / 2, x2, y2);
    ctx.stroke();
  };
  return <><div class="bar"><button class="main" disabled={!path.length} onClick={() => show(0)}>{w.playPath}</button>
      {shown !== null && <><span aria-live="polite">{words.map((k, i) => <span key={i}>{i > 0 && " ← "}<strong>{fill(w.quoted, { s: plain(tokens[k]) })}</strong></span>)}</span><button class="small" onClick={() => show(null)}>{w.close}</button></>}</div>
    <div class="scroller" ref={node} tabIndex={0} role="region" aria-label={w[method]}><div class="stackup" style={{ width: `${width}px`, height: `${height}px` }}>
    <Canvas class="layer" width={width} height={height} label={`${w[method]}. ${fill(w.flowTable, { s: plain(tokens[q]) })}`} deps={[graph, step, row, shown === null]}
      onClick={(e) => { const i = Math.floor(((e as unknown as MouseEvent).offsetX - 64) / step); if (i >= 0 && i < n) look({ q: i }); }} draw={(ctx) => {
      ctx.font = "12px system-ui, sans-serif";
      const faint = shown === null ? 1 : 0.3;
      for (const e of edges) {
        const size = e.weight / most[e.kind];
        ctx.globalAlpha = faint * (e.kind === "resid" ? 0.12 + 0.3 * size : 0.25 + 0.75 * size);
        ctx.strokeStyle = e.kind === "resid" ? ink("quiet") : e.kind === "mlp" ? ink("lock") : e.head === null ? ink("accent") : headColour(e.head);
        ctx.lineWidth = e.kind === "resid" ? 1 + 2 * size : 0.8 + 3.4 * size;
        curve(ctx, e);
      }
      ctx.globalAlpha = 1;
      ctx.fillStyle = ink("quiet");
      ctx.textAlign = "right";
      for (let l = -1; l < L; l += Math.ceil((L + 1) / 16)) ctx.fillText(l < 0 ? w.inputs : String(l), 52, at(l, 0)[1] + 4);
      ctx.fillStyle = ink("text");
      for (const v of graph.nodes) { const [x, y] = at(v.layer, v.pos); ctx.beginPath(); ctx.arc(x, y, 2, 0, 7); ctx.fill(); }
      ctx.textAlign = "center";
      tokens.forEach((t, i) => ctx.fillText(plain(t).slice(0, Math.max(2, Math.floor(step / 7))), at(-1, i)[0], height - 6));
      const [x, y] = at(L - 1, q);
      ctx.fillStyle = ink("lock");
      ctx.beginPath();
      ctx.arc(x, y, 5, 0, 7);
      ctx.fill();
    }} />
    <Canvas class="layer through" width={width} height={height} deps={[graph, step, row, shown]} draw={(ctx) => {
      ctx.strokeStyle = ctx.fillStyle = ink("accent");
      ctx.lineWidth = 4;
      for (const e of path.slice(0, shown ?? 0)) {
        curve(ctx, e);
        const [x, y] = at(e.layer - 1, e.key);
        ctx.beginPath();
        ctx.arc(x, y, 4.5, 0, 7);
        ctx.fill();
      }
    }} /></div></div>
    <p class="fine">{w.pathHint} {graph.hidden.edges > 0 && fill(w.hiddenEdges, { n: count(view.lang, graph.hidden.edges), p: percent(view.lang, graph.hidden.share) })} {w.flowInks}</p></>;
}
