// The guided tour: fourteen cards over the live page, on the guides' sentences.
import { useEffect } from "preact/hooks";
import { EXAMPLES } from "../examples";
import { chosen, known, look, start, useShared, view, type View } from "../state";
import { fill, type Lang, type Words } from "../words";

interface Step { title: keyof Words; body: keyof Words; view: Partial<View>; text?: (lang: Lang) => string }
const STEPS: Step[] = [
  { title: "t1", body: "t1b", view: { screen: "heads", mode: "lines", heads: null }, text: (lang) => EXAMPLES[lang][0] },
  { title: "t2", body: "t2b", view: { screen: "input" } },
  { title: "t3", body: "t3b", view: { screen: "pass" } },
  { title: "t4", body: "t4b", view: { screen: "heads", mode: "lines", heads: [1] } },
  { title: "t5", body: "t5b", view: { screen: "heads", mode: "map", heads: [1] } },
  { title: "t6", body: "t6b", view: { screen: "neurons", heads: [1] } },
  { title: "t7", body: "t7b", view: { screen: "model", mode: "lines" } },
  { title: "t8", body: "t8b", view: { screen: "heads", mode: "map", heads: [0] }, text: () => "Pizza eats Diego" },
  { title: "t9", body: "t9b", view: { screen: "heads", mode: "lines", heads: null }, text: (lang) => EXAMPLES[lang][1] },
  { title: "t10", body: "t10b", view: { screen: "flow" } },
  { title: "t11", body: "t11b", view: { screen: "next" } },
  { title: "t12", body: "t12b", view: { screen: "roles" } },
  { title: "t13", body: "t13b", view: { screen: "lab" } },
  { title: "t14", body: "t14b", view: { screen: "heads", heads: null, mode: "lines" } },
];

/** Goes to a card: shows its screen, and runs its sentence where another one is in sight. */
export async function visit(at: number): Promise<void> {
  const step = STEPS[at];
  const text = step.text?.(view.lang);
  look({ tour: at, part: "", ...step.view }, true);
  if (text && known.run?.inputs.text !== text && chosen()?.live) await start({ text });
}

export function Tour() {
  const { view, known, w } = useShared();
  const at = view.tour;
  useEffect(() => { if (at !== null) document.getElementById("tour")?.focus(); }, [at]);
  if (at === null || !STEPS[at]) return null;
  const step = STEPS[at];
  return <section class="tour" id="tour" tabIndex={-1} role="dialog" aria-label={w[step.title]}>
    <small>{fill(w.card, { a: at + 1, b: STEPS.length })}</small><h2>{w[step.title]}</h2><p>{w[step.body]}</p>
    <div class="bar"><button disabled={at === 0 || known.busy} onClick={() => visit(at - 1)}>{w.back}</button>
      {at + 1 < STEPS.length && <button class="main" disabled={known.busy} onClick={() => visit(at + 1)}>{w.forward}</button>}
      <button class={at + 1 < STEPS.length ? "push small" : "main"} onClick={() => look({ tour: null })}>{w.endTour}</button></div>
  </section>;
}
