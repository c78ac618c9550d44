// Source and target: what the decoder looks at in the encoder while it writes each token.
import { tensors } from "../api";
import { ink } from "../draw/colours";
import { image, place } from "../draw/heatmap";
import { base, Canvas, Exports, Honest, LayerSlider, plain, Side, Slider, Snippet, useAsked, useSize, Waiting } from "../parts/common";
import { known, look, shownHeads, start, stackOf, useShared } from "../state";
import { ROOT } from "../tensors";
import { fill, percent } from "../words";
import { HeadChips, Row } from "./heads";
import { useEffect } from "preact/hooks";

const WRITTEN = 24; // tokens the model writes when asked

export function Cross() {
  const { view, w } = useShared();
  const run = known.run!, stack = stackOf("cross");
  useEffect(() => { if (view.stack !== "cross") look({ stack: "cross", layer: Math.min(view.layer, stack!.layers.length - 1), q: 0, k: null }); }, [view.stack]);
  const [node, size] = useSize<HTMLDivElement>();
  const sources = run.tokens[stack!.keys], targets = run.tokens[stack!.queries];
  const call = `runs/${run.run}/attn/cross/${view.layer}?enc=u8sqrt`;
  const asked = useAsked(view.stack === "cross" ? call : null, () => tensors(call));
  const got = asked.value?.get("pattern"), heads = shownHeads();
  const t = Math.min(view.q ?? 0, targets.length - 1);
  const fits = got && got.shape[1] === targets.length && got.shape[2] === sources.length && heads.length > 0;
  const mean = fits ? averaged(got.data, got.shape, heads) : null;
  const cell = Math.max(6, Math.min(32, Math.floor((size.width - 120) / sources.length)));
  const x0 = 100, y0 = 92, width = x0 + sources.length * cell + 60, height = y0 + targets.length * cell + 8;
  const row = mean ? Array.from(mean.subarray(t * sources.length, (t + 1) * sources.length), (v, k) => [k, ROOT[v]] as const).sort((a, b) => b[1] - a[1]).slice(0, 3) : [];
  return <>
    <section class="work" id="picture" >
      <div class="bar"><LayerSlider /><HeadChips /></div>
      <div class="bar"><Slider label={w.step} value={t} min={0} max={targets.length - 1} step={1} text={`${t} ${plain(targets[t])}`} onInput={(q) => look({ q })} /><span class="quiet">{w.meanHeads}</span>
        {run.model.live && typeof run.inputs.text === "string" && <button class="small" disabled={known.busy} onClick={() => start({ text: run.inputs.text as string, write: WRITTEN })}>{fill(w.writeOn, { n: WRITTEN })}</button>}</div>
      <p class="says" aria-live="polite">{fill(w.crossSays, { t: plain(targets[t]) })} {row.map(([k, x], i) => <span key={k}>{i > 0 && ", "}<strong>{plain(sources[k])}</strong> {percent(view.lang, x)}</span>)}</p>
      <Waiting of={asked} />
      <div class="scroller" ref={node} tabIndex={0} role="region" aria-label={w.cross}>{mean && <Canvas width={width} height={height} label={w.crossHint} deps={[mean, t, cell]}
        onClick={(e) => { const i = Math.floor(((e as unknown as MouseEvent).offsetY - y0) / cell); if (i >= 0 && i < targets.length) look({ q: i }); }}
        draw={(ctx) => {
          place(ctx, image(mean, targets.length, sources.length), x0, y0, sources.length * cell, targets.length * cell);
          ctx.strokeStyle = ink("lock");
          ctx.lineWidth = 2;
          ctx.strokeRect(x0, y0 + t * cell, sources.length * cell, cell);
          ctx.fillStyle = ink("text");
          ctx.font = `${Math.min(13, cell - 1)}px system-ui, sans-serif`;
          ctx.textAlign = "right";
          targets.forEach((x, i) => ctx.fillText(plain(x).slice(0, 12), x0 - 6, y0 + (i + 0.5) * cell + 4));
          ctx.textAlign = "left";
          sources.forEach((x, i) => { ctx.save(); ctx.translate(x0 + (i + 0.5) * cell + 4, y0 - 6); ctx.rotate(-Math.PI / 3); ctx.fillText(plain(x).slice(0, 12), 0, 0); ctx.restore(); });
        }} />}</div>
      <p class="fine">{w.crossHint} {w.quantised}</p>
    </section>
    <Side>{view.stack === "cross" && <Row value="weight" at={t} />}
      <Honest /><Snippet code={`${base()}\nprint(tape.pattern(layer=${view.layer}, stack="cross"))`} /><Exports name="cross" rows={mean ? () => [["target", "source", "weight"], ...targets.flatMap((x, i) => sources.map((y, j): (string | number)[] => [x.s, y.s, ROOT[mean[i * sources.length + j]]]))] : undefined} /></Side>
  </>;
}

/** The mean of some heads' maps, as bytes again. */
function averaged(data: ArrayLike<number>, [, rows, cols]: number[], heads: number[]): Uint8Array {
  return Uint8Array.from({ length: rows * cols }, (_, i) =>
    Math.round(255 * Math.sqrt(heads.reduce((sum, h) => sum + ROOT[data[h * rows * cols + i]], 0) / heads.length)));
}
