// Next token: the chances of the full vocabulary, computed on the page from the model's scores.
import { useMemo, useState } from "preact/hooks";
import { keptJson, tensors } from "../api";
import { headColour } from "../draw/colours";
import type { Run, Token, Vocab } from "../schema";
import { base, Exports, Honest, Piece, plain, Side, Slider, spoken, Snippet, useAsked, Waiting } from "../parts/common";
import { known, mainTokens, open, start, turn, useShared } from "../state";
import { Entropy } from "../parts/entropy";
import { chances, draw, NEUTRAL, type Chances, type Choices } from "../sampling";
import { count, fill, number, percent } from "../words";

let chosen: Choices = { ...NEUTRAL }; // stays while screens change

/** Names of tokens, asked in one call. */
export function useNames(ids: number[]): Record<string, string> {
  const list = [...new Set(ids)].sort((a, b) => a - b).join(",");
  const call = `models/${encodeURIComponent(known.run?.model.id ?? "")}/vocab?ids=${list}`;
  const { value } = useAsked(ids.length && known.run?.model.live ? call : null, () => keptJson<Vocab>(call), true);
  return value?.tokens ?? {};
}

export const position = (run: Run, tokens: Token[], q: number | null): number => {
  if (run.model.output === "mask" && q === null) {
    const mask = tokens.findIndex((t) => t.id === run.model.special.mask);
    return mask < 0 ? Math.min(1, tokens.length - 1) : mask;
  }
  return q ?? tokens.length - 1;
};

export function Next() {
  const { view, known, w } = useShared();
  const [options, setOptions] = useState(chosen);
  const [shown, show] = useState(20);
  const run = known.run!, tokens = mainTokens();
  const pos = position(run, tokens, view.q !== null && view.q < tokens.length ? view.q : null);
  const call = `runs/${view.run}/logits/${pos}?enc=f32`;
  const able = run.model.output !== "none" && view.run === run.run;
  const asked = useAsked(able ? call : null, () => tensors(call));
  const logits = asked.value?.get("logits").data;
  const before = useMemo(() => tokens.slice(0, pos + 1).map((t) => t.id), [run, pos]);
  const labels = run.model.output === "labels" ? run.model.labels : undefined;
  const found = useMemo(() => logits && chances(logits, options, before), [logits, options, before]);
  const top = found ? ranking(found, logits!, shown) : [];
  const names = useNames(labels ? [] : top);
  const change = (patch: Partial<Choices>) => setOptions(chosen = { ...options, ...patch });
  if (!able) return <><section class="work"><p class="quiet">{w.noneNext}</p></section><Side><Honest /></Side></>;

  const step = (id: number) => start(decoded(run, tokens, pos, id), run.run);
  const parent = known.parents[run.run];
  const at = plain(tokens[pos]);
  const title = labels ? w.classes : fill(run.model.output === "mask" ? w.candidatesMask : w.candidates, { s: at });
  const s = (label: string, key: keyof Choices, max: number, by: number, text: string, min = 0, title?: string) =>
    <Slider label={label} value={options[key]} min={min} max={max} step={by} text={text} title={title} onInput={(v) => change({ [key]: v })} />;
  return <>
    <section class="work" id="picture">
      <div class="bar sliders">
        {s(w.temperature, "temperature", 5, 0.05, number(view.lang, options.temperature, 2), 0, w.greedy)}
        {s(w.topk, "topK", 200, 1, options.topK ? count(view.lang, options.topK) : w.off)}
        {s(w.topp, "topP", 1, 0.01, options.topP === 1 ? w.off : number(view.lang, options.topP, 2), 0.01)}
        {s(w.minp, "minP", 0.5, 0.005, options.minP ? number(view.lang, options.minP, 3) : w.off)}
        {s(w.penalty, "penalty", 2, 0.05, options.penalty === 1 ? w.off : number(view.lang, options.penalty, 2), 1)}
        <button class="small" onClick={() => change(NEUTRAL)}>{w.reset}</button>
      </div>
      <h1>{title}</h1>
      <Waiting of={asked} />
      {found && <>
        <p class="fine">{fill(w.kept, { n: count(view.lang, found.kept), v: count(view.lang, found.p.length) })} · {fill(w.entropyBits, { x: number(view.lang, found.entropy, 2) })} · {fill(w.exactVocab, { v: count(view.lang, found.p.length) })}</p>
        {run.model.output === "next" && run.model.live && <div class="bar">
          <button class="main" disabled={known.busy} onClick={() => step(draw(found, Math.random()))}>{w.sample}</button>
          <button disabled={known.busy} onClick={() => step(found.order[0])}>{w.likeliest}</button>
          <button disabled={!parent || known.busy} onClick={() => open(parent)}>{w.undo}</button></div>}
        {!labels && <Entropy pos={pos} />}
        <table class="next"><thead><tr><th class="num">{w.id}</th><th>{w.token}</th><th class="num" colSpan={2}>{w.prob}</th><th class="num">{w.logit}</th><th class="num">{w.scaled}</th></tr></thead>
          <tbody>{top.map((id) => <tr key={id} class={found.p[id] ? "" : "out"}>
            <td class="num">{id}</td><th scope="row">{run.model.output === "next" && run.model.live
              ? <button class="plain" disabled={known.busy} onClick={() => step(id)}><Piece s={names[id] ?? "…"} /></button> : <Piece s={labels?.[id] ?? names[id] ?? String(id)} />}</th>
            <td class="wide"><span class="meter" style={{ width: `${100 * found.p[id] / (found.p[found.order[0]] || 1)}%`, "--head": headColour(0) }} /></td>
            <td class="num" data-p={found.p[id]}>{percent(view.lang, found.p[id])}</td><td class="num">{number(view.lang, logits![id], 2)}</td><td class="num">{number(view.lang, found.scaled[id], 2)}</td></tr>)}</tbody></table>
        {shown < 200 && shown < found.p.length && <button class="small" onClick={() => show(shown + 40)}>{w.more}</button>}
      </>}
    </section>
    <Side>{run.model.output === "next" && <Branches />}<Snippet code={snippet(pos, options)} />
      <Exports name="next" rows={() => [["id", "token", "p", "logit"], ...top.map((id) => [id, names[id] ?? "", found!.p[id], logits![id]])]} /><Honest /></Side>
  </>;
}

