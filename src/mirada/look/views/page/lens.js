// Logit lens: what each depth would answer at each token.

begin(({ about, bytes }) => {
  const { words: W, lang, tokens, depths, top } = about, T = tokens.length, copy = bytes.slice();
  let end = 0;
  const read = (Kind, count) => new Kind(copy.buffer, (end += 4 * count) - 4 * count, count);
  const ids = read(Int32Array, depths * T * top), rank = read(Int32Array, depths * T);
  const probs = read(Float32Array, depths * T * top), prob = read(Float32Array, depths * T);
  const word = (id) => about.names[id];
  const side = make("div.side.stay"), body = make("tbody");
  const cells = (depth) => tokens.map((_, t) => {
    const at = (depth * T + t) * top, rgb = heat(probs[at]);
    const cell = make("td", { tabindex: "-1" }, word(ids[at]).trim() || "␣");
    cell.style.background = css(rgb);
    cell.style.color = inkOn(rgb);
    cell.addEventListener("pointerenter", () => detail(depth, t));
    return cell;
  });

  function detail(depth, t) {
    const at = (depth * T + t) * top, target = about.targets[t];
    const rows = Array.from({ length: top }, (_, n) => [word(ids[at + n]), percent(lang, probs[at + n])]);
    side.replaceChildren(make("h1", {}, `${depth ? `${W.depth} ${depth}` : W.embed} · ${tokens[t].trim()} (${t})`),
      table([W.token, W.probability], rows, [1]),
      make("p", {}, `${word(target)}: ${percent(lang, prob[depth * T + t])}, ${W.rank} ${shown(lang, rank[depth * T + t])}`));
  }

  for (let depth = depths - 1; depth >= 0; depth--)
    body.append(make("tr", {}, make("th.n", {}, depth ? String(depth) : W.embed), ...cells(depth)));
  const grid = make("table.grid", {}, make("thead", {}, make("tr", {}, make("th", {}, W.depth),
    ...tokens.map((text) => make("th", { title: text }, text.trim() || "␣")))), body);
  document.body.append(make("h1", {}, about.title), make("div.stage", {}, make("div.scroll.wide", { tabindex: "0" }, grid), side),
    make("p.note", {}, [W.lens, about.cut ? fill(W.last, { n: T }) : "", W.early].filter(Boolean).join(" ")));
  detail(depths - 1, T - 1);
  document.documentElement.dataset.ready = "1";
});
