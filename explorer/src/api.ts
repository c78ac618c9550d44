// Asks mirada's own server; keeps what was answered, at most 128 MB, oldest out first.
import type { Fault } from "./schema";
import { parse, type Tensors } from "./tensors";

const KEPT = 128 << 20;
const kept = new Map<string, { value: Promise<unknown>; bytes: number }>();
let total = 0;

export class Refusal extends Error {
  constructor(public status: number, public fault: Fault) { super(fault.message); }
}

async function answer(path: string, init?: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(`x/v1/${path}`, init);
  } catch (error) {
    if ((error as Error).name === "AbortError") throw error;
    throw new Refusal(0, { type: "failed", message: "gone" });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refusal(response.status, body?.error ?? { type: "failed", message: response.statusText });
}

function remember<T>(path: string, load: () => Promise<[T, number]>): Promise<T> {
  const had = kept.get(path);
  if (had) {
    kept.delete(path);
    kept.set(path, had); // youngest again
    return had.value as Promise<T>;
  }
  const entry = { bytes: 0, value: undefined as unknown as Promise<unknown> };
  entry.value = load().then(([value, bytes]) => {
    entry.bytes = bytes;
    total += bytes;
    for (const [name, old] of kept) {
      if (total <= KEPT) break;
      kept.delete(name);
      total -= old.bytes;
    }
    return value;
  }, (error) => { kept.delete(path); throw error; });
  kept.set(path, entry);
  return entry.value as Promise<T>;
}

export const json = async <T>(path: string, init?: RequestInit): Promise<T> => (await answer(path, init)).json();

export const post = <T>(path: string, body: unknown): Promise<T> =>
  json(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** An answer that never changes (a run's numbers), asked once. */
export const keptJson = <T>(path: string): Promise<T> => remember(path, async () => {
  const text = await (await answer(path)).text();
  return [JSON.parse(text) as T, text.length];
});

export const tensors = (path: string): Promise<Tensors> => remember(path, async () => {
  const parsed = parse(await (await answer(path)).arrayBuffer());
  return [parsed, parsed.bytes];
});

/** Forgets what was kept of a run, after it was computed anew. */
export function forget(run: string): void {
  for (const [name, old] of kept) if (name.includes(run)) { kept.delete(name); total -= old.bytes; }
}
