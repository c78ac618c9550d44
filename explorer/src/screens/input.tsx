// Input: text, pair, target, chat; the tokens of the run with their ids; edit or mask one and run again.
import { useState } from "preact/hooks";
import { EXAMPLES } from "../examples";
import { Piece, plain, Side, Snippet, base, tokenLabel } from "../parts/common";
import type { RunRequest, Token } from "../schema";
import { chosen, known, look, start, useShared } from "../state";
import { count, fill } from "../words";

const ROW = 32;
const WRITTEN = 24; // tokens the model writes when asked

export function Input() {
  const { view, known, w } = useShared();
  const run = known.run, model = chosen()!;
  const said = (key: "text" | "pair" | "target") => typeof run?.inputs[key] === "string" ? run.inputs[key] as string : "";
  const [text, setText] = useState(said("text")), [pair, setPair] = useState(said("pair")), [target, setTarget] = useState(said("target"));
  const [chat, setChat] = useState(run?.inputs.chat === true);
  const go = (e?: Event) => {
    e?.preventDefault();
    const inputs: RunRequest["inputs"] = { text };
    if (pair && model.kind === "encoder") inputs.pair = pair;
    if (target && model.kind === "encoder-decoder") inputs.target = target;
    if (chat) inputs.chat = true;
    if (text) void start(inputs);
  };
  return <>
    <section class="work" id="picture">
      {model.live && <form class="form" onSubmit={go}>
        <label>{w.prompt}<textarea rows={3} value={text} onInput={(e) => setText(e.currentTarget.value)}
          onKeyDown={(e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) go(e); }} /></label>
        {model.kind === "encoder" && <label>{w.pairText}<textarea rows={2} value={pair} onInput={(e) => setPair(e.currentTarget.value)} /></label>}
        {model.kind === "encoder-decoder" && <label>{w.target}<textarea rows={2} value={target} onInput={(e) => setTarget(e.currentTarget.value)} /></label>}
        <div class="bar"><button class="main" disabled={!text || known.busy}>{known.busy ? w.running : w.run}</button>
          {(model.output === "next") && <button type="button" disabled={!text || known.busy} onClick={() => start({ text, ...(chat ? { chat } : {}), write: WRITTEN })}>{fill(w.writeOn, { n: WRITTEN })}</button>}
          {model.chat && <label class="tick"><input type="checkbox" checked={chat} onChange={(e) => setChat(e.currentTarget.checked)} />{w.chat}</label>}</div>
        <h2>{w.examples}</h2>
        <div class="examples">{[...EXAMPLES[view.lang], ...EXAMPLES[view.lang === "en" ? "es" : "en"]].filter((x, i, all) => all.indexOf(x) === i)
          .map((x) => <button type="button" key={x} onClick={() => { setText(x); void start({ text: x }); }}>{x}</button>)}</div>
      </form>}
      {run && Object.entries(run.tokens).map(([stack, tokens]) => <Table key={stack} stack={stack} tokens={tokens} />)}
    </section>
    <Side><Edit key={`${view.run} ${view.q}`} /><Snippet code={base()} /></Side>
  </>;
}

function Table({ stack, tokens }: { stack: string; tokens: Token[] }) {
  const { view, known, w } = useShared();
  const [top, setTop] = useState(0);
  const first = Math.max(0, Math.floor(top / ROW) - 6), last = Math.min(tokens.length, first + 40);
  const name = Object.keys(known.run!.tokens).length > 1 ? ` · ${stack === "encoder" ? w.encoder : w.decoder}` : "";
  return <><h2>{w.tokenTable}{name}</h2>
    <p class="fine">{tokens.length > 40 ? fill(w.moreTokens, { n: count(view.lang, tokens.length) }) : fill(w.tokensN, { n: tokens.length })}</p>
    <div class="tokens" onScroll={(e) => setTop(e.currentTarget.scrollTop)} tabIndex={0} role="region" aria-label={w.tokenTable + name}>
      <table><thead><tr><th class="num">{w.rank}</th><th>{w.token}</th><th class="num">{w.id}</th><th class="num">{w.bytes}</th><th class="num">{w.word}</th></tr></thead>
        <tbody>{first > 0 && <tr style={{ height: `${first * ROW}px` }} aria-hidden="true" />}
          {tokens.slice(first, last).map((t, j) => {
            const i = first + j;
            return <tr key={i} class={view.q === i ? "on" : ""}><td class="num">{i}</td>
              <th scope="row"><button class={`chip small${t.special ? " special" : ""}`} aria-pressed={view.q === i} aria-label={tokenLabel(w, t, i, tokens.length)}
                onClick={() => look({ q: view.q === i ? null : i })}><Piece s={t.s} /></button></th>
              <td class="num">{t.id}</td><td class="num">{t.b ? `${t.b[0]}–${t.b[1]}` : "–"}</td><td class="num">{t.w ?? "–"}</td></tr>;
          })}
          {last < tokens.length && <tr style={{ height: `${(tokens.length - last) * ROW}px` }} aria-hidden="true" />}</tbody></table></div></>;
}

/** Changes the text of the chosen token, or masks it, and runs again. */
function Edit() {
  const { view, known, w } = useShared();
  const run = known.run, side = run?.tokens.encoder ? "encoder" : "decoder";
  const tokens = run?.tokens[side] ?? [];
  const token = view.q === null ? undefined : tokens[view.q];
  const [text, setText] = useState(token ? between(token) : "");
  if (!run || !token || !run.model.live) return <p class="quiet">{w.editHint}</p>;
  const mask = run.model.special.mask;
  const apply = (e: Event) => {
    e.preventDefault();
    const letters = Array.from(run.inputs.text as string), [a, b] = token.b!;
    void start({ ...run.inputs, text: [...letters.slice(0, a), text, ...letters.slice(b)].join("") }, run.run);
  };
  return <section><h2>{w.chosen}</h2>
    {token.b && typeof run.inputs.text === "string" && token.seq !== 1 && !run.inputs.chat && <form onSubmit={apply}><label>{fill(w.replaceWith, { s: plain(token) })}
      <input value={text} onInput={(e) => setText(e.currentTarget.value)} /></label><button class="main" disabled={known.busy}>{w.apply}</button></form>}
    {mask !== undefined && <button disabled={known.busy} onClick={() => start({ ids: tokens.map((t, i) => i === view.q ? mask : t.id) }, run.run)}>{w.mask}</button>}
  </section>;
}

const between = (token: Token): string => {
  const text = known.run?.inputs.text;
  return typeof text === "string" && token.b ? Array.from(text).slice(token.b[0], token.b[1]).join("") : "";
};
