// Causal lab: change a part of the model, or put in what it did on another text, and see what becomes of its answer.
import { useState } from "preact/hooks";
import { post, Refusal } from "../api";
import { Choice, Exports, Honest, LayerSlider, Oops, Piece, plain, Side, Slider, Snippet, StackChoice, Tick } from "../parts/common";
import type { Effect, Intervention } from "../schema";
import { current, keys, known, learn, look, mainTokens, queries, shownHeads, useShared } from "../state";
import { fill, number, percent, type Words } from "../words";
import { AllPlaces } from "./grid";
import { HeadChips } from "./heads";
import { position, useNames } from "./next";
import { fits, Pair, useAnswers, useOther } from "./pair";

const SITES = ["head_out", "edge", "value", "pattern", "attn", "mlp", "neuron", "resid"] as const;
type Site = typeof SITES[number];
type Op = "mean" | "zero" | "scale" | "patch";
const OF_HEADS = ["head_out", "edge", "value", "pattern"]; // sites that are parts of heads
const NULL = 32; // draws of other heads that an effect is compared with

interface Tried { effect: Effect; moved: number | null; changes: Intervention[] }
const kept: Record<string, Tried> = {}; // of a run; stays while screens change

export function Lab() {
  const { view, known, w } = useShared();
  const run = known.run!;
  const site: Site = SITES.find((s) => s === view.part) ?? "head_out";
  const [chosenOp, setOp] = useState<Op>("mean");
  const [factor, setFactor] = useState(0.5);
  const [onlyHere, setHere] = useState<boolean | null>(null);
  const [units, setUnits] = useState("0");
  const [other, setOther] = useOther(run);
  const [denoise, setDenoise] = useState(false);
  const [read, setRead] = useState<number | null>(null);
  const [against, setAgainst] = useState<{ a: number | null; b: number | null }>({ a: null, b: null });
  const [versus, setVersus] = useState(false);
  const [tried, setTried] = useState<Tried | null>(kept[run.run] ?? null);
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState<Refusal | null>(null);

  const tokens = mainTokens(), pos = Math.min(read ?? position(run, tokens, null), tokens.length - 1);
  const q = view.q ?? queries().length - 1, k = view.k ?? 0;
  const ops: [Op, string][] = site === "value" ? [["zero", w.opZero], ["scale", w.opScale]]
    : [["mean", w.opMean], ["zero", w.opZero], ["scale", w.opScale], ["patch", w.opPatch]];
  const op = ops.some(([o]) => o === chosenOp) ? chosenOp : ops[0][0];
  const here = onlyHere ?? (site === "resid" && op === "patch"); // a whole stream put in place answers as its own text, always
  const paired = site === "pattern" || (op === "patch" && site !== "edge"), ready = !paired || (other !== null && fits(run, other));
  const answers = { ours: useAnswers(run, pos), theirs: useAnswers(other, pos) };
  const a = against.a ?? (paired ? answers.ours.ids[0] : undefined);
  const b = against.b ?? (paired ? answers.theirs.ids.find((id) => id !== a) : undefined);

  const one = (): Intervention => {
    const change: Intervention = { site: site === "attn" && view.stack === "cross" ? "cross" : site, layer: view.layer,
      stack: (OF_HEADS.includes(site) || site === "attn" ? view.stack : current()?.queries) as Intervention["stack"],
      op: site === "edge" ? "knockout" : site === "pattern" ? "freeze" : op };
    if (OF_HEADS.includes(site)) change.heads = shownHeads();
    if (site === "neuron") change.neurons = numbers(units);
    if (site === "edge") { change.query = q; change.key = k; }
    else if (site === "value") change.pos = [k];
    else change.pos = here ? [q] : "all";
    if (change.op === "scale") change.factor = factor;
    if (paired) change.source = denoise ? run.run : other!.run;
    return change;
  };
  const go = async (interventions: Intervention[]) => {
    setBusy(true);
    setFault(null);
    try {
      const target = paired && denoise ? other!.run : run.run;
      const effect = await post<Effect>(`runs/${target}/interventions`, { interventions, pos, ...(a === undefined ? {} : { token: a }), ...(b === undefined ? {} : { other: b }),
        ...(interventions.length > 1 ? { apart: true } : {}), ...(versus && interventions.every((c) => c.heads) ? { null: NULL } : {}) });
      const donor = denoise ? answers.ours : answers.theirs;
      const way = donor.score(effect.token.id) - donor.score(effect.other.id) - effect.before.logit_diff;
      setTried(kept[run.run] = { effect, moved: paired && Math.abs(way) > 1e-6 ? effect.metrics.logit_diff / way : null, changes: interventions });
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      setFault(error);
    } finally {
      setBusy(false);
    }
  };
  const able = !busy && ready && (!OF_HEADS.includes(site) || shownHeads().length > 0) && (site !== "neuron" || numbers(units).length > 0);
  const effect = tried?.effect;
  return <>
    <section class="work" id="picture">
      <p class="says">{w.labWhatHint}</p>
      <div class="bar"><Choice label={w.site} value={site} options={SITES.map((s): [Site, string, string] => [s, siteWord(w, s), siteWhat(w, s)])} onChange={(part) => look({ part })} /></div>
      <div class="bar"><StackChoice /><LayerSlider />{OF_HEADS.includes(site) && <HeadChips />}
        {OF_HEADS.includes(site) && shownHeads().length > 1 && <span class="quiet">{fill(w.together, { n: shownHeads().length })}</span>}
        {site === "neuron" && <label class="pick">{w.neuronList} <input size={14} value={units} onInput={(e) => setUnits(e.currentTarget.value)} /></label>}</div>
      <div class="bar">
        {site === "edge" && <><Pick label={w.query} value={q} side="q" /><span>→</span></>}
        {(site === "edge" || site === "value") && <Pick label={w.key} value={k} side="k" />}
        {site !== "edge" && site !== "pattern" && <Choice label={w.op} value={op} options={ops} onChange={setOp} />}
        {op === "scale" && site !== "edge" && site !== "pattern" && <Slider label={w.factor} value={factor} min={0} max={2} step={0.1} text={number(view.lang, factor, 1)} onInput={setFactor} />}
        {site !== "edge" && site !== "value" && <Tick label={`${w.atQuery}: “${plain(queries()[q])}”`} value={here} onChange={setHere} />}</div>
      {paired && <Pair key={run.run} run={run} other={other} onOther={setOther} />}
      {paired && other && <div class="bar"><Choice label={w.direction} value={denoise ? "de" : "no"} onChange={(d) => setDenoise(d === "de")}
        options={[["no", w.noise, w.noiseWhat], ["de", w.denoise, w.denoiseWhat]]} /><span class="quiet">{denoise ? w.denoiseWhat : w.noiseWhat}</span></div>}
      <div class="bar">{run.model.output !== "labels" && <label class="pick">{w.readAt} <select value={pos} onChange={(e) => setRead(Number(e.currentTarget.value))}>{tokens.map((t, i) => <option key={i} value={i}>{i} {plain(t)}</option>)}</select></label>}
        <Against ids={[...new Set([...answers.ours.ids, ...(paired ? answers.theirs.ids : [])])]} a={a} b={b} onChange={setAgainst} />
        {OF_HEADS.includes(site) && <Tick label={fill(w.versus, { n: NULL })} title={w.versusWhat} value={versus} onChange={setVersus} />}</div>
      <div class="bar"><button class="main" disabled={!able} onClick={() => go([one()])}>{busy ? w.busy : w.test}</button>
        <button disabled={!able || (paired && denoise)} onClick={() => learn({ plan: [...known.plan, one()] })}>{w.addToPlan}</button></div>
      {known.plan.length > 0 && <Plan busy={busy} onTest={() => go(known.plan)} />}
      {fault && <Oops fault={fault} />}
      {tried ? <Result {...tried} /> : <p class="quiet">{w.nothingYet}</p>}
      {run.caps.includes("sweep") && <AllPlaces key={run.run + view.stack} pos={pos} token={a} other={b} donor={other && fits(run, other) ? other : null} />}
    </section>
    <Side><Honest />{effect && <Snippet code={effect.snippet} />}<Exports name="effect" rows={effect ? () => rows(effect) : undefined} /></Side>
  </>;
}

