// Head roles: what each head seems to do and whether switching it off hurts that very task; and heads that do the same.
import { useState } from "preact/hooks";
import { post, tensors } from "../api";
import { headColour, ink, ramp } from "../draw/colours";
import { Canvas, Choice, Exports, Honest, base, recorded, Side, Snippet, StackChoice, useAsked, Waiting } from "../parts/common";
import { Progress, useJob } from "../parts/job";
import type { Intervention, Job, Roles as Found } from "../schema";
import { learn, look, turn, useShared } from "../state";
import { fill, number, type Words } from "../words";

const verdictWord = (w: Words, v: string): string =>
  ({ verified: w.verified, "pattern only": w.patternOnly, "causal only": w.causalOnly, contradicted: w.contradicted }[v] ?? w.none);

/** The roles that were found in a model, by name, each with its colour. */
export function roleColours(found: Found | undefined): Record<string, string> {
  const names = [...new Set(found?.heads.map((h) => h.role).filter((r): r is string => r !== null) ?? [])].sort();
  return Object.fromEntries(names.map((r, i) => [r, headColour(i)]));
}

/** A role's name, as "syntactic amod", in the page's language; what stands behind it is a term of grammars. */
export const roleWord = (w: Words, role: string): string => {
  const [name, ...rest] = role.split(" ");
  return [w[`r_${name}` as keyof Words] ?? name, ...rest].join(" ");
};

export const Legend = ({ colours }: { colours: Record<string, string> }) => {
  const { w } = useShared();
  return <div class="legend">{Object.entries(colours).map(([r, colour]) => <span key={r}><i class="dot" style={{ background: colour }} />{roleWord(w, r)}</span>)}</div>;
};

export function Roles() {
  const { view, known: { run }, w } = useShared();
  const parts: ["roles" | "clusters", string][] = [];
  if (run!.caps.includes("roles") && run!.model.live) parts.push(["roles", w.rolesPart]);
  if (run!.caps.includes("redundancy") && run!.model.live) parts.push(["clusters", w.clusters]);
  const part = parts.find(([p]) => p === view.part)?.[0] ?? parts[0][0];
  const choice = <Choice label={w.show} value={part} options={parts} onChange={(p) => look({ part: p })} />;
  return part === "roles" ? <Search choice={choice} /> : <Clusters choice={choice} />;
}

function Search({ choice }: { choice: preact.JSX.Element }) {
  const { view, known, w } = useShared();
  const model = known.run!.model;
  const [suite, setSuite] = useState<"quick" | "default">("quick");
  const job = useJob<Found>((found) => learn({ roles: { ...known.roles, [model.id]: found } }));
  const [only, pick] = useState<string | null>(null);
  const found = known.roles[model.id];
  const colours = roleColours(found), colour = (role: string | null) => role === null ? "transparent" : colours[role];
  const stacks = [...new Set(found?.heads.map((h) => h.stack) ?? [])];
  const cards = found?.cards.filter((c) => only === null || `${c.stack} ${c.layer}.${c.head}` === only).slice(0, 60) ?? [];
  return <>
    <section class="work" id="picture">
      <div class="bar">{choice}<Choice label={w.suite} value={suite} options={[["quick", w.quick, w.quickWhat], ["default", w.full, w.fullWhat]]} onChange={setSuite} />
        <button class="main" disabled={job.job?.state === "running"} onClick={() => job.run(() => post<Job>(`models/${encodeURIComponent(model.id)}/roles`, { suite, lang: view.lang }))}>{w.rolesStart}</button></div>
      <p class="says">{w.rolesHint}</p>
      {job.job && <Progress job={job.job} onStop={job.stop} />}
      {found && <><p class="fine">{w.rolesData}</p><Legend colours={colours} />
        {stacks.map((stack) => {
          const heads = found.heads.filter((h) => h.stack === stack), layers = [...new Set(heads.map((h) => h.layer))];
          return <table class="cells roles" key={stack}><caption>{w.roleMap}{stacks.length > 1 && ` · ${stack}`}</caption><tbody>{layers.map((l) => <tr key={l}><th scope="row">{l}</th>
            {heads.filter((h) => h.layer === l).map((h) => <td key={h.head}><button class={h.verdict === "verified" ? "sure" : ""} style={{ background: colour(h.role) }} aria-pressed={only === `${stack} ${l}.${h.head}`}
              aria-label={`${l}.${h.head}: ${h.role ? roleWord(w, h.role) : w.none}, ${verdictWord(w, h.verdict)}`} title={`${l}.${h.head}: ${h.role ? roleWord(w, h.role) : w.none} (${verdictWord(w, h.verdict)})`}
              onClick={() => pick(only === `${stack} ${l}.${h.head}` ? null : `${stack} ${l}.${h.head}`)}>{h.verdict === "verified" ? "✓" : ""}</button></td>)}</tr>)}</tbody></table>;
        })}
        <p class="fine">{w.roleMapHint}</p>
        <h2>{w.cards}</h2>{cards.length === 0 && <p class="quiet">{w.none}</p>}
        <div class="cards">{cards.map((c) => <article key={`${c.stack}${c.layer}.${c.head}${c.role}`} style={{ "--head": colour(c.role) }}>
          <h3>{roleWord(w, c.role)} · {w.layer} {c.layer}, {fill(w.headN, { h: c.head }).toLowerCase()}</h3><p class={`verdict ${c.verdict === "verified" ? "good" : ""}`}>{verdictWord(w, c.verdict)}</p><p>{c.wording}</p>
          <p class="fine">{w.score} {number(view.lang, c.score, 3)}{c.baseline !== null && `, ${w.baseline} ${number(view.lang, c.baseline, 3)}`} · n = {c.n}{c.effect !== null && ` · ${w.effect} ${number(view.lang, c.effect, 3)}`}{c.ci && ` [${c.ci.map((x) => number(view.lang, x, 3)).join(", ")}]`}</p>
          <button class="small" onClick={() => turn("heads", { stack: c.stack, layer: c.layer, heads: [c.head] })}>{w.heads} →</button></article>)}</div>
        {found.notes.map((n) => <p class="fine" key={n}>{n}</p>)}</>}
    </section>
    <Side><Snippet code={`${base()}\nprint(mirada.look.roles(m, lang="${view.lang}"${suite === "quick" ? ", rows=16, count=120" : ""}))`} />{found && <Exports name="roles" rows={() => [["stack", "layer", "head", "role", "verdict", "score", "baseline", "n", "effect"],
      ...found.cards.map((c) => [c.stack, c.layer, c.head, c.role, c.verdict, c.score, c.baseline ?? "", c.n, c.effect ?? ""])]} />}<Honest /></Side>
  </>;
}

