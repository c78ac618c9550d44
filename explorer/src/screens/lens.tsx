// Lens: what each layer would say next, read by the model's own head; and a logit taken apart.
import { tensors, keptJson } from "../api";
import { useState } from "preact/hooks";
import { headColour, ramp, signed } from "../draw/colours";
import { recorded, Choice, Exports, Honest, plain, Side, Snippet, useAsked, Waiting } from "../parts/common";
import type { Dla } from "../schema";
import { look, mainTokens, useShared } from "../state";
import { fill, number, percent } from "../words";

export function Lens() {
  const { view, known, w } = useShared();
  const caps = known.run!.caps;
  const [part, setPart] = useState<"lens" | "dla">(caps.includes("lens") ? "lens" : "dla");
  const options: ["lens" | "dla", string][] = [];
  if (caps.includes("lens")) options.push(["lens", w.lensTitle]);
  if (caps.includes("dla")) options.push(["dla", fill(w.dlaTitle, { s: "…" })]);
  const pos = view.q ?? mainTokens().length - 1, call = `runs/${view.run}/dla?pos=${pos}`;
  const dla = useAsked(part === "dla" ? call : null, () => keptJson<Dla>(call));
  return <>
    <section class="work" id="picture">
      <Choice label={w.show} value={part} options={options} onChange={setPart} />
      {part === "lens" ? <Grid /> : <><Waiting of={dla} />{dla.value && <Terms dla={dla.value} />}</>}
    </section>
    <Side><p class="fine">{part === "lens" ? w.lensWarn : ""}</p><Snippet code={part === "lens" ? `${recorded("resid=True")}\nprint(mirada.look.lens(tape, top=5))` : dla.value?.snippet ?? ""} /><Exports name={part} /><Honest /></Side>
  </>;
}

const LAST = 40; // tokens in the grid, around the chosen one

function Grid() {
  const { view, w } = useShared();
  const tokens = mainTokens(), call = `runs/${view.run}/lens?top=5`;
  const asked = useAsked(call, () => tensors(call));
  if (!asked.value) return <Waiting of={asked} />;
  const id = asked.value.get("id"), p = asked.value.get("p").data;
  const names: Record<string, string> = JSON.parse(asked.value.meta.labels ?? "{}");
  const [L, T, K] = id.shape;
  const from = Math.max(0, Math.min(T - LAST, (view.q ?? T - 1) - LAST / 2)), to = Math.min(T, from + LAST);
  const colours = ramp();
  const shade = (x: number) => {
    const c = colours[Math.round(255 * Math.sqrt(x) * 0.75)], [r, g, b] = [c & 255, (c >> 8) & 255, (c >> 16) & 255];
    return { background: `rgb(${r} ${g} ${b})`, color: 0.3 * r + 0.59 * g + 0.11 * b > 138 ? "#14161f" : "#fff" };
  };
  const rows = Array.from({ length: L }, (_, i) => L - 1 - i);
  return <div class="scroller" tabIndex={0} role="region" aria-label={w.lensTitle}><table class="lens"><thead><tr><th>{w.layer}</th>
    {tokens.slice(from, to).map((t, j) => <th key={j}><button class={`plain${view.q === from + j ? " on" : ""}`} onClick={() => look({ q: from + j })}>{plain(t)}</button></th>)}</tr></thead>
    <tbody>{rows.map((l) => <tr key={l}><th scope="row">{l === 0 ? w.embed : fill(w.rowLayer, { l: l - 1 })}</th>
      {tokens.slice(from, to).map((_, j) => {
        const i = (l * T + from + j) * K, x = p[i];
        const title = Array.from({ length: K }, (_, k) => `${names[id.data[i + k]] ?? id.data[i + k]} ${percent(view.lang, p[i + k])}`).join("\n");
        return <td key={j} title={title} style={shade(x)}>{names[id.data[i]] ?? id.data[i]}</td>;
      })}</tr>)}</tbody></table></div>;
}

function Terms({ dla }: { dla: Dla }) {
  const { view, w } = useShared();
  const top = [...dla.terms].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 24);
  const rest = dla.terms.filter((t) => !top.includes(t));
  const most = Math.max(...top.map((t) => Math.abs(t.value)), 1e-9);
  const shown = rest.length ? [...top, { name: fill(w.others, { n: rest.length }), kind: "other" as const, layer: null, head: null, value: rest.reduce((s, t) => s + t.value, 0) }] : top;
  return <><h1>{fill(w.dlaTitle, { s: dla.token.s.replace(/^·+/, "") })}</h1>
    <p class="fine">{fill(w.dlaSum, { a: number(view.lang, dla.sum, 4), b: number(view.lang, dla.logit, 4) })} {dla.note} {fill(w.measured, { s: plain(mainTokens()[dla.pos]) })}</p>
    <table class="terms"><tbody>{shown.map((t) => <tr key={t.name}><th scope="row">{t.kind === "head"
      ? <button class="plain" onClick={() => look({ screen: "heads", layer: t.layer!, heads: [t.head!] }, true)}><span class="dot" style={{ background: headColour(t.head!) }} />{w.layer} {t.layer}, {fill(w.headN, { h: t.head! }).toLowerCase()}</button>
      : t.layer === null ? (t.kind === "embed" ? w.embed : t.name) : `${t.kind === "mlp" ? "MLP" : t.name} · ${w.layer} ${t.layer}`}</th>
      <td class="wide"><span class="swing"><span style={{ width: `${50 * Math.min(1, Math.abs(t.value) / most)}%`, [t.value < 0 ? "right" : "left"]: "50%", background: signed(t.value < 0 ? -1 : 1) }} /></span></td>
      <td class="num">{number(view.lang, t.value, 4)}</td></tr>)}</tbody></table></>;
}
