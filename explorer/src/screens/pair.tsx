// The other text of a patch: typed or chosen, run beside the one in sight, and laid against it token by token.
import { useState } from "preact/hooks";
import { aligned, differ } from "../align";
import { Refusal, tensors } from "../api";
import { Oops, Piece, said, spoken, useAsked } from "../parts/common";
import type { Run } from "../schema";
import { beside, useShared } from "../state";
import { count, fill } from "../words";

const SHOWN = 160; // tokens laid out
const others: Record<string, Run> = {}; // of each run, the one it was last held against

/** The run beside the one in sight, and how to choose it. */
export function useOther(run: Run): [Run | null, (other: Run | null) => void] {
  const [, again] = useState(0);
  return [others[run.run] ?? null, (other) => {
    if (other) others[run.run] = other;
    else delete others[run.run];
    again((n) => n + 1);
  }];
}

/** Whether each token of one run has its place in the other. */
export const fits = (a: Run, b: Run): boolean => Object.keys(a.tokens).every((s) => a.tokens[s].length === b.tokens[s]?.length);

export function Pair({ run, other, onOther }: { run: Run; other: Run | null; onOther: (other: Run | null) => void }) {
  const { known, w } = useShared();
  const [text, setText] = useState(other ? said(other) : said(run));
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState<Refusal | null>(null);
  const bring = async (asked: Parameters<typeof beside>[0]) => {
    setBusy(true);
    setFault(null);
    try {
      const found = await beside(asked);
      onOther(found);
      setText(said(found));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      setFault(error);
    } finally {
      setBusy(false);
    }
  };
  const rest = known.runs.filter((r) => r.model === run.model.id && r.run !== run.run).slice(0, 30);
  const go = (e: Event) => { e.preventDefault(); void bring({ ...(run.inputs.target || run.inputs.chat ? run.inputs : {}), text }); };
  return <div class="pair"><form class="bar" onSubmit={go}><label class="grow">{w.otherText} <input value={text} onInput={(e) => setText(e.currentTarget.value)} /></label>
      <button disabled={busy || !text.trim()}>{busy ? w.running : w.runOther}</button>
      {rest.length > 0 && <label class="pick">{w.orEarlier} <select value={other?.run ?? ""} onChange={(e) => e.currentTarget.value && bring(e.currentTarget.value)}>
        <option value="">–</option>{rest.map((r) => <option key={r.run} value={r.run}>{spoken(r.text).slice(0, 60)}</option>)}</select></label>}</form>
    {fault && <Oops fault={fault} />}
    {other && Object.keys(run.tokens).map((stack) => <Diff key={stack} ours={run.tokens[stack]} theirs={other.tokens[stack] ?? []} />)}</div>;
}

function Diff({ ours, theirs }: { ours: Run["tokens"][string]; theirs: Run["tokens"][string] }) {
  const { view, w } = useShared();
  const steps = aligned(ours, theirs), apart = steps.filter(differ).length, fit = ours.length === theirs.length;
  const n = { a: count(view.lang, ours.length), b: count(view.lang, theirs.length), n: count(view.lang, apart) };
  const row = (side: "a" | "b", title: string) => <tr><th scope="row">{title}</th>{steps.slice(0, SHOWN).map((s, i) =>
    <td key={i} class={differ(s) ? "apart" : ""}>{s[side] ? <Piece s={s[side]!.s} /> : <span class="quiet">∅</span>}</td>)}</tr>;
  return <div class="diff"><p class={fit ? "fine" : "bad"} role={fit ? undefined : "alert"}>{fill(fit ? apart ? w.fitting : w.sameText : w.misaligned, n)}</p>
    <div class="scroller across" tabIndex={0} role="region" aria-label={w.otherText}><table class="tokenrows"><tbody>{row("a", w.thisText)}{row("b", w.otherText)}</tbody></table></div></div>;
}

/** The likeliest answers of a run at a token, with their scores. */
export function useAnswers(run: Run | null, pos: number): { ids: number[]; score: (id: number) => number } {
  const call = run && `runs/${run.run}/logits/${pos}?enc=f32`;
  const { value } = useAsked(call, () => tensors(call!));
  const data = value?.get("logits").data;
  if (!data) return { ids: [], score: () => NaN };
  const ids: number[] = [];
  for (let i = 0; i < data.length; i++) {
    if (ids.length === 8 && data[i] <= data[ids[7]]) continue;
    const at = ids.findIndex((id) => data[id] < data[i]);
    ids.splice(at < 0 ? ids.length : at, 0, i);
    ids.length = Math.min(8, ids.length);
  }
  return { ids, score: (id) => data[id] };
}
