// Head roles: what each head seems to do, and whether switching it off hurts that very task.
import { useState } from "preact/hooks";
import { post } from "../api";
import { headColour } from "../draw/colours";
import { Choice, Honest, save, Side } from "../parts/common";
import type { Job, Roles as Found } from "../schema";
import { known, look, useShared } from "../state";
import { fill, number, type Words } from "../words";
import { Progress, useJob } from "./lab";

let kept: Found | null = null; // stays while screens change

const verdictWord = (w: Words, v: string): string =>
  ({ verified: w.verified, "pattern only": w.patternOnly, "causal only": w.causalOnly, contradicted: w.contradicted }[v] ?? w.none);

export function Roles() {
  const { view, known: { run }, w } = useShared();
  const [suite, setSuite] = useState<"quick" | "default">("quick");
  const job = useJob<Found>();
  const [only, pick] = useState<string | null>(null);
  if (job.result) kept = job.result;
  const found = kept;
  const names = [...new Set(found?.heads.map((h) => h.role).filter((r): r is string => r !== null) ?? [])].sort();
  const stacks = [...new Set(found?.heads.map((h) => h.stack) ?? [])];
  const cards = found?.cards.filter((c) => only === null || `${c.stack} ${c.layer}.${c.head}` === only).slice(0, 60) ?? [];
  const colour = (role: string | null) => role === null ? "transparent" : headColour(names.indexOf(role));
  return <>
    <section class="work" id="picture">
      <p class="says">{w.rolesHint}</p>
      <div class="bar"><Choice label={w.show} value={suite} options={[["quick", w.quick], ["default", w.full]]} onChange={setSuite} />
        <button class="main" disabled={job.job?.state === "running"} onClick={() => job.run(() => post<Job>(`models/${encodeURIComponent(run!.model.id)}/roles`, { suite, lang: view.lang }))}>{w.rolesStart}</button></div>
      {job.job && <Progress job={job.job} onStop={job.stop} />}
      {found && <><p class="fine">{found.data}</p>
        <div class="legend">{names.map((r) => <span key={r}><i class="dot" style={{ background: colour(r) }} />{r}</span>)}</div>
        {stacks.map((stack) => {
          const heads = found.heads.filter((h) => h.stack === stack), layers = [...new Set(heads.map((h) => h.layer))];
          return <table class="cells roles" key={stack}><caption>{w.roleMap}{stacks.length > 1 && ` · ${stack}`}</caption><tbody>{layers.map((l) => <tr key={l}><th scope="row">{l}</th>
            {heads.filter((h) => h.layer === l).map((h) => <td key={h.head}><button class={h.verdict === "verified" ? "sure" : ""} style={{ background: colour(h.role) }} aria-pressed={only === `${stack} ${l}.${h.head}`}
              aria-label={`${l}.${h.head}: ${h.role ?? w.none}, ${verdictWord(w, h.verdict)}`} title={`${l}.${h.head}: ${h.role ?? w.none} (${verdictWord(w, h.verdict)})`}
              onClick={() => pick(only === `${stack} ${l}.${h.head}` ? null : `${stack} ${l}.${h.head}`)}>{h.verdict === "verified" ? "✓" : ""}</button></td>)}</tr>)}</tbody></table>;
        })}
        <h2>{w.cards}</h2>{cards.length === 0 && <p class="quiet">{w.none}</p>}
        <div class="cards">{cards.map((c) => <article key={`${c.stack}${c.layer}.${c.head}${c.role}`} style={{ "--head": colour(c.role) }}>
          <h3>{c.role} · {w.layer} {c.layer}, {fill(w.headN, { h: c.head }).toLowerCase()}</h3><p class={`verdict ${c.verdict === "verified" ? "good" : ""}`}>{verdictWord(w, c.verdict)}</p><p>{c.wording}</p>
          <p class="fine">{w.score} {number(view.lang, c.score, 3)}{c.baseline !== null && `, ${w.baseline} ${number(view.lang, c.baseline, 3)}`} · n = {c.n}{c.effect !== null && ` · ${w.effect} ${number(view.lang, c.effect, 3)}`}{c.ci && ` [${c.ci.map((x) => number(view.lang, x, 3)).join(", ")}]`}</p>
          <button class="small" onClick={() => look({ screen: "heads", stack: c.stack, layer: c.layer, heads: [c.head] }, true)}>{w.heads} →</button></article>)}</div>
        {found.notes.map((n) => <p class="fine" key={n}>{n}</p>)}</>}
    </section>
    <Side>{found && <div class="exports"><span>{w.export}</span><button class="small" onClick={() => save(`roles-${known.run!.model.name}.csv`, found.csv)}>{w.csv}</button></div>}<Honest /></Side>
  </>;
}
