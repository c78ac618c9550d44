// The same change at every place of a model, one at a time: heads, positions or MLPs by layers.
import { useState } from "preact/hooks";
import { post } from "../api";
import { ink, signed } from "../draw/colours";
import { Canvas, Choice, plain, Snippet } from "../parts/common";
import { Progress, useJob } from "../parts/job";
import type { Job, Run, Sweep } from "../schema";
import { current, known, learn, look, queries, useShared } from "../state";
import { fill, number } from "../words";

type Place = "head_out" | "resid" | "mlp";
const BUTTONS = 400; // squares up to which each is a button
const HEAD = 52; // pixels for the names above

export function AllPlaces({ pos, token, other, donor }: { pos: number; token?: number; other?: number; donor: Run | null }) {
  const { w } = useShared();
  const [site, setSite] = useState<Place>("head_out");
  const [chosen, setOp] = useState<"mean" | "zero" | "patch">("mean");
  const op = chosen === "patch" && !donor ? "mean" : chosen;
  const stack = current()!, mine = stack.kind === "cross" && site !== "head_out" ? stack.queries : stack.id;
  const { job, run, stop, result } = useJob<Sweep>((found) => {
    if (found.site === "head_out" && found.op !== "patch") learn({ sweeps: { ...known.sweeps, [known.run!.run + found.stack]: found } });
  });
  const begin = () => post<Job>(`runs/${known.run!.run}/sweep`, { op, site, stack: mine, pos, ...(token === undefined ? {} : { token }), ...(other === undefined ? {} : { other }), ...(op === "patch" ? { source: donor!.run } : {}) });
  const ops: ["mean" | "zero" | "patch", string][] = [["mean", w.opMean], ["zero", w.opZero]];
  if (donor) ops.push(["patch", w.opPatch]);
  return <div class="sweep"><h2>{w.sweepTitle}</h2>
    <div class="bar"><Choice label={w.where} value={site} options={[["head_out", w.siteHead], ["resid", w.sweepResid], ["mlp", w.siteMlp]]} onChange={setSite} />
      <Choice label={w.sweepOp} value={op} options={ops} onChange={setOp} /><button disabled={job?.state === "running"} onClick={() => run(begin)}>{w.sweep}</button></div>
    <p class="fine">{w.sweepHint}</p>
    {job && <Progress job={job} onStop={stop} />}
    {result && <Squares found={result} />}</div>;
}

function Squares({ found }: { found: Sweep }) {
  const { view, w } = useShared();
  const L = found.effects.length, N = Math.max(...found.effects.map((r) => r.length));
  const most = Math.max(...found.effects.flat().map((x) => Math.abs(x ?? 0)), 1e-9);
  const across = (n: number) => found.site === "head_out" ? String(n) : found.site === "resid" ? `${n} ${plain(queries()[n])}` : "MLP";
  const name = (l: number, n: number) => `${w.layer} ${l}, ${found.site === "head_out" ? fill(w.headN, { h: n }).toLowerCase() : across(n)}`;
  const pick = (l: number, n: number) => look(found.site === "head_out" ? { layer: l, heads: [n] } : found.site === "resid" ? { layer: l, q: n, part: "resid" } : { layer: l, part: "mlp" });
  const all = found.effects.flatMap((row, l) => row.map((x, n) => ({ l, n, x: x ?? 0 }))).sort((a, b) => Math.abs(b.x) - Math.abs(a.x)).slice(0, 5);
  const side = Math.max(9, Math.min(46, Math.floor(660 / N)));
  return <><p class="fine">{fill(w.logitDiff, { a: found.token.s.replace(/^·+/, ""), b: found.other.s.replace(/^·+/, "") })}: {number(view.lang, found.before, 3)} · ±{number(view.lang, most, 3)}</p>
    {L * N <= BUTTONS ? <div class="scroller across" tabIndex={0} role="region" aria-label={w.sweepTitle}><table class="cells"><thead><tr><th>{w.layer}</th>{Array.from({ length: N }, (_, n) => <th key={n} class={found.site === "resid" ? "turned" : ""}><span>{across(n)}</span></th>)}</tr></thead>
      <tbody>{found.effects.map((row, l) => <tr key={l}><th scope="row">{l}</th>{row.map((x, n) => <td key={n}>
        <button style={{ background: signed((x ?? 0) / most) }} title={`${name(l, n)}: ${x === null ? "–" : number(view.lang, x, 4)}`} aria-label={`${name(l, n)}: ${x === null ? "–" : number(view.lang, x, 4)}`}
          onClick={() => pick(l, n)} /></td>)}</tr>)}</tbody></table></div>
      : <div class="scroller across" tabIndex={0} role="region" aria-label={w.sweepTitle}><Canvas width={70 + N * side} height={HEAD + 4 + L * 14} label={`${w.sweepTitle}. ${w.largest} ${all.map((c) => name(c.l, c.n)).join("; ")}`} deps={[found]}
        onClick={(e) => { const l = Math.floor((e.offsetY - HEAD) / 14), n = Math.floor((e.offsetX - 40) / side); if (found.effects[l]?.[n] !== undefined) pick(l, n); }}
        draw={(ctx) => {
          ctx.font = "11px system-ui, sans-serif";
          ctx.fillStyle = ink("text");
          for (let n = 0; n < N; n++) {
            ctx.save();
            ctx.translate(40 + (n + 0.5) * side, HEAD - 6);
            ctx.rotate(-Math.PI / 4);
            ctx.fillText(across(n).slice(0, 10), 0, 0);
            ctx.restore();
          }
          ctx.textAlign = "right";
          found.effects.forEach((row, l) => {
            ctx.fillStyle = ink("quiet");
            ctx.fillText(String(l), 34, HEAD + l * 14 + 10);
            row.forEach((x, n) => { ctx.fillStyle = signed((x ?? 0) / most); ctx.fillRect(40 + n * side, HEAD + l * 14, side - 1, 13); });
          });
        }} /></div>}
    <p class="fine">{w.largest} {all.map((c, i) => <span key={i}>{i > 0 && "; "}<button class="plain" onClick={() => pick(c.l, c.n)}>{name(c.l, c.n)}</button> {number(view.lang, c.x, 3)}</span>)}</p>
    <Snippet code={found.snippet} /></>;
}
