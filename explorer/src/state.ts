// What is looked at (it lives in the URL's hash) and what is known (the model, the runs).
import { useEffect, useReducer } from "preact/hooks";
import { forget, json, post, Refusal } from "./api";
import type { Card, Intervention, Model, Models, Roles, Run, RunRequest, Runs, Stack, Sweep, Token } from "./schema";
import { first } from "./examples";
import { words, type Lang, type Words } from "./words";

export interface View {
  screen: string; part: string; // part: what a screen of several shows; "" is its first
  lang: Lang; theme: "auto" | "light" | "dark";
  model: string; run: string; stack: string; layer: number;
  heads: number[] | null; // null: all
  q: number | null; k: number | null; // the locked query and key
  mode: "lines" | "map"; value: "weight" | "norm" | "score";
  sinks: boolean; // draw attention to special tokens and the first one too
  least: number; // weights below are not drawn
  pair: "all" | "ab" | "ba"; tour: number | null;
}

export interface Known {
  models: Models | null; card: Card | null; runs: Runs["runs"]; run: Run | null;
  busy: boolean; fault: Refusal | null; parents: Record<string, string>;
  roles: Record<string, Roles>; // of a model
  sweeps: Record<string, Sweep>; // of a run and stack: each head switched off
  plan: Intervention[]; // changes to be tried together
}

const START: View = {
  screen: "heads", part: "", lang: "en", theme: "auto", model: "", run: "", stack: "", layer: -1, heads: null, q: null, k: null,
  mode: "lines", value: "weight", sinks: false, least: 0.02, pair: "all", tour: null,
};
export let view: View = { ...START };
export const known: Known = { models: null, card: null, runs: [], run: null, busy: false, fault: null, parents: {}, roles: {}, sweeps: {}, plan: [] };
export let hover: { q: number | null; k: number | null } = { q: null, k: null };

const listeners = new Set<() => void>();
const hoverListeners = new Set<() => void>();
const tell = () => listeners.forEach((f) => f());

/** Draws a component again when what is looked at or known changes. */
export function useShared(): { view: View; known: Known; w: Words } {
  const [, again] = useReducer((n: number) => n + 1, 0);
  useEffect(() => { listeners.add(again as () => void); return () => { listeners.delete(again as () => void); }; }, []);
  return { view, known, w: words[view.lang] };
}

/** Draws again at each move of the pointer too: only for what is small. */
export function useHover(): typeof hover {
  const [, again] = useReducer((n: number) => n + 1, 0);
  useEffect(() => { hoverListeners.add(again as () => void); return () => { hoverListeners.delete(again as () => void); }; }, []);
  return hover;
}

export function point(q: number | null, k: number | null = null): void {
  if (hover.q === q && hover.k === k) return;
  hover = { q, k };
  hoverListeners.forEach((f) => f());
}

export function look(patch: Partial<View>, step = false): void {
  view = { ...view, ...patch };
  write(step);
  tell();
}

/** Puts what is looked at into the address; before there is a run it stays as it came. */
function write(step = false): void {
  const hash = known.run ? written(view, known.run) : location.hash;
  if (hash !== location.hash) history[step ? "pushState" : "replaceState"](null, "", hash);
}

/** Another screen, which shows its first part. */
export const turn = (screen: string, patch: Partial<View> = {}): void => look({ screen, part: "", ...patch }, true);

export function learn(patch: Partial<Known>): void {
  Object.assign(known, patch);
  tell();
}

function written(v: View, run: Run): string {
  const parts = new URLSearchParams();
  for (const [key, value] of Object.entries(v)) {
    if (value !== null && value !== START[key as keyof View]) parts.set(key, String(value));
  }
  if (v.q === null) parts.set("lock", "off"); // left out, a first word is locked
  const text = run.inputs.text;
  if (typeof text === "string" && text.length <= 500) parts.set("text", text);
  return "#" + parts.toString();
}