const SQUARE = 420; // pixels of the picture of distances

/** Heads whose patterns are alike on this text, and what they would do together. */
function Clusters({ choice }: { choice: preact.JSX.Element }) {
  const { view, known, w } = useShared();
  const call = `runs/${view.run}/redundancy?stack=${view.stack}`;
  const asked = useAsked(view.run === known.run!.run ? call : null, () => tensors(call));
  const heads: [number, number][] = asked.value ? JSON.parse(asked.value.meta.heads) : [];
  const cluster = asked.value?.get("cluster").data ?? [], distance = asked.value?.get("distance").data ?? [], cosine = asked.value?.get("cosine").data ?? [];
  const groups = new Map<number, number[]>();
  heads.forEach((_, i) => groups.set(cluster[i], [...groups.get(cluster[i]) ?? [], i]));
  const sets = [...groups.values()].filter((g) => g.length > 1).sort((a, b) => b.length - a.length);
  const order = [...sets.flat(), ...heads.map((_, i) => i).filter((i) => groups.get(cluster[i])!.length === 1)];
  const mean = (of: ArrayLike<number>, g: number[]) => g.reduce((s, i) => s + g.reduce((t, j) => i === j ? t : t + of[i * heads.length + j], 0), 0) / (g.length * (g.length - 1));
  const cell = SQUARE / Math.max(1, heads.length);
  const test = (g: number[]) => {
    learn({ plan: g.map((i): Intervention => ({ site: "head_out", stack: view.stack as Intervention["stack"], layer: heads[i][0], heads: [heads[i][1]], op: "mean" })) });
    turn("lab");
  };
  return <>
    <section class="work" id="picture"><div class="bar">{choice}<StackChoice /></div><p class="says">{w.clustersHint}</p><Waiting of={asked} />
      {asked.value && <><p class="fine">{fill(w.clustersFound, { n: sets.length, h: sets.flat().length, all: heads.length, q: asked.value.meta.queries, x: number(view.lang, Number(asked.value.meta.threshold), 2) })}</p>
        <div class="twin"><figure><Canvas width={SQUARE} height={SQUARE} label={w.clustersMap} deps={[asked.value]} draw={(ctx) => {
          const colours = ramp();
          order.forEach((i, y) => order.forEach((j, x) => {
            const c = colours[Math.round(255 * (1 - Math.min(1, distance[i * heads.length + j])) ** 2)];
            ctx.fillStyle = `rgb(${c & 255} ${(c >> 8) & 255} ${(c >> 16) & 255})`;
            ctx.fillRect(x * cell, y * cell, cell + 0.5, cell + 0.5);
          }));
          ctx.strokeStyle = ink("lock");
          ctx.lineWidth = 2;
          let at = 0;
          for (const g of sets) { ctx.strokeRect(at * cell, at * cell, g.length * cell, g.length * cell); at += g.length; }
        }} /><figcaption class="fine">{w.clustersMap}</figcaption></figure>
        <div>{sets.length === 0 && <p class="quiet">{w.noClusters}</p>}
          {sets.slice(0, 20).map((g, n) => <article class="cluster" key={g[0]}><h2>{fill(w.clusterN, { n: n + 1, h: g.length })}</h2>
            <p>{g.slice(0, 24).map((i) => <button key={i} class="word" onClick={() => turn("heads", { layer: heads[i][0], heads: [heads[i][1]] })}>{heads[i].join(".")}</button>)}{g.length > 24 && ` +${g.length - 24}`}</p>
            <p class="fine">{fill(w.clusterSays, { d: number(view.lang, mean(distance, g), 2), c: number(view.lang, mean(cosine, g), 2) })}</p>
            {known.run!.caps.includes("causal") && <button class="small" onClick={() => test(g.slice(0, 64))}>{w.testTogether} →</button>}</article>)}</div></div></>}
    </section>
    <Side><Snippet code={`${recorded("z=True")}\nprint(mirada.look.redundant(tape, stack="${view.stack}"))`} /><Exports name="clusters" rows={() => [["layer", "head", "cluster"], ...heads.map(([l, h], i) => [l, h, cluster[i]])]} /><Honest /></Side>
  </>;
}
