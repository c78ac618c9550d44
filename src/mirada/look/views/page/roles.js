// Roles: every head in the colour of what it does, full where a causal test stood.

begin(({ about }) => {
  const { words: W, lang, shape, rows } = about;
  const side = make("div.side.stay"), stage = make("div.stage"), kinds = [...new Set(rows.map((r) => r.role))];
  const strength = { verified: 1, "causal only": 0.6, "pattern only": 0.35, contradicted: 0.15 };
  const mine = (stack, layer, head) => rows.filter((r) => r.stack === stack && r.layer === layer && r.head === head)
    .sort((a, b) => strength[b.verdict] - strength[a.verdict]);

  function detail(stack, layer, head) {
    const found = mine(stack, layer, head);
    side.replaceChildren(make("h1", {}, `${W[stack] ?? stack} · ${W.layer} ${layer} · ${W.head} ${head}`),
      ...(found.length ? found.flatMap((r) => [make("p", {}, r.words), make("p.note", {},
        `${r.role}${r.detail ? ` ${r.detail}` : ""}: ${shown(lang, r.score, { maximumFractionDigits: 3 })} (${W.base} ${shown(lang, r.baseline, { maximumFractionDigits: 3 })}, n ${r.n})`)])
        : [make("p", {}, W.norole)]));
  }

  for (const [stack, counts] of Object.entries(shape)) {
    const grid = make("div.thumbs"), most = Math.max(...counts);
    grid.style.gridTemplateColumns = `auto repeat(${most}, 28px)`;
    grid.append(make("span.axis", {}, W[stack] ?? stack), ...Array.from({ length: most }, (_, h) => make("span.axis.top", {}, String(h))));
    counts.forEach((count, layer) => {
      grid.append(make("span.axis", {}, String(layer)));
      for (let head = 0; head < most; head++) {
        const best = mine(stack, layer, head)[0], title = `${W.layer} ${layer}, ${W.head} ${head}${best ? `: ${best.words}` : ""}`;
        const cell = make("button", { type: "button", title, "aria-label": title, hidden: head >= count,
          onclick: () => detail(stack, layer, head), onpointerenter: () => detail(stack, layer, head) });
        cell.style.height = "28px";
        if (best) {
          cell.style.background = `color-mix(in srgb, ${inkOf(kinds.indexOf(best.role))} ${100 * strength[best.verdict]}%, var(--paper))`;
          cell.style.borderColor = inkOf(kinds.indexOf(best.role));
        }
        grid.append(cell);
      }
    });
    stage.append(grid);
  }
  const key = make("div.bar", {}, ...kinds.map((role, n) => {
    const dot = make("span.fill");
    dot.style.width = "14px";
    dot.style.background = inkOf(n);
    return make("label", {}, dot, role);
  }));
  stage.append(side);
  document.body.append(make("h1", {}, about.title), key, stage, make("p.note", {}, `${about.note} ${W.caution}`));
  document.documentElement.dataset.ready = "1";
});
