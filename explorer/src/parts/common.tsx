// Small pieces that every screen uses.
import type { CanvasHTMLAttributes, ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Refusal } from "../api";
import type { Run, Token } from "../schema";
import { paintedBy, png, svg } from "./picture";
import { known, look, turn, useShared } from "../state";
import { fill, type Words } from "../words";

export interface Asked<T> { value: T | null; fault: Refusal | null; loading: boolean }

const NOTHING = { value: null, fault: null, loading: true };

/** What `load` brings for a key; with `keep` the former value stays until the next one is there. */
export function useAsked<T>(key: string | null, load: () => Promise<T>, keep = false): Asked<T> {
  const [state, set] = useState<Asked<T> & { key: string | null }>({ value: null, fault: null, loading: false, key: null });
  useEffect(() => {
    if (key === null) return;
    let stale = false;
    set((old) => ({ ...old, loading: true, fault: null }));
    load().then((value) => { if (!stale) set({ value, fault: null, loading: false, key }); },
      (error) => {
        if (!(error instanceof Refusal)) throw error;
        if (!stale) set({ value: null, fault: error, loading: false, key });
      });
    return () => { stale = true; };
  }, [key]);
  if (key === null) return { ...NOTHING, loading: false };
  return keep || state.key === key ? state : NOTHING;
}

/** The size in CSS pixels of an element. */
export function useSize<E extends HTMLElement>(): [(node: E | null) => void, { width: number; height: number }] {
  const [node, setNode] = useState<E | null>(null);
  const [size, set] = useState({ width: 0, height: 0 });
  useLayoutEffect(() => {
    if (!node) return;
    const measure = () => set({ width: node.clientWidth, height: node.clientHeight });
    const watch = new ResizeObserver(measure);
    watch.observe(node);
    measure();
    return () => watch.disconnect();
  }, [node]);
  return [setNode, size];
}

export interface CanvasProps extends Omit<CanvasHTMLAttributes<HTMLCanvasElement>, "width" | "height" | "label"> {
  width: number; height: number; label?: string; draw: (ctx: CanvasRenderingContext2D) => void; deps: unknown[];
}

/** A canvas in CSS pixels, painted again when deps change. Without a label it is decoration. */
export function Canvas({ width, height, label, draw, deps, ...rest }: CanvasProps) {
  const ref = useRef<HTMLCanvasElement>(null);
  const { view } = useShared();
  useLayoutEffect(() => {
    const canvas = ref.current!;
    const scale = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const ctx = canvas.getContext("2d")!;
    ctx.setTransform(scale, 0, 0, scale, 0, 0);
    ctx.clearRect(0, 0, width, height);
    draw(ctx);
    paintedBy(canvas, draw);
  }, [width, height, view.theme, document.documentElement.dataset.theme, ...deps]);
  return <canvas ref={ref} {...rest} role={label ? "img" : undefined} aria-label={label} aria-hidden={label ? undefined : true} />;
}

/** The pieces of a token: a space is a small dot, which prose leaves out. */
export const plain = (token: Token | undefined): string => token ? token.s.replace(/^·+/, "") || token.s : "";
export const Piece = ({ s }: { s: string }) =>
  s.startsWith("·") && s.length > 1 ? <><span class="gap">·</span>{visible(s.slice(1))}</> : <>{visible(s)}</>;

/** What cannot be seen gets a sign: control characters, and pieces that are nothing else than blank. */
const visible = (s: string): string => {
  const signs = s.replace(/[\u0000-\u001f]/g, (c) => String.fromCodePoint(0x2400 + c.charCodeAt(0)));
  return signs.trim() ? signs : `U+${(s.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`;
};

/** Readable pieces in a row as one may write them: dots are spaces again. */
export const spoken = (s: string): string => s.replaceAll("·", " ").replaceAll("⏎", "\n");

export function Oops({ fault }: { fault: Refusal }) {
  const { w } = useShared();
  const text = fault.status === 0 ? w.gone : fault.status === 401 ? w.tokenLost : fault.message;
  return <div class="oops" role="alert">
    <strong>{fault.fault.type === "too_large" ? w.tooBig : w.failed}</strong> <span>{text}</span>
    {fault.fault.advice && <span class="advice">{w.advice}: {fault.fault.advice}</span>}
  </div>;
}

export function Waiting({ of }: { of: Asked<unknown> }) {
  const { w } = useShared();
  if (of.fault) return <Oops fault={of.fault} />;
  return of.value === null && of.loading ? <p class="quiet">{w.loading}</p> : null;
}

export function Choice<T extends string>({ label, value, options, onChange }:
  { label: string; value: T; options: [T, string, string?][]; onChange: (v: T) => void }) {
  return <fieldset class="choice"><legend>{label}</legend>
    {options.map(([v, text, title]) => <label key={v} title={title} class={v === value ? "on" : ""}>
      <input type="radio" name={label} checked={v === value} onChange={() => onChange(v)} />{text}</label>)}
  </fieldset>;
}

export function Slider({ label, value, min, max, step, text, onInput, title }:
  { label: string; value: number; min: number; max: number; step: number; text: string; onInput: (v: number) => void; title?: string }) {
  return <label class="slider" title={title}><span>{label}</span>
    <input type="range" min={min} max={max} step={step} value={value} aria-valuetext={text}
      onInput={(e) => onInput(Number(e.currentTarget.value))} /><output>{text}</output></label>;
}

