// The strip of tokens over every screen: the shared selection. Only chips in sight are drawn.
import { useEffect, useRef, useState } from "preact/hooks";
import { look, mainTokens, point, queries, useHover, useShared } from "../state";
import { Piece, tokenLabel } from "./common";

const CHIP = 64; // pixels a chip takes when there are many
const MANY = 300;

export function Strip() {
  const { view, w } = useShared();
  const at = useHover();
  const tokens = queries().length ? queries() : mainTokens();
  const [left, setLeft] = useState(0);
  const ref = useRef<HTMLDivElement>(null);
  const many = tokens.length > MANY;
  const first = many ? Math.max(0, Math.floor(left / CHIP) - 5) : 0;
  const last = many ? Math.min(tokens.length, first + 60) : tokens.length;
  useEffect(() => {
    const chip = ref.current?.querySelector<HTMLElement>(`[data-i="${view.q}"]`);
    chip?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [view.q]);
  const move = (e: KeyboardEvent, i: number) => {
    const j = e.key === "ArrowRight" ? i + 1 : e.key === "ArrowLeft" ? i - 1 : i;
    if (j === i || j < 0 || j >= tokens.length) return;
    e.preventDefault();
    e.stopPropagation();
    look({ q: j });
    requestAnimationFrame(() => ref.current?.querySelector<HTMLElement>(`[data-i="${j}"]`)?.focus());
  };
  return <div class="strip" ref={ref} role="group" aria-label={w.tokens} tabIndex={-1} onScroll={(e) => many && setLeft(e.currentTarget.scrollLeft)}>
    <div class={many ? "chips many" : "chips"} style={many ? { width: `${tokens.length * CHIP}px` } : undefined}>
      {tokens.slice(first, last).map((t, j) => {
        const i = first + j;
        const same = i > 0 && t.w !== null && tokens[i - 1].w === t.w;
        return <button key={i} data-i={i} class={`chip${t.special ? " special" : ""}${same ? " same" : ""}${view.q === i ? " locked" : ""}${at.q === i ? " on" : ""}`}
          style={many ? { left: `${i * CHIP}px`, width: `${CHIP - 3}px` } : undefined} aria-pressed={view.q === i} aria-label={tokenLabel(w, t, i, tokens.length)}
          tabIndex={i === (view.q ?? 0) ? 0 : -1} onKeyDown={(e) => move(e, i)} onPointerEnter={() => point(i)} onPointerLeave={() => point(null)}
          onClick={() => look({ q: view.q === i ? null : i, k: null })}><span><Piece s={t.s} /></span>{" "}<small>{t.id}</small></button>;
      })}
    </div>
  </div>;
}
