// Neurons: a score taken apart into query times key; and the MLP's strongest neurons at a token.
import { useState } from "preact/hooks";
import { EXAMPLES } from "../examples";
import { post } from "../api";
import { Progress, useJob } from "../parts/job";
import { keptJson, tensors } from "../api";
import { headColour, signed } from "../draw/colours";
import { base, Choice, Exports, Honest, LayerSlider, Piece, plain, Side, Snippet, StackChoice, useAsked, Waiting } from "../parts/common";
import type { Firing, Job, Mlp } from "../schema";
import { current, headCount, keys, known, look, queries, useShared } from "../state";
import type { Tensors } from "../tensors";
import { fill, number, percent } from "../words";

export function Neurons() {
  const { view, known, w } = useShared();
  const caps = known.run!.caps;
  const options: ["qk" | "mlp", string][] = [];
  if (caps.includes("qk")) options.push(["qk", "Q · K"]);
  if (caps.includes("mlp")) options.push(["mlp", "MLP"]);
  const part = options.find(([p]) => p === view.part)?.[0] ?? options[0][0];
  const q = view.q ?? queries().length - 1;
  const head = view.heads?.[0] ?? 0;
  const call = `runs/${view.run}/mlp/${view.layer}?pos=${q}&top=12&stack=${current()?.queries}`;
  const none = current()?.layers[view.layer]?.attn === "none", terms = `runs/${view.run}/qk/${view.stack}/${view.layer}/${head}?i=${q}`;
  const score = useAsked(part === "qk" && !none ? terms : null, () => tensors(terms));
  const rows = (): (string | number)[][] => part === "mlp"
    ? [["neuron", "activation", "writes", "promotes", "suppresses"], ...mlp.value!.neurons.map((n) => [n.neuron, n.value, n.writes, n.promoted.map((c) => c.s).join(" "), n.suppressed.map((c) => c.s).join(" ")])]
    : [["key", "token", "dot", "bias", "score", "weight"], ...keys().map((t, j): (string | number)[] => [j, t.s, ...["dot", "bias", "score", "weight"].map((name) => score.value!.get(name).data[j])])];
  const mlp = useAsked(part === "mlp" ? call : null, () => keptJson<Mlp>(call));
  return <>
    <section class="work" id="picture"><div class="bar"><Choice label={w.show} value={part} options={options} onChange={(p) => look({ part: p })} /><StackChoice /><LayerSlider />
      {part === "qk" && <label class="pick">{w.head} <select value={head} onChange={(e) => look({ heads: [Number(e.currentTarget.value)] })}>{Array.from({ length: headCount() }, (_, h) => <option key={h} value={h}>{h}</option>)}</select></label>}</div>
      {part === "qk" ? none ? <p class="quiet">{w.noMatrix}</p> : score.value ? <Score q={q} head={head} found={score.value} /> : <Waiting of={score} /> : <><Waiting of={mlp} />{mlp.value && <><Mlps mlp={mlp.value} /><Corpus key={`${view.run} ${view.layer}`} mlp={mlp.value} /></>}</>}</section>
    <Side><Snippet code={part === "mlp" ? mlp.value?.snippet ?? "" : `${base()}\nprint(${view.k === null ? `tape.row(${view.layer}, ${head}, ${q}` : `tape.qk_terms(${view.layer}, ${head}, ${q}, ${view.k}`}, stack="${view.stack}"))`} /><Exports name={part} rows={(part === "mlp" ? mlp : score).value ? rows : undefined} /><Honest /></Side>
  </>;
}

function Score({ q, head, found: t }: { q: number; head: number; found: Tensors }) {
  const { view, w } = useShared();
  const weight = t.get("weight").data, n = weight.length;
  if (n !== keys().length) return null;
  const best = Array.from({ length: n }, (_, j) => j).sort((a, b) => weight[b] - weight[a]);
  const k = view.k !== null && view.k < n ? view.k : best.find((j) => j > 0) ?? 0;
  const Q = t.get("q").data, K = t.get("k"), d = Q.length, scale = Number(t.meta.scale ?? 1);
  const terms = Array.from({ length: d }, (_, i) => Q[i] * K.data[k * d + i] * scale);
  const sums = terms.map((sum => (x: number) => sum += x)(0)), mostSum = Math.max(...sums.map(Math.abs), 1e-9);
  const top = Math.max(...terms.map(Math.abs), 1e-9), most = Math.max(...Array.from(Q, Math.abs), 1e-9), mostK = Math.max(...Array.from({ length: d }, (_, i) => Math.abs(K.data[k * d + i])), 1e-9);
  const strip = (name: string, of: (i: number) => number, max: number) => <div class="cellrow"><span>{name}</span><div class="strip-cells" role="img" aria-label={name}>
    {Array.from({ length: d }, (_, i) => <i key={i} style={{ background: signed(of(i) / max) }} title={`${i}: ${of(i).toFixed(4)}`} />)}</div></div>;
  const dot = t.get("dot").data, bias = t.get("bias").data, score = t.get("score").data;
  return <><h1>{fill(w.qkTitle, { q: plain(queries()[q]), k: plain(keys()[k]), h: head })}</h1><p class="fine">{w.qkHint} {t.meta.kv_head !== undefined && fill(w.kvHead, { h: t.meta.kv_head })}</p>
    {strip("q", (i) => Q[i], most)}{strip("k", (i) => K.data[k * d + i], mostK)}{strip("q × k", (i) => terms[i], top)}{strip("Σ", (i) => sums[i], mostSum)}<p class="fine">{w.sumHint}</p>
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

/** Where the neurons above fire most in texts of one's own. */
function Corpus({ mlp }: { mlp: Mlp }) {
  const { view, known, w } = useShared();
  const [text, setText] = useState([...EXAMPLES.es, ...EXAMPLES.en].join("\n"));
  const { job, run, stop, result } = useJob<Firing>();
  const texts = text.split("\n").filter((x) => x.trim());
  const read = (e: Event) => setFile((e.currentTarget as HTMLInputElement).files?.[0]);
  const setFile = async (file?: File) => { if (file) setText(await file.text()); };
  if (!known.run!.caps.includes("roles") || !known.run!.model.live) return null; // it takes a tokenizer
  const begin = () => post<Job>(`models/${encodeURIComponent(known.run!.model.id)}/firing`, { layer: mlp.layer, stack: mlp.stack, neurons: mlp.neurons.map((n) => n.neuron), texts, top: 6 });
  return <section class="corpus"><h2>{w.corpusTitle}</h2><p class="fine">{w.corpusHint}</p>
    <label class="tall">{w.corpusText}<textarea rows={4} value={text} onInput={(e) => setText(e.currentTarget.value)} /></label>
    <div class="bar"><button disabled={!texts.length || job?.state === "running"} onClick={() => run(begin)}>{fill(w.corpusRun, { n: texts.length })}</button>
      <label class="pick">{w.corpusFile} <input type="file" accept="text/plain,.txt" onChange={read} /></label></div>
    {job && <Progress job={job} onStop={stop} />}
    {result && <table class="terms hits"><thead><tr><th>{w.neuron}</th><th>{w.firesAt}</th></tr></thead><tbody>{mlp.neurons.map(({ neuron }) => <tr key={neuron}><th scope="row">{neuron}</th>
      <td>{result.hits[neuron]?.map((h, i) => <span class="hit" key={i}><small>{number(view.lang, h.value, 2)}</small> {h.before.replaceAll("·", " ")}<strong>{h.token.replaceAll("·", " ")}</strong>{h.after.replaceAll("·", " ")}</span>)}</td></tr>)}</tbody></table>}</section>;
}
