// Long work on the server: begun, watched, stopped.
import { useEffect, useState } from "preact/hooks";
import { json } from "../api";
import type { Job } from "../schema";
import { blame, useShared } from "../state";
import { fill } from "../words";

/** Follows a job until it ends; its state is asked for twice a second. `done` is told its result once. */
export function useJob<T>(done: (result: T) => void = () => undefined): { job: Job | null; run: (begin: () => Promise<Job>) => Promise<void>; stop: () => void; result: T | null } {
  const [job, set] = useState<Job | null>(null);
  useEffect(() => {
    if (job?.state === "done") done(job.result as T);
    if (job?.state !== "running") return;
    const timer = setTimeout(() => json<Job>(`jobs/${job.job}`).then(set, blame), 400);
    return () => clearTimeout(timer);
  }, [job]);
  return {
    job, run: async (begin) => { try { set(await begin()); } catch (error) { blame(error); } },
    stop: () => { if (job) void json<Job>(`jobs/${job.job}`, { method: "DELETE" }).then(set, blame); },
    result: job?.state === "done" ? job.result as T : null,
  };
}

export function Progress({ job, onStop }: { job: Job; onStop: () => void }) {
  const { w } = useShared();
  if (job.state === "failed") return <p class="bad" role="alert">{w.failed}: {job.error?.message}</p>;
  if (job.state !== "running") return null;
  return <div class="bar"><progress max={job.total || 1} value={job.total ? job.done : undefined} aria-label={w.busy} /><span class="quiet">{job.total > 0 && fill(w.progress, { a: job.done, b: job.total })}</span>
    <button class="small" onClick={onStop}>{w.stop}</button></div>;
}
