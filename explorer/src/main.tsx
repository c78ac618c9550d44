// The shell: model and runs at the left, the text and its tokens on top, a screen in the middle.
import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { first } from "./examples";
import { Oops, said, spoken } from "./parts/common";
import { Tour, visit } from "./parts/tour";
import { Strip } from "./parts/strip";
import { Cross } from "./screens/cross";
import { Flow } from "./screens/flow";
import { Heads } from "./screens/heads";
import { Input } from "./screens/input";
import { Lab } from "./screens/lab";
import { Lens } from "./screens/lens";
import { Model } from "./screens/model";
import { Neurons } from "./screens/neurons";
import { Next } from "./screens/next";
import { Pass } from "./screens/pass";
import { Roles } from "./screens/roles";
import { boot, choose, chosen, current, dismiss, known, look, open, point, start, turn, useShared, view } from "./state";
import { count, fill, type Lang, type Words } from "./words";

interface Screen { id: string; title: keyof Words; what: keyof Words; draw: () => unknown; able: () => boolean }
const can = (cap: string) => () => !known.run || known.run.caps.includes(cap as never);
const SCREENS: Screen[] = [
  { id: "heads", title: "heads", what: "headsWhat", draw: Heads, able: can("attn") },
  { id: "model", title: "model", what: "modelWhat", draw: Model, able: can("attn") },
  { id: "next", title: "next", what: "nextWhat", draw: Next, able: () => !known.run || known.run.model.output !== "none" },
  { id: "lab", title: "lab", what: "labWhat", draw: Lab, able: can("causal") },
  { id: "flow", title: "flow", what: "flowWhat", draw: Flow, able: can("flow") },
  { id: "lens", title: "lens", what: "lensWhat", draw: Lens, able: () => can("lens")() || can("dla")() },
  { id: "neurons", title: "neurons", what: "neuronsWhat", draw: Neurons, able: () => can("qk")() || can("mlp")() },
  { id: "roles", title: "roles", what: "rolesWhat", draw: Roles, able: () => can("roles")() && !!known.run?.model.live },
  { id: "pass", title: "pass", what: "passWhat", draw: Pass, able: () => !known.run || known.run.graph.nodes.length > 0 },
  { id: "cross", title: "cross", what: "crossWhat", draw: Cross, able: () => !!known.run?.model.stacks.some((x) => x.id === "cross") && can("attn")() },
  { id: "input", title: "input", what: "inputWhat", draw: Input, able: () => true },
];

function applyTheme(): void {
  const dark = view.theme === "dark" || (view.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.lang = view.lang;
}

function App() {
  const { view, known, w } = useShared();
  applyTheme();
  const screen = SCREENS.find((s) => s.id === view.screen && s.able()) ?? SCREENS.find((s) => s.able())!;
  const [help, setHelp] = useState(false);
  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const again = () => look({ ...view });
    dark.addEventListener("change", again);
    return () => dark.removeEventListener("change", again);
  }, []);
  useEffect(() => {
    document.title = `${w[screen.title]} · ${known.run?.model.name ?? "mirada"}`;
  }, [screen.id, view.lang, known.run]);
  useEffect(() => {
    const keys = (e: KeyboardEvent) => {
      if ((e.target as HTMLElement).matches("input:not([type=range],[type=radio],[type=checkbox]), textarea, select")) return;
      if (e.ctrlKey || e.metaKey || e.altKey) return;
      const last = (current()?.layers.length ?? 1) - 1, shown = SCREENS.filter((s) => s.able());
      if (e.key === "Escape") { setHelp(false); point(null); look({ q: null, k: null }); }
      else if (e.key === "?") setHelp(true);
      else if (e.key === "[") look({ layer: Math.max(0, view.layer - 1) });
      else if (e.key === "]") look({ layer: Math.min(last, view.layer + 1) });
      else if (e.key === "a") look({ heads: null });
      else if (/^[1-9]$/.test(e.key) && shown[Number(e.key) - 1]) turn(shown[Number(e.key) - 1].id);
    };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, [view]);
  const Draw = screen.draw as () => preact.JSX.Element;
  return <div class="app">
    <a class="skip" href="#picture" onClick={(e) => { e.preventDefault(); document.querySelector<HTMLElement>("main")?.focus(); }}>{w.skip}</a>
    <Top onHelp={() => setHelp(true)} />
    <nav class="menu" aria-label={w.screens}>
      {SCREENS.filter((s) => s.able()).map((s, i) => <button key={s.id} aria-current={s === screen ? "page" : undefined} title={`${i + 1}`} onClick={() => turn(s.id)}>
        <strong>{w[s.title]}</strong><small>{w[s.what]}</small></button>)}
      {chosen()?.live && <button class="learn" onClick={() => visit(0)}><strong>{w.learn}</strong><small>{w.learnWhat}</small></button>}
      <RunList />
    </nav>
    <main tabIndex={-1} aria-label={w[screen.title]} aria-busy={known.busy}>
      {known.fault && <div class="fault"><Oops fault={known.fault} /><button class="small" onClick={dismiss}>{w.close}</button></div>}
      {known.run ? <Draw key={screen.id === "input" ? view.run : screen.id} /> : screen.id === "input" && known.models ? <Input />
        : <section class="work">{!known.fault && <p class="quiet">{w.loading}</p>}</section>}
    </main>
    <Tour />
    {help && <Help onClose={() => setHelp(false)} />}
  </div>;
}