export function Tick({ label, value, onChange, title }: { label: string; value: boolean; onChange: (v: boolean) => void; title?: string }) {
  return <label class="tick" title={title}><input type="checkbox" checked={value} onChange={(e) => onChange(e.currentTarget.checked)} />{label}</label>;
}

export function LayerSlider() {
  const { view, w } = useShared();
  const stack = known.run?.model.stacks.find((s) => s.id === view.stack);
  const last = (stack?.layers.length ?? 1) - 1;
  return <div class="layers"><button class="small" aria-label={`${w.layer} −`} disabled={view.layer <= 0} onClick={() => look({ layer: view.layer - 1 })}>−</button>
    <Slider label={w.layer} value={view.layer} min={0} max={last} step={1} text={`${view.layer} / ${last}`} onInput={(layer) => look({ layer })} />
    <button class="small" aria-label={`${w.layer} +`} disabled={view.layer >= last} onClick={() => look({ layer: view.layer + 1 })}>+</button></div>;
}

export function StackChoice() {
  const { view, known, w } = useShared();
  const stacks = known.run?.model.stacks ?? [];
  if (stacks.length < 2) return null;
  const name: Record<string, string> = { encoder: w.encoder, decoder: w.decoder, cross: w.crossStack };
  return <Choice label={w.stack} value={view.stack} options={stacks.map((s) => [s.id as string, name[s.id]])}
    onChange={(stack) => {
      const count = stacks.find((s) => s.id === stack)!.layers.length;
      look({ stack, layer: Math.min(view.layer, count - 1), q: null, k: null });
    }} />;
}

/** The Python that gives the same numbers, to copy. */
export function Snippet({ code }: { code: string }) {
  const { w } = useShared();
  const [done, set] = useState(false);
  const copy = async () => { await navigator.clipboard.writeText(code); set(true); setTimeout(() => set(false), 1500); };
  if (!code) return null;
  return <details class="snippet"><summary>{w.snippet}</summary><pre tabIndex={0}><code>{code}</code></pre>
    <button class="small" onClick={copy}>{done ? w.copied : w.copy}</button></details>;
}

export function Honest({ test }: { test?: boolean }) {
  const { view, known, w } = useShared();
  const n = known.run?.numerics;
  return <section class="honest">
    <p class="caveat"><strong>{w.notExplanation}</strong></p>
    <details><summary>{w.believe}</summary><p>{w.notExplanationWhy}</p>
      {n && <p class="numerics"><span>{w.kernel}: {n.kernel}</span> <span>{w.dtype}: {n.dtype}</span>
        {n.selfcheck !== null && <span title={w.selfcheckWhat} class={n.selfcheck > (n.dtype === "float32" ? 1e-3 : 2e-2) ? "bad" : "good"}>
          {w.selfcheck}: {n.selfcheck.toExponential(1)}</span>}</p>}
      {known.run?.hidden.notes.map((note) => <p key={note}>{note}</p>)}
    </details>
    {test && known.run?.caps.includes("causal") && <button onClick={() => turn("lab")}>{view.heads?.length === 1 ? w.testHead : w.lab} →</button>}
  </section>;
}

export function save(name: string, content: Blob | string): void {
  const blob = typeof content === "string" ? new Blob([content], { type: "text/csv" }) : content;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export const csv = (rows: (string | number)[][]): string =>
  rows.map((row) => row.map((x) => typeof x === "string" ? `"${x.replace(/"/g, '""')}"` : x).join(",")).join("\n") + "\n";

/** Saves the picture of the screen, as pixels or as lines, or its numbers. */
export function Exports({ name, rows }: { name: string; rows?: () => (string | number)[][] }) {
  const { view, known, w } = useShared();
  const [fault, set] = useState(false);
  const run = known.run!;
  const caption = () => [run.model.name, JSON.stringify(said(run)), `${w.layer.toLowerCase()} ${view.layer}`, run.numerics.dtype, "mirada"].join(" · ");
  const keep = async (kind: "png" | "svg") => {
    const root = document.getElementById("picture")!;
    const blob = kind === "svg" ? svg(root, caption()) : await png(root, caption());
    set(!blob); // a browser refuses pictures beyond some 16,000 pixels a side
    if (blob) save(`${name}.${kind}`, blob);
  };
  return <div class="exports"><span>{w.export}</span><button class="small" onClick={() => keep("png")}>PNG</button><button class="small" onClick={() => keep("svg")}>SVG</button>
    {rows && <button class="small" onClick={() => save(`${name}.csv`, csv(rows()))}>{w.csv}</button>}{fault && <span class="bad" role="alert">{w.tooBig}: SVG</span>}</div>;
}

/** A run's text: as it was written, or its tokens in a row. */
export const said = (run: Run): string => typeof run.inputs.text === "string" ? run.inputs.text
  : spoken((run.tokens.encoder ?? run.tokens.decoder ?? []).filter((t) => !t.special).map((t) => t.s).join(""));

/** What brings a run's tape in Python; every snippet begins with it. */
export const base = (): string => known.run?.snippet ?? "";

/** The same, of a tape that keeps more. */
export const recorded = (what: string): string => base().replace("m.record()", `m.record(${what})`);

export const tokenLabel = (w: Words, token: Token, i: number, n: number): string =>
  fill(w.tokenAt, { i: i + 1, n, s: token.s, id: token.id }) + (token.special ? `, ${w.tokenSpecial}` : "");

export function Side({ children }: { children: ComponentChildren }) {
  const { w } = useShared();
  return <aside class="side" aria-label={w.inspector}>{children}</aside>;
}
