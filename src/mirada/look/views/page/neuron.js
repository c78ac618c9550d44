// Neuron view: for one query, each key's channels times the query's, their sum, the weight.

begin(({ about, bytes }) => {
  const { words: W, lang } = about, { queries, keys, channels: K } = about;
  const T = queries.length, S = keys.length;
  const copy = bytes.slice(); // aligned, so that floats can be read in place
  let end = 0;
  const floats = (count) => new Float32Array(copy.buffer, (end += 4 * count) - 4 * count, count);
  const q = floats(T * K), k = floats(S * K), weights = floats(T * S);
  const bias = about.biased ? floats(T * S) : null, seen = copy.subarray(end, end + T * S);
  let query = T - 1, over = null;

  const number = (x) => shown(lang, x, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const largest = (values) => values.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-9);
  const most = { q: largest(q), k: largest(k) };

  /** Signed numbers as a strip: violet up, orange down, as dark as their share of the largest. */
  function strip(values, top, title) {
    const canvas = make("canvas", { role: "img", title }), wide = Math.max(2, Math.min(5, Math.floor(220 / K)));
    canvas.width = K;
    canvas.height = 1;
    canvas.style.width = `${wide * K}px`;
    const paper = isDark() ? [22, 21, 30] : [251, 250, 247], pixels = new ImageData(K, 1);
    values.forEach((x, n) => {
      const strength = Math.sqrt(Math.min(1, Math.abs(x) / top));
      const ink = x > 0 ? (isDark() ? [200, 120, 240] : [110, 40, 150]) : (isDark() ? [255, 160, 60] : [225, 110, 20]);
      ink.forEach((c, m) => { pixels.data[4 * n + m] = Math.round(paper[m] * (1 - strength) + c * strength); });
      pixels.data[4 * n + 3] = 255;
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    canvas.onpointermove = (event) => {
      const box = canvas.getBoundingClientRect();
      const n = Math.min(K - 1, Math.floor((event.clientX - box.left) / box.width * K));
      tip.textContent = `${title} · ${W.channel} ${n}: ${shown(lang, values[n], { maximumSignificantDigits: 4 })}`;
    };
    return canvas;
  }

  const bar = make("div.bar"), tip = make("p.note", {}, "\u00a0"), box = make("div.scroll");
  box.style.maxWidth = "none";
  document.body.append(make("h1", {}, about.title), bar, box, tip, make("p.note", {},
    [fill(W.neuron, { s: shown(lang, about.scale, { maximumSignificantDigits: 4 }) }),
      about.cap ? fill(W.capped, { c: about.cap }) : "", W.caution].filter(Boolean).join(" ")));

  function rows() {
    const mine = q.subarray(query * K, query * K + K), body = make("tbody");
    const products = keys.map((_, j) => Float32Array.from({ length: K }, (_, n) => mine[n] * k[j * K + n] * about.scale));
    const top = products.reduce((m, p) => Math.max(m, largest(p)), 1e-9);
    keys.forEach((text, j) => {
      const at = query * S + j, sum = products[j].reduce((a, x) => a + x, 0);
      const score = (about.cap ? about.cap * Math.tanh(sum / about.cap) : sum) + (bias ? bias[at] : 0);
      const filled = make("span.fill");
      filled.style.width = `${Math.round(90 * weights[at])}px`;
      body.append(make(seen[at] ? "tr" : "tr.faint", {}, make("td.n", {}, `${text.trim()} (${j})`),
        make("td", {}, strip(k.subarray(j * K, j * K + K), most.k, `k ${text.trim()}`)),
        make("td", {}, strip(products[j], top, `${W.product} ${text.trim()}`)),
        make("td.n", {}, number(sum)), ...(bias ? [make("td.n", {}, number(bias[at]))] : []),
        make("td.n", {}, seen[at] ? number(score) : W.hidden), make("td.n", {}, seen[at] ? percent(lang, weights[at]) : ""), make("td", {}, filled)));
    });
    box.replaceChildren(make("table.strips", {}, make("thead", {}, make("tr", {}, make("th.n", {}, W.key),
      make("th", {}, "k"), make("th", {}, `${W.product} × ${shown(lang, about.scale, { maximumSignificantDigits: 3 })}`), make("th.n", {}, W.sum),
      ...(bias ? [make("th.n", {}, W.bias)] : []), make("th.n", {}, W.score), make("th.n", {}, W.softmax), make("th"))), body));
    bar.replaceChildren(choice(W.query, "query", queries.map((t, n) => [n, `${t.trim()} (${n})`]), query,
      (v) => { query = +v; rows(); document.getElementById("query").focus(); }),
      make("span", {}, "q"), strips(mine));
  }
  const strips = (mine) => { const made = make("span.strips", {}, strip(mine, most.q, "q")); return made; };
  rows();
  document.documentElement.dataset.ready = "1";
});
