// Flow: tokens across, depth upwards; the ways by which information may have come to one token.

begin(({ about }) => {
  const { words: W, lang, tokens, shares, edges, target } = about;
  const NS = "http://www.w3.org/2000/svg", depths = shares.length, T = tokens.length;
  const across = Math.max(28, Math.min(84, 640 / T)), up = Math.max(15, Math.min(46, 460 / depths));
  const left = 74, top = 20, height = top + up * depths + 72, x = (n) => left + across * (n + 0.5);
  const y = (depth) => top + up * (depths - 1 - depth) + 12;
  const draw = (name, given, ...inside) => {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    made.append(...inside);
    return made;
  };
  const width = left + across * T + 10;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": about.title });
  if (T <= 40) svg.classList.add("fit"); // longer ones scroll
  const box = make("div.scroll", {}, svg), tip = make("p", { "aria-live": "polite" }, "\u00a0"), bar = make("div.bar");
  const said = make("p.note");
  box.style.maxWidth = "none";
  box.style.maxHeight = "none";
  const order = about.value.map((v, n) => [tokens[n], String(n), v]).sort((a, b) => b[2] - a[2]).slice(0, 10);
  document.body.append(make("h1", {}, about.title), bar, make("div.stage", {}, box,
    make("div.side", {}, table([W.token, "#", W.share], order.map(([t, n, v]) => [t.trim(), n, percent(lang, v)]), [1, 2]))), tip, said);
  let least = 0, at = null;

  function lines() {
    const shownOnes = edges.filter((e) => e[5] >= least);
    const made = [];
    for (const [layer, query, key, head, kind, weight] of [...shownOnes].reverse()) {
      if (kind === "mlp" || kind === "cross") continue;
      const lit = !at || (at[0] === layer + 1 && at[1] === query) || (at[0] === layer && at[1] === key);
      const line = draw("line", { x1: x(key), y1: y(layer), x2: x(query), y2: y(layer + 1),
        stroke: key === query ? "#8a8794" : head === null ? "#a14fa0" : inkOf(head), "stroke-width": 0.6 + 4 * weight,
        "stroke-opacity": lit ? 0.25 + 0.75 * weight : 0.06, "stroke-linecap": "round" });
      line.addEventListener("pointerenter", () => { tip.textContent = `${W.layer} ${layer}`
        + `${head === null ? "" : `, ${W.head} ${head}`}: ${tokens[query].trim()} (${query}) → ${tokens[key].trim()} (${key}): ${percent(lang, weight)}`; });
      made.push(line);
    }
    said.textContent = [edges.length ? fill(W.edges, { n: shownOnes.length, m: edges.length }) : "",
      about.hidden[0] ? fill(W.left, { n: about.hidden[0], p: percent(lang, about.hidden[1]) }) : "", about.note].filter(Boolean).join(" ");
    return made;
  }

  function nodes() {
    const made = [];
    shares.forEach((row, depth) => row.forEach((share, n) => {
      const circle = draw("circle", { cx: x(n), cy: y(depth), r: 1.5 + (Math.min(26, up) / 2 - 1) * Math.sqrt(share), fill: css(heat(0.15 + 0.85 * Math.sqrt(share))),
        stroke: depth === depths - 1 && n === target ? "#7b2a78" : "#a39e93", "stroke-width": depth === depths - 1 && n === target ? 3 : 0.8 });
      circle.addEventListener("pointerenter", () => {
        at = [depth, n];
        tip.textContent = `${depth ? `${W.depth} ${depth}` : W.embed}, ${tokens[n].trim()} (${n}): ${percent(lang, share)} ${W.through}`;
        ways.replaceChildren(...lines());
      });
      circle.addEventListener("pointerleave", () => { at = null; ways.replaceChildren(...lines()); });
      made.push(circle);
    }));
    return made;
  }

  const ways = draw("g", {});
  const names = tokens.map((text, n) => draw("text", { x: x(n), y: y(0) + 24, "text-anchor": "end",
    transform: `rotate(-45 ${x(n)} ${y(0) + 24})` }, text.trim()));
  const sides = shares.map((_, depth) => draw("text", { x: left - 12, y: y(depth) + 4, "text-anchor": "end", class: "soft" },
    depth ? String(depth) : W.embed));
  ways.append(...lines());
  svg.append(ways, ...nodes(), ...names, ...sides, draw("text", { x: 4, y: 12, class: "soft" }, W.depth));
  if (edges.length) {
    const strongest = Math.max(...edges.map((e) => e[5]));
    bar.append(slider(W.least, "least", { min: 0, max: strongest, step: strongest / 100, value: 0 },
      (v) => percent(lang, v), (v) => { least = v; ways.replaceChildren(...lines()); }));
  }
  document.documentElement.dataset.ready = "1";
});