function Top({ onHelp }: { onHelp: () => void }) {
  const { view, known, w } = useShared();
  const model = chosen(), models = known.models?.models ?? [];
  const now = known.run ? said(known.run) : "";
  const [text, setText] = useState(now);
  useEffect(() => setText(now), [now, view.run]);
  const go = (e: Event) => { e.preventDefault(); if (text.trim()) void start({ text }); };
  return <header class="top">
    <div class="brand"><span class="logo" aria-hidden="true" /><div>{models.length > 1 ? <select aria-label={w.model_} value={model!.id} onChange={(e) => choose(e.currentTarget.value, first(view.lang))}>
        {models.map((m) => <option key={m.id} value={m.id}>{m.name}</option>)}</select> : <strong>{model?.name ?? "mirada"}</strong>}
      {model && <small>{count(view.lang, model.layers)} {w.layers} · {count(view.lang, model.heads)} {w.headsPerLayer} · {w.width} {count(view.lang, model.d)}{known.card && ` · ${short(view.lang, known.card.parameters)} ${w.parameters}`}</small>}</div></div>
    {model?.live && <form class="ask" onSubmit={go}><input aria-label={w.prompt} placeholder={w.promptHint} value={text} onInput={(e) => setText(e.currentTarget.value)} />
      <button class="main" disabled={known.busy || !text.trim()}>{known.busy ? w.running : w.run}</button></form>}
    <div class="prefs">
      <select aria-label={w.language} value={view.lang} onChange={(e) => look({ lang: e.currentTarget.value as Lang })}><option value="en">English</option><option value="es">Español</option></select>
      <select aria-label={w.theme} value={view.theme} onChange={(e) => look({ theme: e.currentTarget.value as typeof view.theme })}>
        <option value="auto">{w.theme}: {w.auto}</option><option value="light">{w.theme}: {w.light}</option><option value="dark">{w.theme}: {w.dark}</option></select>
      <button class="small" aria-label={w.shortcuts} onClick={onHelp}>?</button></div>
    {known.run && <Strip />}
  </header>;
}

const short = (lang: Lang, n: number): string => new Intl.NumberFormat(lang, { notation: "compact", maximumFractionDigits: 1 }).format(n);

function RunList() {
  const { view, known, w } = useShared();
  return <section class="runs"><h2>{w.runsList}</h2>
    {known.runs.length === 0 && <p class="quiet">{w.noRuns}</p>}
    {known.runs.slice(0, 12).map((r) => <button key={r.run} class={r.state} aria-current={r.run === view.run} title={spoken(r.text)} onClick={() => open(r.run)}>
      <span>{spoken(r.text)}</span><small>{r.state === "evicted" ? w.evicted : fill(w.tokensN, { n: count(view.lang, r.tokens) })}</small></button>)}
  </section>;
}

function Help({ onClose }: { onClose: () => void }) {
  const { w } = useShared();
  const ref = useRef<HTMLDialogElement>(null);
  useEffect(() => { ref.current!.showModal(); }, []);
  const rows: [string, string][] = [["1–9", w.sc_screens], ["[ ]", w.sc_layer], ["↑ ↓ ← →", w.sc_arrows], ["Enter", w.sc_enter], ["a", w.sc_all], ["Esc", w.sc_esc], ["?", w.sc_help]];
  return <dialog ref={ref} onClose={onClose} aria-label={w.shortcuts}><h2>{w.shortcuts}</h2>
    <dl>{rows.map(([k, v]) => <div key={k}><dt><kbd>{k}</kbd></dt><dd>{v}</dd></div>)}</dl><button class="main" onClick={onClose}>{w.close}</button></dialog>;
}

applyTheme();
render(<App />, document.getElementById("app")!);
void boot();
