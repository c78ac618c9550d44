// The pass: every box that ran, in its order, drawn from the graph that the server traced.
import { useEffect, useState } from "preact/hooks";
import { keptJson, tensors } from "../api";
import { plain, Side, Snippet, base, useAsked, Waiting } from "../parts/common";
import { known, mainTokens, turn, useShared } from "../state";
import type { Graph, Node } from "../schema";
import { fill, number, percent, type Words } from "../words";

type Box = Graph["nodes"][0];
const KINDS = ["embed", "norm", "attn", "cross", "mlp", "moe", "add", "gate", "head", "other"] as const;
const kindWord = (w: Words, kind: Box["kind"]): string => w[`k_${KINDS.find((k) => k === kind)!}`];

export function Pass() {
  const { view, w } = useShared();
  const run = known.run!, boxes = run.graph.nodes;
  const [at, setAt] = useState(0);
  const [playing, play] = useState(false);
  useEffect(() => {
    if (!playing) return;
    const timer = setTimeout(() => at + 1 < boxes.length ? setAt(at + 1) : play(false), 260);
    return () => clearTimeout(timer);
  }, [playing, at]);
  useEffect(() => { document.querySelector(".box.now")?.scrollIntoView({ block: "nearest" }); }, [at]);
  const rows = grouped(boxes);
  const pos = Math.min(view.q ?? mainTokens().length - 1, mainTokens().length - 1);
  return <>
    <section class="work" id="picture">
      <p class="says">{w.passHint}</p>
      <div class="bar"><button class="main" onClick={() => { if (at + 1 >= boxes.length) setAt(0); play(!playing); }}>{playing ? w.pause : w.play}</button>
        <button onClick={() => { play(false); setAt(Math.min(boxes.length - 1, at + 1)); }}>{w.stepOn}</button><span class="quiet">{fill(w.progress, { a: at + 1, b: boxes.length })}</span></div>
      {run.caps.includes("resid") && <p class="fine">{fill(w.addsLegend, { s: plain(mainTokens()[pos]) })}</p>}
      <div class="passing">{rows.map((row) => <div class="block" key={`${row.stack}${row.layer}`}><span class="where">{row.layer === null ? "" : `${w.layer} ${row.layer}`}{row.first && rows.some((r) => r.stack !== row.stack && r.stack !== "head") && <small>{row.stack}</small>}</span>
        <div class="spine">{row.boxes.map((b) => {
          const i = boxes.indexOf(b);
          return <button key={b.id} class={`box ${b.kind}${i === at ? " now" : ""}${i < at && playing ? " done" : ""}`} data-node={b.id} aria-pressed={i === at} title={`${b.module} ${b.about}`} onClick={() => { play(false); setAt(i); }}>
            {b.kind === "add" ? "+" : kindWord(w, b.kind)}</button>;
        })}</div><Added stack={row.stack} layer={row.layer} pos={pos} /></div>)}</div>
    </section>
    <Side>{boxes[at] && <Details key={boxes[at].id} box={boxes[at]} pos={pos} playing={playing} />}<Snippet code={base()} /></Side>
  </>;
}

interface Row { stack: string; layer: number | null; boxes: Box[]; first: boolean }

function grouped(boxes: Box[]): Row[] {
  const rows: Row[] = [];
  for (const b of boxes) {
    const last = rows.at(-1);
    if (last && last.stack === b.stack && last.layer === b.layer) last.boxes.push(b);
    else rows.push({ stack: b.stack, layer: b.layer, boxes: [b], first: !rows.some((r) => r.stack === b.stack) });
  }
  return rows;
}