const numbers = (text: string): number[] => [...new Set((text.match(/\d{1,6}/g) ?? []).map(Number))];
const siteWord = (w: Words, s: Intervention["site"]): string => ({ head_out: w.siteHead, edge: w.siteEdge, value: w.siteValue, pattern: w.sitePattern, attn: w.siteAttn, cross: w.siteAttn,
  mlp: w.siteMlp, neuron: w.siteNeuron, resid: w.siteResid })[s];
const siteWhat = (w: Words, s: Site): string => ({ head_out: w.siteHeadWhat, edge: w.siteEdgeWhat, value: w.siteValueWhat, pattern: w.sitePatternWhat, attn: w.siteAttnWhat,
  mlp: w.siteMlpWhat, neuron: w.siteNeuronWhat, resid: w.siteResidWhat })[s];
const opWord = (w: Words, op: Intervention["op"]): string => ({ zero: w.opZero, mean: w.opMean, scale: w.opScale, patch: w.opPatch, resample: w.opPatch, knockout: w.opKnock, freeze: w.opFreeze })[op];

/** A change in a few words. */
function told(w: Words, c: Intervention): string {
  const which = c.heads ? ` ${c.heads.join(", ")}` : c.neurons ? ` ${c.neurons.join(", ")}` : "";
  const where = c.query !== undefined ? ` ${c.query} → ${c.key}` : Array.isArray(c.pos) ? ` @ ${c.pos.join(", ")}` : "";
  return `${w.layer} ${c.layer}: ${siteWord(w, c.site)}${which}${where}: ${opWord(w, c.op)}${c.factor === undefined ? "" : ` ×${c.factor}`}`;
}

