// Flow: from which words a token's content may come, through all layers.
import { useState } from "preact/hooks";
import { keptJson, tensors } from "../api";
import { headColour, ink } from "../draw/colours";
import { recorded, Canvas, Choice, Exports, Honest, Piece, plain, Side, Slider, Snippet, StackChoice, useAsked, useSize, Waiting } from "../parts/common";
import type { Flow as Graph, Token } from "../schema";
import { current, known, look, queries, useShared } from "../state";
import { count, fill, percent } from "../words";

const SHOWN = 16; // tokens in the table of a rollout
type Method = "rollout" | "routes" | "maxflow";

export function Flow() {
  const { view, known, w } = useShared();
  const [method, setMethod] = useState<Method>("rollout");
  const [least, setLeast] = useState(0.02);
  const stack = current()!, tokens = queries();
  const q = view.q ?? tokens.length - 1;
  if (stack.kind === "cross") return <><section class="work"><StackChoice /><p class="quiet">{w.noMatrix}</p></section><Side><Honest /></Side></>;
  const words = { rollout: w.rolloutWhat, routes: w.routesWhat, maxflow: w.maxflowWhat };
  const methods: [Method, string][] = [["rollout", w.rollout], ["routes", w.routes]];
  if (tokens.length <= (known.models?.limits.maxflow_tokens ?? 64)) methods.push(["maxflow", w.maxflow]);
  return <>
    <section class="work" id="picture">
      <div class="bar"><Choice label={w.show} value={method} options={methods} onChange={setMethod} /><StackChoice />
        <label class="pick">{w.from} <select value={q} onChange={(e) => look({ q: Number(e.currentTarget.value) })}>{tokens.map((t, i) => <option key={i} value={i}>{i} {plain(t)}</option>)}</select></label>
        {method === "routes" && <Slider label={w.threshold} value={least} min={0.005} max={0.2} step={0.005} text={percent(view.lang, least)} onInput={setLeast} />}</div>
      <p class="says">{words[method]}</p><p class="fine"><strong>{w.heuristic}</strong> {known.run!.caps.includes("causal") && <button class="small" onClick={() => look({ screen: "lab" }, true)}>{w.lab} →</button>}</p>
      {method === "rollout" ? <Rollout q={q} tokens={tokens} /> : <Ways key={method} method={method} q={q} tokens={tokens} least={least} />}
    </section>
    <Side><Snippet code={`${recorded(method === "routes" ? 'v=True, resid="sublayers"' : "")}\nprint(mirada.look.flow(tape, "${method}", ${q}, stack="${view.stack}"${method === "routes" ? `, threshold=${least}` : ""}))`} /><Exports name={method} /><Honest /></Side>
  </>;
}

/** Each input token's share of the chosen one, and how it came about from layer to layer. */
function Rollout({ q, tokens }: { q: number; tokens: Token[] }) {
  const { view, w } = useShared();
  const call = `runs/${view.run}/flow?method=rollout&stack=${view.stack}&from=${q}`;
  const asked = useAsked(call, () => tensors(call));
  if (!asked.value) return <Waiting of={asked} />;
  const { shape: [depths, T], data } = asked.value.get("rollout"); // depth 0 is the embedding
  if (T !== tokens.length) return null;
  const last = Array.from({ length: T }, (_, k) => k).sort((a, b) => data[b] - data[a]).slice(0, SHOWN);
  const most = Math.max(...last.map((k) => data[k]), 1e-9);
  return <><h2>{fill(w.flowTable, { s: plain(tokens[q]) })}</h2>
    <table class="terms flow"><thead><tr><th>{w.token}</th><th>{w.overLayers}</th><th class="wide">{w.share}</th><th class="num" /></tr></thead><tbody>
      {last.map((k) => <tr key={k} class={k === q ? "on" : ""}><th scope="row"><button class="plain" onClick={() => look({ q: k })}><Piece s={tokens[k].s} /></button></th>
        <td><Spark values={Array.from({ length: depths }, (_, l) => data[l * T + k])} /></td>
        <td class="wide"><span class="meter" style={{ width: `${100 * data[k] / most}%` }} /></td><td class="num">{percent(view.lang, data[k])}</td></tr>)}</tbody></table></>;
}

const Spark = ({ values }: { values: number[] }) => <Canvas width={150} height={24} deps={[values.join()]} draw={(ctx) => {
  const most = Math.max(...values, 1e-9);
  ctx.strokeStyle = ink("accent");
  ctx.lineWidth = 1.6;
  ctx.beginPath();
  values.forEach((v, l) => ctx.lineTo(2 + (l / Math.max(1, values.length - 1)) * 146, 22 - 20 * (v / most)));
  ctx.stroke();
}} />;

/** A graph of tokens by layers: the input below, the chosen token above. */
function Ways({ method, q, tokens, least }: { method: Method; q: number; tokens: Token[]; least: number }) {
  const { view, w } = useShared();
  const [node, size] = useSize<HTMLDivElement>();
  const call = `runs/${view.run}/flow?method=${method}&stack=${view.stack}&from=${q}${method === "routes" ? `&threshold=${least}` : ""}`;
  const asked = useAsked(call, () => keptJson<Graph>(call));
  const graph = asked.value;
  if (!graph) return <Waiting of={asked} />;
  const L = known.run!.model.stacks.find((s) => s.id === view.stack)!.layers.length, n = tokens.length;
  const step = Math.max(16, Math.min(90, (Math.max(400, size.width) - 80) / n)), row = Math.max(14, Math.min(40, 640 / (L + 1)));
  const width = 70 + n * step, height = 44 + (L + 1) * row;
  const at = (layer: number, pos: number): [number, number] => [64 + (pos + 0.5) * step, 14 + (L - 1 - layer) * row + row / 2];
  const most: Record<string, number> = {}; // what stays in place would dwarf what moves: each kind has its own scale
  for (const e of graph.edges) most[e.kind] = Math.max(most[e.kind] ?? 1e-9, e.weight);
  const edges = [...graph.edges].sort((a, b) => a.weight - b.weight);
  return <div class="scroller" ref={node} tabIndex={0} role="region" aria-label={w[method]}>
    <Canvas width={width} height={height} label={`${w[method]}. ${graph.note}`} deps={[graph, step, row]}
      onClick={(e) => { const i = Math.floor(((e as unknown as MouseEvent).offsetX - 64) / step); if (i >= 0 && i < n) look({ q: i }); }} draw={(ctx) => {
      ctx.font = "12px system-ui, sans-serif";
      for (const e of edges) {
        const [x1, y1] = at(e.layer - 1, e.key), [x2, y2] = at(e.layer, e.query), size = e.weight / most[e.kind];
        ctx.globalAlpha = e.kind === "resid" ? 0.12 + 0.3 * size : 0.25 + 0.75 * size;
        ctx.strokeStyle = e.kind === "resid" ? ink("quiet") : e.kind === "mlp" ? ink("lock") : e.head === null ? ink("accent") : headColour(e.head);
        ctx.lineWidth = e.kind === "resid" ? 1 + 2 * size : 0.8 + 3.4 * size;
        ctx.beginPath();
        ctx.moveTo(x1, y1);
        ctx.bezierCurveTo(x1, (y1 + y2) / 2, x2, (y1 + y2) / 2, x2, y2);
        ctx.stroke();
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
    {graph.hidden.edges > 0 && <p class="fine">{fill(w.hiddenEdges, { n: count(view.lang, graph.hidden.edges), p: percent(view.lang, graph.hidden.share) })}</p>}
    <p class="fine">{graph.note}</p></div>;
}
