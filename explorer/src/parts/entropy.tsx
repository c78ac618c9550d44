// The entropy strip: at each token, how open the model's answer was, and how likely it held what came.
import { tensors } from "../api";
import { ink } from "../draw/colours";
import { Canvas, plain, useAsked, useSize, Waiting } from "./common";
import { known, look, mainTokens, useShared } from "../state";
import { fill, number, percent } from "../words";

const HIGH = 62, NAMES = 18; // pixels of the bars, and of the words below

export function Entropy({ pos }: { pos: number }) {
  const { view, w } = useShared();
  const [node, size] = useSize<HTMLDivElement>();
  const tokens = mainTokens(), call = `runs/${view.run}/surprise`;
  const asked = useAsked(view.run === known.run!.run ? call : null, () => tensors(call));
  const bits = asked.value?.get("entropy").data, came = asked.value?.get("came").data;
  if (!bits || bits.length !== tokens.length) return <Waiting of={asked} />;
  const wide = Math.max(3, Math.min(64, Math.floor((size.width - 4) / tokens.length)));
  const most = Math.max(...Array.from(bits), 1);
  const tip = (i: number) => fill(w.entropyAt, { s: plain(tokens[i]), x: number(view.lang, bits[i], 2) })
    + (Number.isFinite(came![i]) ? " " + fill(known.run!.model.output === "mask" ? w.cameMask : w.cameNext, { s: plain(tokens[known.run!.model.output === "mask" ? i : i + 1]), p: percent(view.lang, came![i]) }) : "");
  return <section class="entropy"><h2>{w.entropyTitle}</h2>
    <div class="across" ref={node} tabIndex={0} role="region" aria-label={w.entropyTitle}><Canvas width={wide * tokens.length} height={HIGH + NAMES} label={`${w.entropyTitle}. ${tip(pos)}`} deps={[bits, wide, pos, size.width]}
      onClick={(e) => look({ q: Math.min(tokens.length - 1, Math.floor(e.offsetX / wide)) })}
      draw={(ctx) => {
        ctx.font = "11px system-ui, sans-serif";
        ctx.textAlign = "center";
        tokens.forEach((t, i) => {
          const h = Math.max(1, (HIGH - 4) * bits[i] / most);
          ctx.fillStyle = ink(i === pos ? "lock" : "accent");
          ctx.globalAlpha = i === pos ? 1 : 0.55;
          ctx.fillRect(i * wide, HIGH - h, Math.max(1, wide - 2), h);
          ctx.globalAlpha = 1;
          ctx.fillStyle = ink("quiet");
          if (wide >= 22) ctx.fillText(plain(t).slice(0, Math.floor(wide / 7)), (i + 0.5) * wide - 1, HIGH + 13);
        });
      }} /></div>
    <p class="fine" aria-live="polite">{tip(pos)}</p></section>;
}