/** How much each part of a layer adds to the residual stream at a token: its length over the stream's. */
function Added({ stack, layer, pos }: { stack: string; layer: number | null; pos: number }) {
  const { view, w } = useShared();
  const call = `runs/${view.run}/resid?stack=${stack}`;
  const able = layer !== null && known.run!.caps.includes("resid") && stack !== "head";
  const { value } = useAsked(able ? call : null, () => tensors(call));
  if (!able || !value) return <span class="added" />;
  const x = value.get("x"), T = x.shape[1];
  const parts = ["attn", "cross", "mlp"].filter((p) => value.has(p)).map((p) => [p, value.get(p).data[layer * T + Math.min(pos, T - 1)] / x.data[layer * T + Math.min(pos, T - 1)]] as const).filter(([, v]) => Number.isFinite(v));
  return <span class="added">{parts.map(([p, v]) => <span key={p} class={`bit ${p}`} title={`${p}: ${fill(w.adds, { p: percent(view.lang, v) })}`}><i style={{ width: `${Math.min(100, 50 * v)}%` }} /><small>{percent(view.lang, v)}</small></span>)}</span>;
}

function Details({ box, pos, playing }: { box: Box; pos: number; playing: boolean }) {
  const { view, w } = useShared();
  const call = `runs/${view.run}/node/${encodeURIComponent(box.id)}?pos=${pos}`;
  const asked = useAsked(playing || !known.run!.model.live ? null : call, () => keptJson<Node>(call));
  const node = asked.value, most = Math.max(...(node?.values.map(Math.abs) ?? []), 1e-9);
  return <section><h2>{kindWord(w, box.kind)} · {box.module}</h2><p class="fine">{box.path}<br />{box.about}</p>
    <Formula kind={box.kind} rms={box.module.startsWith("RMS")} />
    <p>{w.shape}: {box.shape.join(" × ")}</p>
    {(box.kind === "attn" || box.kind === "cross") && <button class="small" onClick={() => turn("heads", { stack: box.kind === "cross" ? "cross" : box.stack, layer: box.layer! })}>{w.heads} →</button>}
    <Waiting of={asked} />
    {node && <><h2>{w.weightsOf}</h2>{node.weights.length === 0 && <p class="quiet">{w.noWeights}</p>}
      {node.weights.length > 0 && <table class="exact"><tbody>{node.weights.slice(0, 12).map((x) => <tr key={x.name}><th scope="row">{x.name}<br /><small>{x.shape.join(" × ")}</small></th><td class="num"><small>{w.mean} {number(view.lang, x.mean, 3)}<br />{w.std} {number(view.lang, x.std, 3)}</small></td></tr>)}</tbody></table>}
      {node.values.length > 0 && <><h2>{fill(w.output, { s: plain(mainTokens()[pos]) })}</h2><div class="strip-cells" role="img" aria-label={node.values.slice(0, 8).map((v) => v.toFixed(3)).join(", ")}>
        {node.values.map((v, i) => <i key={i} title={`${i}: ${v.toFixed(4)}`} style={{ background: `rgb(${v < 0 ? "70 120 220" : "216 84 60"} / ${Math.sqrt(Math.abs(v) / most).toFixed(2)})` }} />)}</div>
        {node.length !== null && <p class="fine">{fill(w.lengthIs, { x: number(view.lang, node.length, 3) })}</p>}</>}</>}
  </section>;
}

/** What a box computes, as MathML. */
function Formula({ kind, rms }: { kind: Box["kind"]; rms: boolean }) {
  const m = (body: string) => <math display="block">{body.split(" ").map((x, i) => /^[a-zA-Zαγσ]+$/.test(x) ? <mi key={i}>{x}</mi> : <mo key={i}>{x}</mo>)}</math>;
  if (kind === "attn" || kind === "cross") return <math display="block"><mi>softmax</mi><mo>(</mo><mfrac><mrow><mi>Q</mi><msup><mi>K</mi><mo>⊤</mo></msup></mrow><msqrt><mi>d</mi></msqrt></mfrac><mo>)</mo><mi>V</mi></math>;
  if (kind === "norm") return <math display="block"><mi>γ</mi><mfrac>{rms ? <mi>x</mi> : <mrow><mi>x</mi><mo>−</mo><mi>μ</mi></mrow>}{rms ? <msqrt><mrow><mi>mean</mi><mo>(</mo><msup><mi>x</mi><mn>2</mn></msup><mo>)</mo></mrow></msqrt> : <mi>σ</mi>}</mfrac></math>;
  if (kind === "add") return m("x + f ( x )");
  if (kind === "mlp") return m("W · act ( W x )");
  return null;
}