function readHash(): { patch: Partial<View>; text: string | null } {
  const parts = new URLSearchParams(location.hash.slice(1));
  const whole = (key: string) => /^\d{1,6}$/.test(parts.get(key) ?? "") ? Number(parts.get(key)) : null;
  const among = <T extends string>(key: string, all: readonly T[], other: T): T =>
    all.includes(parts.get(key) as T) ? parts.get(key) as T : other;
  const heads = parts.get("heads");
  const patch: Partial<View> = {
    screen: parts.get("screen") ?? START.screen, part: parts.get("part") ?? "",
    theme: among("theme", ["auto", "light", "dark"] as const, "auto"),
    model: parts.get("model") ?? "", run: parts.get("run") ?? "", stack: parts.get("stack") ?? "", layer: whole("layer") ?? -1,
    heads: heads === null ? null : heads.split(",").filter((x) => /^\d+$/.test(x)).map(Number),
    k: whole("k"),
    mode: among("mode", ["lines", "map"] as const, "lines"),
    value: among("value", ["weight", "norm", "score"] as const, "weight"),
    sinks: parts.get("sinks") === "true", least: Number(parts.get("least") ?? START.least) || 0,
    pair: among("pair", ["all", "ab", "ba"] as const, "all"), tour: whole("tour"),
  };
  if (parts.get("lock") === "off") patch.q = null;
  else if (whole("q") !== null) patch.q = whole("q");
  if (parts.has("lang")) patch.lang = among("lang", ["en", "es"] as const, "en");
  return { patch, text: parts.get("text") };
}

// What the model is, and the current run

export const stackOf = (id: string): Stack | undefined => known.run?.model.stacks.find((s) => s.id === id);
export const current = (): Stack | undefined => stackOf(view.stack);
export const queries = (): Token[] => known.run?.tokens[current()?.queries ?? ""] ?? [];
export const keys = (): Token[] => known.run?.tokens[current()?.keys ?? ""] ?? [];
export const headCount = (): number => current()?.layers[view.layer]?.heads ?? 0;
export const mainTokens = (): Token[] => known.run?.tokens.decoder ?? known.run?.tokens.encoder ?? [];
export const shownHeads = (): number[] => {
  const all = Array.from({ length: headCount() }, (_, h) => h);
  return view.heads ? all.filter((h) => view.heads!.includes(h)) : all;
};
/** Tokens to which heads look when they have nothing to say: specials, and the first of a causal stack. */
export const isSink = (token: Token, at: number): boolean => token.special || (at === 0 && !!current()?.causal);

/** The token to begin with: a mask to be filled, else the last one that is a word. */
function telling(run: Run, tokens: Token[]): number | null {
  const mask = tokens.findIndex((t) => t.id === run.model.special.mask);
  return mask >= 0 ? mask : tokens.length ? Math.max(0, tokens.findLastIndex((t) => !t.special)) : null;
}

/** The model that runs what is asked: the chosen one, else the first. */
export const chosen = (): Model | undefined => known.models?.models.find((m) => m.id === view.model) ?? known.models?.models[0];

/** Looks into another model, from the first example. */
export const choose = (id: string, inputs: RunRequest["inputs"]): Promise<Run | null> => {
  learn({ run: null, card: null, plan: [] });
  look({ model: id, run: "", stack: "", layer: -1, heads: null });
  return start(inputs);
};

