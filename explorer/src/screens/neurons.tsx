// Neurons: a score taken apart into query times key; and the MLP's strongest neurons at a token.
import { useState } from "preact/hooks";
import { keptJson, tensors } from "../api";
import { headColour, signed } from "../draw/colours";
import { base, Choice, Exports, Honest, LayerSlider, Piece, plain, Side, Snippet, StackChoice, useAsked, Waiting } from "../parts/common";
import type { Mlp } from "../schema";
import { current, headCount, keys, known, look, queries, useShared } from "../state";
import { fill, number, percent } from "../words";

export function Neurons() {
  const { view, known, w } = useShared();
  const caps = known.run!.caps;
  const [part, setPart] = useState<"qk" | "mlp">(caps.includes("qk") ? "qk" : "mlp");
  const options: ["qk" | "mlp", string][] = [];
  if (caps.includes("qk")) options.push(["qk", "Q · K"]);
  if (caps.includes("mlp")) options.push(["mlp", "MLP"]);
  const q = view.q ?? queries().length - 1;
  const head = view.heads?.[0] ?? 0;
  const call = `runs/${view.run}/mlp/${view.layer}?pos=${q}&top=12&stack=${current()?.queries}`;
  const mlp = useAsked(part === "mlp" ? call : null, () => keptJson<Mlp>(call));
  return <>
    <section class="work" id="picture"><div class="bar"><Choice label={w.show} value={part} options={options} onChange={setPart} /><StackChoice /><LayerSlider />
      {part === "qk" && <label class="pick">{w.head} <select value={head} onChange={(e) => look({ heads: [Number(e.currentTarget.value)] })}>{Array.from({ length: headCount() }, (_, h) => <option key={h} value={h}>{h}</option>)}</select></label>}</div>
      {part === "qk" ? <Score q={q} head={head} /> : <><Waiting of={mlp} />{mlp.value && <Mlps mlp={mlp.value} />}</>}</section>
    <Side><Snippet code={part === "mlp" ? mlp.value?.snippet ?? "" : `${base()}\nprint(${view.k === null ? `tape.row(${view.layer}, ${head}, ${q}` : `tape.qk_terms(${view.layer}, ${head}, ${q}, ${view.k}`}, stack="${view.stack}"))`} /><Exports name={part} /><Honest /></Side>
  </>;
}

function Score({ q, head }: { q: number; head: number }) {
  const { view, w } = useShared();
  const none = current()?.layers[view.layer]?.attn === "none";
  const call = `runs/${view.run}/qk/${view.stack}/${view.layer}/${head}?i=${q}`;
  const asked = useAsked(none ? null : call, () => tensors(call));
  if (none) return <p class="quiet">{w.noMatrix}</p>;
  if (!asked.value) return <Waiting of={asked} />;
  const t = asked.value, weight = t.get("weight").data, n = weight.length;
  if (n !== keys().length) return null;
  const best = Array.from({ length: n }, (_, j) => j).sort((a, b) => weight[b] - weight[a]);
  const k = view.k !== null && view.k < n ? view.k : best.find((j) => j > 0) ?? 0;
  const Q = t.get("q").data, K = t.get("k"), d = Q.length, scale = Number(t.meta.scale ?? 1);
  const terms = Array.from({ length: d }, (_, i) => Q[i] * K.data[k * d + i] * scale);
  const top = Math.max(...terms.map(Math.abs), 1e-9), most = Math.max(...Array.from(Q, Math.abs), 1e-9), mostK = Math.max(...Array.from({ length: d }, (_, i) => Math.abs(K.data[k * d + i])), 1e-9);
  const strip = (name: string, of: (i: number) => number, max: number) => <div class="cellrow"><span>{name}</span><div class="strip-cells" role="img" aria-label={name}>
    {Array.from({ length: d }, (_, i) => <i key={i} style={{ background: signed(of(i) / max) }} title={`${i}: ${of(i).toFixed(4)}`} />)}</div></div>;
  const dot = t.get("dot").data, bias = t.get("bias").data, score = t.get("score").data;
  return <><h1>{fill(w.qkTitle, { q: plain(queries()[q]), k: plain(keys()[k]), h: head })}</h1><p class="fine">{w.qkHint} {t.meta.kv_head !== undefined && fill(w.kvHead, { h: t.meta.kv_head })}</p>
    {strip("q", (i) => Q[i], most)}{strip("k", (i) => K.data[k * d + i], mostK)}{strip("q × k", (i) => terms[i], top)}
    <table class="terms qk"><thead><tr><th>{w.key}</th><th class="num">{w.dot}</th><th class="num">{w.bias}</th><th class="num">{w.score}</th><th class="wide">{w.weightIs}</th><th class="num" /></tr></thead>
      <tbody>{best.slice(0, 40).map((j) => <tr key={j} class={j === k ? "on" : ""}><th scope="row"><button class="plain" onClick={() => look({ q, k: j })}>{j} <Piece s={keys()[j].s} /></button></th>
        <td class="num">{number(view.lang, dot[j], 3)}</td><td class="num">{number(view.lang, bias[j], 3)}</td><td class="num">{Number.isFinite(score[j]) ? number(view.lang, score[j], 3) : "−∞"}</td>
        <td class="wide"><span class="meter" style={{ width: `${100 * weight[j]}%`, "--head": headColour(head) }} /></td><td class="num">{percent(view.lang, weight[j])}</td></tr>)}</tbody></table></>;
}

function Mlps({ mlp }: { mlp: Mlp }) {
  const { view, w } = useShared();
  const tokens = known.run!.tokens[mlp.stack] ?? [];
  const few = (of: Mlp["neurons"][0]["promoted"]) => of.slice(0, 5).map((c) => <span class="word" key={c.id}><Piece s={c.s} /></span>);
  return <><h1>{fill(w.mlpTitle, { s: plain(tokens[mlp.pos]) })}</h1>
    <table class="terms mlp"><thead><tr><th>{w.neuron}</th><th class="num">{w.activation}</th><th>{w.overTokens}</th><th>{w.promotes}</th><th>{w.suppresses}</th></tr></thead>
      <tbody>{mlp.neurons.map((n) => {
        const most = Math.max(...n.strip.map(Math.abs), 1e-9);
        return <tr key={n.neuron}><th scope="row">{n.neuron}</th><td class="num">{number(view.lang, n.value, 3)}</td>
          <td><div class="strip-cells tall" role="img" aria-label={w.overTokens}>{n.strip.slice(0, 200).map((x, i) => <i key={i} class={i === mlp.pos ? "here" : ""} style={{ background: signed(x / most) }} title={`${plain(tokens[i])}: ${x.toFixed(3)}`} />)}</div></td>
          <td>{few(n.promoted)}</td><td>{few(n.suppressed)}</td></tr>;
      })}</tbody></table></>;
}
