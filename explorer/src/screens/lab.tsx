// Causal lab: switch a part off, and see what changes in the answer; or every head, one at a time.
import { useEffect, useState } from "preact/hooks";
import { json, post, Refusal } from "../api";
import { signed } from "../draw/colours";
import { Choice, Exports, Honest, LayerSlider, Oops, Piece, plain, Side, Slider, Snippet, StackChoice, Tick } from "../parts/common";
import type { Effect, Intervention, Job, Sweep } from "../schema";
import { blame, current, keys, known, look, mainTokens, queries, shownHeads, useShared } from "../state";
import { fill, number, percent } from "../words";
import { HeadChips } from "./heads";

type Site = "head_out" | "edge" | "mlp" | "value" | "resid";
let kept: { run: string; effect: Effect } | null = null; // stays while screens change

export function Lab() {
  const { view, known, w } = useShared();
  const [site, setSite] = useState<Site>("head_out");
  const [op, setOp] = useState<"zero" | "mean" | "scale">("mean");
  const [factor, setFactor] = useState(0.5);
  const [here, setHere] = useState(false);
  const [effect, setEffect] = useState<Effect | null>(kept?.run === view.run ? kept.effect : null);
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState<Refusal | null>(null);
  const run = known.run!;
  const q = view.q ?? queries().length - 1, k = view.k ?? 0;
  const read = run.model.output === "mask" ? view.q : null;
  const go = async () => {
    const one: Intervention = { site, stack: view.stack as Intervention["stack"], layer: view.layer, op: site === "edge" ? "knockout" : site === "value" ? "zero" : op };
    if (site === "head_out" || site === "edge" || site === "value") one.heads = shownHeads();
    if (site === "edge") { one.query = q; one.key = k; }
    else if (site === "value") one.pos = [k];
    else one.pos = here ? [q] : "all";
    if (one.op === "scale") one.factor = factor;
    setBusy(true);
    setFault(null);
    try {
      const found = await post<Effect>(`runs/${run.run}/interventions`, { interventions: [one], ...(read === null ? {} : { pos: read }) });
      kept = { run: run.run, effect: found };
      setEffect(found);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      setFault(error);
    } finally {
      setBusy(false);
    }
  };
  const sites: [Site, string][] = [["head_out", w.siteHead], ["edge", w.siteEdge], ["value", w.siteValue], ["mlp", w.siteMlp], ["resid", w.siteResid]];
  return <>
    <section class="work" id="picture">
      <p class="says">{w.labWhatHint}</p>
      <div class="bar"><StackChoice /><LayerSlider /><Choice label={w.site} value={site} options={sites} onChange={setSite} /></div>
      {["head_out", "edge", "value"].includes(site) && <div class="bar"><HeadChips />
        {shownHeads().length > 1 && <span class="quiet">{fill(w.together, { n: shownHeads().length })}</span>}</div>}
      <div class="bar">
        {site === "edge" && <><Pick label={w.query} value={q} side="q" /><span>→</span></>}
        {(site === "edge" || site === "value") && <Pick label={w.key} value={k} side="k" />}
        {site !== "edge" && site !== "value" && <>
          <Choice label={w.op} value={op} options={[["mean", w.opMean], ["zero", w.opZero], ["scale", w.opScale]]} onChange={setOp} />
          {op === "scale" && <Slider label={w.factor} value={factor} min={0} max={2} step={0.1} text={number(view.lang, factor, 1)} onInput={setFactor} />}
          <Tick label={`${w.atQuery}: “${plain(queries()[q])}”`} value={here} onChange={setHere} /></>}
        <button class="main" disabled={busy || (site !== "mlp" && site !== "resid" && !shownHeads().length)} onClick={go}>{busy ? w.busy : w.test}</button></div>
      {fault && <Oops fault={fault} />}
      {effect ? <Result effect={effect} /> : <p class="quiet">{w.nothingYet}</p>}
      {run.caps.includes("sweep") && <AllHeads key={run.run + view.stack} />}
    </section>
    <Side><Honest />{effect && <Snippet code={effect.snippet} />}<Exports name="effect" rows={effect ? () => rows(effect) : undefined} /></Side>
  </>;
}

function Pick({ label, value, side }: { label: string; value: number; side: "q" | "k" }) {
  const tokens = side === "q" ? queries() : keys();
  return <label class="pick">{label} <select value={value} onChange={(e) => look({ [side]: Number(e.currentTarget.value) })}>
    {tokens.map((t, i) => <option key={i} value={i}>{i} {plain(t)}</option>)}</select></label>;
}

const rows = (e: Effect): (string | number)[][] => [["token", "before", "after"],
  ...e.before.top.map((c) => [c.s, c.p ?? 0, e.after.top.find((x) => x.id === c.id)?.p ?? ""])];