function Plan({ busy, onTest }: { busy: boolean; onTest: () => void }) {
  const { known, w } = useShared();
  return <section class="plan"><h2>{fill(w.planTitle, { n: known.plan.length })}</h2>
    <ul>{known.plan.map((c, i) => <li key={i}>{told(w, c)} <button class="small" aria-label={`${w.remove}: ${told(w, c)}`} onClick={() => learn({ plan: known.plan.filter((_, j) => j !== i) })}>×</button></li>)}</ul>
    <div class="bar"><button class="main" disabled={busy} onClick={onTest}>{w.testPlan}</button><button class="small" onClick={() => learn({ plan: [] })}>{w.emptyPlan}</button></div></section>;
}

/** Which two answers are compared: the likeliest two, unless others are chosen. */
function Against({ ids, a, b, onChange }: { ids: number[]; a?: number; b?: number; onChange: (x: { a: number | null; b: number | null }) => void }) {
  const { w } = useShared();
  const names = useNames(ids);
  const pick = (label: string, value: number | undefined, set: (id: number | null) => void) => <label class="pick">{label} <select value={value ?? ""} onChange={(e) => set(e.currentTarget.value === "" ? null : Number(e.currentTarget.value))}>
    <option value="">{w.likeliestTwo}</option>{ids.map((id) => <option key={id} value={id}>{names[id] ?? id}</option>)}</select></label>;
  return <>{pick(w.answerA, a, (id) => onChange({ a: id, b: b ?? null }))}{pick(w.answerB, b, (id) => onChange({ a: a ?? null, b: id }))}</>;
}

function Pick({ label, value, side }: { label: string; value: number; side: "q" | "k" }) {
  const tokens = side === "q" ? queries() : keys();
  return <label class="pick">{label} <select value={value} onChange={(e) => look({ [side]: Number(e.currentTarget.value) })}>
    {tokens.map((t, i) => <option key={i} value={i}>{i} {plain(t)}</option>)}</select></label>;
}

const rows = (e: Effect): (string | number)[][] => [["token", "before", "after"],
  ...e.before.top.map((c) => [c.s, c.p ?? 0, e.after.top.find((x) => x.id === c.id)?.p ?? ""])];

function Result({ effect: e, moved, changes }: Tried) {
  const { view, w } = useShared();
  const names = { a: e.token.s.replace(/^·+/, ""), b: e.other.s.replace(/^·+/, "") };
  const most = Math.max(...[...e.before.top, ...e.after.top].map((c) => c.p ?? 0), 1e-9);
  const list = (title: string, top: Effect["before"]["top"]) => <div><h2>{title}</h2><table class="exact"><tbody>
    {top.map((c) => <tr key={c.id}><th scope="row"><span class="meter" style={{ width: `${100 * (c.p ?? 0) / most}%` }} /><Piece s={c.s} /></th><td class="num">{percent(view.lang, c.p ?? 0)}</td></tr>)}</tbody></table></div>;
  const sign = (x: number, digits: number) => (x > 0 ? "+" : "") + number(view.lang, x, digits);
  const sum = e.apart?.reduce((x, y) => x + y, 0) ?? 0;
  return <div class="result" aria-live="polite">
    <dl class="figures">
      <div><dt>{fill(w.logitDiff, names)}</dt><dd>{number(view.lang, e.before.logit_diff, 3)} → {number(view.lang, e.after.logit_diff, 3)} <strong>({sign(e.metrics.logit_diff, 3)})</strong></dd></div>
      <div><dt>{fill(w.probOf, names)}</dt><dd><strong>{sign(100 * e.metrics.probability, 2)} %</strong></dd></div>
      <div><dt>{w.klWhat}</dt><dd><strong>{number(view.lang, e.metrics.kl, 4)}</strong></dd></div>
      {moved !== null && <div><dt>{w.moved}</dt><dd><strong>{percent(view.lang, moved)}</strong></dd></div>}
      {e.percentile !== undefined && <div><dt>{fill(w.moreThan, { n: NULL })}</dt><dd><strong>{percent(view.lang, e.percentile / 100)}</strong></dd></div>}</dl>
    {e.apart && <><table class="apart"><thead><tr><th>{w.alone}</th><th class="num">{w.change}</th></tr></thead><tbody>
      {e.apart.map((x, i) => <tr key={i}><th scope="row">{told(w, changes[i])}</th><td class="num">{sign(x, 3)}</td></tr>)}
      <tr><th scope="row">{w.sumAlone}</th><td class="num">{sign(sum, 3)}</td></tr><tr class="on"><th scope="row">{w.allTogether}</th><td class="num">{sign(e.metrics.logit_diff, 3)}</td></tr></tbody></table>
      <p class="fine">{fill(w.backup, { x: sign(e.metrics.logit_diff - sum, 3) })}</p></>}
    {e.identical && <p class="quiet">{w.identical}</p>}
    {e.reference && <p class="fine">{w.reference}</p>}
    <p class="fine">{fill(w.measured, { s: plain(mainTokens()[e.pos]) })}</p>
    <div class="two">{list(w.before, e.before.top)}{list(w.after, e.after.top)}</div></div>;
}
