// Lens: what each layer would say next, read by the model's own head; and a logit taken apart.
import { tensors, keptJson } from "../api";
import { useState } from "preact/hooks";
import { headColour, ramp, signed } from "../draw/colours";
import { recorded, Choice, Exports, Honest, plain, Side, Snippet, useAsked, Waiting } from "../parts/common";
import type { Dla } from "../schema";
import { look, mainTokens, turn, useShared } from "../state";
import type { Tensors } from "../tensors";
import { fill, number, percent } from "../words";

export function Lens() {
  const { view, known, w } = useShared();
  const caps = known.run!.caps;
  const options: ["lens" | "dla", string][] = [];
  if (caps.includes("lens")) options.push(["lens", w.lensTitle]);
  if (caps.includes("dla")) options.push(["dla", fill(w.dlaTitle, { s: "…" })]);
  const part = options.find(([p]) => p === view.part)?.[0] ?? options[0][0];
  const pos = view.q ?? mainTokens().length - 1, call = `runs/${view.run}/dla?pos=${pos}`;
  const dla = useAsked(part === "dla" ? call : null, () => keptJson<Dla>(call));
  const grid = useAsked(part === "lens" ? `runs/${view.run}/lens?top=5` : null, () => tensors(`runs/${view.run}/lens?top=5`));
  const rows = (): Row[] => part === "dla" ? [["term", "kind", "layer", "head", "logit"], ...dla.value!.terms.map((t): Row => [t.name, t.kind, t.layer ?? "", t.head ?? "", t.value])] : cells(grid.value!);
  return <>
    <section class="work" id="picture">
      <Choice label={w.show} value={part} options={options} onChange={(p) => look({ part: p })} />
      {part === "lens" ? grid.value ? <Grid found={grid.value} /> : <Waiting of={grid} /> : <><Waiting of={dla} />{dla.value && <Terms dla={dla.value} />}</>}
    </section>
    <Side><p class="fine">{part === "lens" ? w.lensWarn : ""}</p><Snippet code={part === "lens" ? `${recorded("resid=True")}\nprint(mirada.look.lens(tape, top=5))` : dla.value?.snippet ?? ""} /><Exports name={part} rows={(part === "dla" ? dla : grid).value ? rows : undefined} /><Honest /></Side>
  </>;
}

const LAST = 40; // tokens in the grid, around the chosen one

type Tint = "top" | "chosen" | "rank";
type Row = (string | number)[];
function cells(found: Tensors): Row[] {
  const id = found.get("id"), p = found.get("p").data, names = JSON.parse(found.meta.labels ?? "{}"), [L, T, K] = id.shape;
  return [["depth", "position", "token", "p"], ...Array.from({ length: L * T }, (_, i): Row => [Math.floor(i / T), i % T, names[id.data[i * K]] ?? id.data[i * K], p[i * K]])];
}

function Grid({ found }: { found: Tensors }) {
  const { view, w } = useShared();
  const tokens = mainTokens(), id = found.get("id"), p = found.get("p").data;
  const names: Record<string, string> = JSON.parse(found.meta.labels ?? "{}");
  const [L, T, K] = id.shape;
  const [tint, setTint] = useState<Tint>("top");
  const chance = found.get("chosen_p").data, rank = found.get("chosen_rank").data;
  const from = Math.max(0, Math.min(T - LAST, (view.q ?? T - 1) - LAST / 2)), to = Math.min(T, from + LAST);
  const colours = ramp();
  const shade = (x: number) => {
    const c = colours[Math.round(255 * Math.sqrt(x) * 0.75)], [r, g, b] = [c & 255, (c >> 8) & 255, (c >> 16) & 255];
    return { background: `rgb(${r} ${g} ${b})`, color: 0.3 * r + 0.59 * g + 0.11 * b > 138 ? "#14161f" : "#fff" };
  };
  const rows = Array.from({ length: L }, (_, i) => L - 1 - i);
  return <><div class="bar"><Choice label={w.lensInk} value={tint} options={[["top", w.lensTop], ["chosen", w.lensChosen], ["rank", w.lensRank]]} onChange={setTint} /></div><p class="fine">{w.lensHint}</p>
    <div class="scroller" tabIndex={0} role="region" aria-label={w.lensTitle}><table class="lens"><thead><tr><th>{w.layer}</th>
    {tokens.slice(from, to).map((t, j) => <th key={j}><button class={`plain${view.q === from + j ? " on" : ""}`} onClick={() => look({ q: from + j })}>{plain(t)}</button></th>)}</tr></thead>
    <tbody>{rows.map((l) => <tr key={l}><th scope="row">{l === 0 ? w.embed : fill(w.rowLayer, { l: l - 1 })}</th>
      {tokens.slice(from, to).map((_, j) => {
        const at = l * T + from + j, i = at * K, x = tint === "top" ? p[i] : tint === "chosen" ? chance[at] : 1 / (1 + rank[at]);
        const title = Array.from({ length: K }, (_, k) => `${names[id.data[i + k]] ?? id.data[i + k]} ${percent(view.lang, p[i + k])}`).join("\n");
        return <td key={j} title={title} style={shade(x)}>{tint === "rank" ? rank[at] + 1 : names[id.data[i]] ?? id.data[i]}</td>;
      })}</tr>)}</tbody></table></div></>;
}

function Terms({ dla }: { dla: Dla }) {
  const { view, w } = useShared();
  const top = [...dla.terms].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 24);
  const rest = dla.terms.filter((t) => !top.includes(t));
  const most = Math.max(...top.map((t) => Math.abs(t.value)), 1e-9);
  const shown = rest.length ? [...top, { name: fill(w.others, { n: rest.length }), kind: "other" as const, layer: null, head: null, value: rest.reduce((s, t) => s + t.value, 0) }] : top;
  return <><h1>{fill(w.dlaTitle, { s: dla.token.s.replace(/^·+/, "") })}</h1>
    <p class="fine">{fill(w.dlaSum, { a: number(view.lang, dla.sum, 4), b: number(view.lang, dla.logit, 4) })} {w.dlaNote} {fill(w.measured, { s: plain(mainTokens()[dla.pos]) })}</p>
    <table class="terms"><tbody>{shown.map((t) => <tr key={t.name}><th scope="row">{t.kind === "head"
      ? <button class="plain" onClick={() => turn("heads", { layer: t.layer!, heads: [t.head!] })}><span class="dot" style={{ background: headColour(t.head!) }} />{w.layer} {t.layer}, {fill(w.headN, { h: t.head! }).toLowerCase()}</button>
      : t.layer === null ? (t.kind === "embed" ? w.embed : t.name) : `${t.kind === "mlp" ? "MLP" : t.name} · ${w.layer} ${t.layer}`}</th>
      <td class="wide"><span class="swing"><span style={{ width: `${50 * Math.min(1, Math.abs(t.value) / most)}%`, [t.value < 0 ? "right" : "left"]: "50%", background: signed(t.value < 0 ? -1 : 1) }} /></span></td>
      <td class="num">{number(view.lang, t.value, 4)}</td></tr>)}</tbody></table></>;
}