/** The tokens to list: those kept, likeliest first, then what was left out, by score. */
function ranking(found: Chances, logits: ArrayLike<number>, n: number): number[] {
  const top = [...found.order.subarray(0, n)];
  if (top.length === n || found.kept > n) return top;
  const had = new Set(top);
  const rest = [...chances(logits, NEUTRAL).order.subarray(0, 2 * n)].filter((id) => !had.has(id));
  return [...top, ...rest].slice(0, n);
}

/** The inputs of the next step: a token behind what the decoder (or the only stack) has read. */
function decoded(run: Run, tokens: Token[], pos: number, id: number) {
  const ids = [...tokens.slice(0, pos + 1).map((t) => t.id), id];
  return run.tokens.encoder && run.tokens.decoder ? { ids: run.tokens.encoder.map((t) => t.id), target_ids: ids } : { ids };
}

function snippet(pos: number, o: Choices): string {
  const lines = ["from mirada.generate.options import Options", "from mirada.generate.sampling import process", base(),
    `scores, ids = out.logits[:, ${pos}].float(), batch["${known.run!.tokens.decoder && known.run!.tokens.encoder ? "decoder_input_ids" : "input_ids"}"][:, :${pos + 1}]`];
  const asked = [o.temperature ? `do_sample=True, temperature=${o.temperature}` : "do_sample=False", ...(o.topK ? [`top_k=${o.topK}`] : []), ...(o.topP < 1 ? [`top_p=${o.topP}`] : []), ...(o.minP ? [`min_p=${o.minP}`] : []), ...(o.penalty === 1 ? [] : [`repetition_penalty=${o.penalty}`])];
  lines.push(`scores = process(scores, ids, Options(${asked.join(", ")}), 0)`);
  lines.push(o.temperature ? "print(scores.softmax(-1).topk(10))" : "print(scores.argmax(-1))");
  return lines.join("\n");
}

/** Every step that was taken, as a tree; the run in sight is marked. */
function Branches() {
  const { view, known, w } = useShared();
  let root = view.run;
  while (known.parents[root]) root = known.parents[root];
  const children = (id: string) => Object.keys(known.parents).filter((c) => known.parents[c] === id);
  const text = (id: string) => spoken(known.runs.find((r) => r.run === id)?.text ?? id);
  const node = (id: string, before: string) => {
    const now = text(id), mine = now.startsWith(before) && before ? "…" + now.slice(Math.max(0, before.length - 12)) : now;
    return <li key={id}><button class={`plain${id === view.run ? " on" : ""}`} aria-current={id === view.run} title={now} onClick={() => open(id)}>{mine}</button>
      {children(id).length > 0 && <ul>{children(id).map((c) => node(c, now))}</ul>}</li>;
  };
  if (!children(root).length) return <section><h2>{w.branches}</h2><p class="quiet">{w.branchesHint}</p></section>;
  return <section><h2>{w.branches}</h2><ul class="tree">{node(root, "")}</ul><button class="small" onClick={() => turn("heads")}>{w.heads} →</button></section>;
}
