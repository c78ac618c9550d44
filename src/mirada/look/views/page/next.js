// Next token: the whole vocabulary at any temperature, top-k and top-p, exactly.

begin(({ about, bytes }) => {
  const { words: W, lang, ids, count } = about, state = { t: 1, k: 0, p: 1 };
  const logits = new Float32Array(bytes.slice().buffer, 0, count);
  const order = Uint32Array.from({ length: count }, (_, n) => n).sort((a, b) => logits[b] - logits[a] || a - b);

  /** Probabilities in the order of the logits, and how many tokens are left. Temperature 0: the first alone. */
  function distribution() {
    const probs = new Float64Array(count), top = logits[order[0]];
    let kept = state.t === 0 ? 1 : state.k > 0 ? Math.min(state.k, count) : count, sum = 0;
    for (let n = 0; n < kept; n++) sum += probs[n] = state.t === 0 ? 1 : Math.exp((logits[order[n]] - top) / state.t);
    if (state.p < 1) { // the fewest that hold p, the one that crosses it among them
      let mass = 0, n = 0;
      while (n < kept && mass < state.p * sum) mass += probs[n++];
      kept = Math.max(1, n);
      sum = 0;
      for (let m = 0; m < kept; m++) sum += probs[m];
      probs.fill(0, kept);
    }
    return { probs: probs.map((p) => p / sum), kept };
  }

  const box = make("div"), said = make("p.note");
  const texts = new Map(ids.map((id, n) => [id, about.texts[n]]));
  function refresh() {
    const { probs, kept } = distribution(), body = make("tbody");
    for (let n = 0; n < Math.min(Math.max(about.k, 10), ids.length); n++) {
      const bar = make("span.fill");
      bar.style.width = `${Math.round(320 * probs[n])}px`;
      body.append(make("tr", {}, make("td.n", {}, String(order[n])), make("td", {}, texts.get(order[n]) ?? ""),
        make("td.n", {}, percent(lang, probs[n])), make("td", {}, bar)));
    }
    box.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, make("th.n", {}, W.id), make("th", {}, W.token),
      make("th.n", {}, W.probs), make("th"))), body));
    said.textContent = fill(W.kept, { n: shown(lang, kept), m: shown(lang, count) });
    document.documentElement.dataset.first = probs[0];
  }
  const bar = make("div.bar", {},
    slider(W.temperature, "t", { min: 0, max: 5, step: 0.05, value: 1 }, (v) => shown(lang, v), (v) => { state.t = v; refresh(); }),
    slider(W.topk, "k", { min: 0, max: 100, step: 1, value: 0 }, (v) => (v ? String(v) : W.off), (v) => { state.k = v; refresh(); }),
    slider(W.topp, "p", { min: 0.05, max: 1, step: 0.01, value: 1 }, (v) => (v < 1 ? shown(lang, v) : W.off), (v) => { state.p = v; refresh(); }));
  document.body.append(make("h1", {}, about.title), bar, box, said);
  refresh();
  document.documentElement.dataset.ready = "1";
});