/** Looks at a run as `patch` says; what it does not say, or the run does not have, is chosen. */
function adopt(run: Run, patch: Partial<View> = {}): void {
  if (known.run && known.run.model.id !== run.model.id) known.plan = []; // its layers and heads are another model's
  known.run = run;
  view = { ...view, ...patch };
  if (known.models?.models.some((m) => m.id === run.model.id)) view = { ...view, model: run.model.id };
  const stack = run.model.stacks.find((s) => s.id === view.stack) ?? run.model.stacks.find((s) => s.id === "decoder")
    ?? run.model.stacks[0];
  const count = stack?.layers.length ?? 0;
  const layer = view.layer >= 0 && view.layer < count ? view.layer : Math.floor(count / 3);
  const n = run.tokens[stack?.queries ?? "decoder"]?.length ?? 0;
  const q = patch.q === null ? null : view.q !== null && view.q < n ? view.q : telling(run, run.tokens[stack?.queries ?? "decoder"] ?? []);
  look({ run: run.run, stack: stack?.id ?? "", layer, q, k: q === null ? null : view.k });
}

async function busily<T>(work: () => Promise<T>): Promise<T | null> {
  learn({ busy: true, fault: null });
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    learn({ fault: error });
    return null;
  } finally {
    learn({ busy: false });
  }
}

async function readCard(): Promise<void> {
  const id = chosen()!.id;
  if (known.card?.model.id !== id) learn({ card: await json<Card>(`models/${encodeURIComponent(id)}`) });
}

const list = async () => learn({ runs: (await json<Runs>("runs")).runs });

/** Runs the model on inputs and looks at that run. */
export const start = (inputs: RunRequest["inputs"], parent?: string, patch?: Partial<View>): Promise<Run | null> => busily(async () => {
  const run = await post<Run>("runs", { model: chosen()!.id, inputs, record: { qk: true } });
  if (parent) known.parents[run.run] = parent;
  point(null);
  view = { ...view, q: null, k: null };
  adopt(run, patch);
  await Promise.all([list(), readCard()]);
  return run;
});

/** Looks at a run that was made before; one that left memory is computed again. */
export const open = (id: string, patch?: Partial<View>): Promise<Run | null> => busily(async () => {
  const run = await fetched(id);
  adopt(run, patch);
  await Promise.all([list(), readCard()]);
  return run;
});

async function fetched(id: string): Promise<Run> {
  const run = await json<Run>(`runs/${id}`);
  if (run.state !== "evicted") return run;
  forget(id);
  return post<Run>(`runs/${id}/recompute`, {});
}

/** A run of the same model beside the one in sight, which stays: by its id, or of a new text. */
export async function beside(asked: string | RunRequest["inputs"]): Promise<Run> {
  const run = typeof asked === "string" ? await fetched(asked) : await post<Run>("runs", { model: known.run!.model.id, inputs: asked, record: { qk: true } });
  await list();
  return run;
}

export const dismiss = (): void => learn({ fault: null });
export const blame = (error: unknown): void => { if (error instanceof Refusal) learn({ fault: error }); else throw error; };

/** Reads the hash, asks for the model, and shows the hash's run, or its text, or the first example. */
export async function boot(): Promise<void> {
  const { patch, text } = readHash();
  await busily(async () => {
    const models = await json<Models>("models");
    const lang = patch.lang ?? models.lang ?? (navigator.language.startsWith("es") ? "es" : "en");
    look({ ...patch, lang });
    learn({ models });
    await list();
  });
  if (known.models) await restore(patch, text);
}

/** Looks at what an address says, over an open page as in a fresh one. */
async function restore(patch: Partial<View>, text: string | null): Promise<void> {
  const there = (id?: string) => known.runs.some((r) => r.run === id);
  if (patch.run && !there(patch.run)) await list(); // another tab may have made it
  if (known.run && (patch.run || known.run.run) === known.run.run && (patch.run || text === null)) adopt(known.run, { ...patch, run: known.run.run });
  else if (there(patch.run)) await open(patch.run!, patch);
  else if (chosen()!.live) await start(text === null ? first(view.lang) : { text }, undefined, patch);
  else if (known.runs.length) await open(known.runs[0].run, patch);
}

window.addEventListener("popstate", () => {
  const { patch, text } = readHash();
  view = { ...view, model: patch.model || view.model };
  void restore(patch, text);
});