function Result({ effect: e }: { effect: Effect }) {
  const { view, w } = useShared();
  const names = { a: e.token.s.replace(/^·+/, ""), b: e.other.s.replace(/^·+/, "") };
  const most = Math.max(...[...e.before.top, ...e.after.top].map((c) => c.p ?? 0), 1e-9);
  const list = (title: string, top: Effect["before"]["top"]) => <div><h2>{title}</h2><table class="exact"><tbody>
    {top.map((c) => <tr key={c.id}><th scope="row"><span class="meter" style={{ width: `${100 * (c.p ?? 0) / most}%` }} /><Piece s={c.s} /></th><td class="num">{percent(view.lang, c.p ?? 0)}</td></tr>)}</tbody></table></div>;
  const sign = (x: number, digits: number) => (x > 0 ? "+" : "") + number(view.lang, x, digits);
  return <div class="result" aria-live="polite">
    <dl class="figures">
      <div><dt>{fill(w.logitDiff, names)}</dt><dd>{number(view.lang, e.before.logit_diff, 3)} → {number(view.lang, e.after.logit_diff, 3)} <strong>({sign(e.metrics.logit_diff, 3)})</strong></dd></div>
      <div><dt>{fill(w.probOf, names)}</dt><dd><strong>{sign(100 * e.metrics.probability, 2)} %</strong></dd></div>
      <div><dt>{w.klWhat}</dt><dd><strong>{number(view.lang, e.metrics.kl, 4)}</strong></dd></div></dl>
    {e.identical && <p class="quiet">{w.identical}</p>}
    {e.reference && <p class="fine">{fill(w.reference, { x: e.reference })}</p>}
    <p class="fine">{fill(w.measured, { s: plain(mainTokens()[e.pos]) })}</p>
    <div class="two">{list(w.before, e.before.top)}{list(w.after, e.after.top)}</div></div>;
}

/** Follows a job until it ends; its state is asked for twice a second. */
export function useJob<T>(): { job: Job | null; run: (begin: () => Promise<Job>) => Promise<void>; stop: () => void; result: T | null } {
  const [job, set] = useState<Job | null>(null);
  useEffect(() => {
    if (job?.state !== "running") return;
    const timer = setTimeout(() => json<Job>(`jobs/${job.job}`).then(set, blame), 400);
    return () => clearTimeout(timer);
  }, [job]);
  return {
    job, run: async (begin) => { try { set(await begin()); } catch (error) { blame(error); } },
    stop: () => { if (job) void json<Job>(`jobs/${job.job}`, { method: "DELETE" }).then(set, blame); },
    result: job?.state === "done" ? job.result as T : null,
  };
}

export function Progress({ job, onStop }: { job: Job; onStop: () => void }) {
  const { w } = useShared();
  if (job.state === "failed") return <p class="bad" role="alert">{w.failed}: {job.error?.message}</p>;
  if (job.state !== "running") return null;
  return <div class="bar"><progress max={job.total || 1} value={job.total ? job.done : undefined} aria-label={w.busy} /><span class="quiet">{job.total > 0 && fill(w.progress, { a: job.done, b: job.total })} {job.words}</span>
    <button class="small" onClick={onStop}>{w.stop}</button></div>;
}

function AllHeads() {
  const { view, w } = useShared();
  const { job, run, stop, result } = useJob<Sweep>();
  const stack = current();
  const most = Math.max(...(result?.effects.flat().map((x) => Math.abs(x ?? 0)) ?? []), 1e-9);
  return <div class="sweep"><h2>{w.sweepTitle}</h2><p class="fine">{w.sweepHint}</p>
    <button disabled={job?.state === "running"} onClick={() => run(() => post<Job>(`runs/${known.run!.run}/sweep`, { op: "mean", stack: stack?.id, ...(known.run!.model.output === "mask" && view.q !== null ? { pos: view.q } : {}) }))}>{w.sweep}</button>
    {job && <Progress job={job} onStop={stop} />}
    {result && <><p class="fine">{fill(w.logitDiff, { a: result.token.s, b: result.other.s })}: {number(view.lang, result.before, 3)} · ±{number(view.lang, most, 3)}</p>
      <table class="cells"><thead><tr><th>{w.layer}</th>{Array.from({ length: headsOf(result) }, (_, h) => <th key={h}>{h}</th>)}</tr></thead>
        <tbody>{result.effects.map((row, l) => <tr key={l}><th scope="row">{l}</th>{row.map((x, h) => <td key={h}>
          <button style={{ background: signed((x ?? 0) / most) }} title={`${l}.${h}: ${x === null ? "–" : number(view.lang, x, 4)}`} aria-label={`${l}.${h}: ${x === null ? "–" : number(view.lang, x, 4)}`}
            onClick={() => look({ layer: l, heads: [h] })} /></td>)}</tr>)}</tbody></table></>}
  </div>;
}

const headsOf = (s: Sweep): number => Math.max(...s.effects.map((r) => r.length));
