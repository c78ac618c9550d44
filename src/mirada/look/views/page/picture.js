// Attention over a picture: any layer and head, or the rollout, seen from any patch.

begin(({ about, bytes }) => {
  const { words: W, lang, heads: H, extra, queries: Q } = about;
  const [rows, cols] = about.grid, [tall, wide] = about.size, S = rows * cols + extra;
  const start = { layer: about.layers.indexOf(about.layer), what: about.head ?? "mean", query: about.query };
  const state = { ...start }, weightsAt = tall * wide * 3;
  const rolledAt = weightsAt + about.layers.length * H * Q * S;
  const head = (h, k) => WEIGHT[bytes[weightsAt + ((state.layer * H + h) * Q + state.query) * S + k]];
  const rolled = (k) => WEIGHT[bytes[rolledAt + state.query * S + k]];

  /** The weights of the patches, of a head's number, "mean" or "rollout". */
  function cells(what) {
    return Float32Array.from({ length: rows * cols }, (_, n) => {
      if (what === "rollout") return rolled(extra + n);
      if (what !== "mean") return head(what, extra + n);
      let sum = 0;
      for (let h = 0; h < H; h++) sum += head(h, extra + n);
      return sum / H;
    });
  }

  const grey = make("canvas"), plain = make("canvas");
  for (const [canvas, tone] of [[grey, 1], [plain, 0]]) {
    canvas.width = wide;
    canvas.height = tall;
    const made = new ImageData(wide, tall);
    for (let n = 0; n < tall * wide; n++) {
      const rgb = bytes.subarray(3 * n, 3 * n + 3), mean = (rgb[0] + rgb[1] + rgb[2]) / 3 * 0.75 + 64;
      for (let c = 0; c < 3; c++) made.data[4 * n + c] = tone ? mean : rgb[c];
      made.data[4 * n + 3] = 255;
    }
    canvas.getContext("2d").putImageData(made, 0, 0);
  }

  const OVER = [[251, 227, 181, 0], [245, 163, 92, 0.55], [217, 72, 95, 0.88]];
  function over(x) { // nothing to all of it, by the root so that faint looks show
    const at = Math.min(1.9999, 2 * Math.sqrt(Math.max(0, x))), low = Math.floor(at), part = at - low;
    return `rgba(${OVER[low].map((c, n) => c * (1 - part) + OVER[low + 1][n] * part).join(",")})`;
  }

  /** Lays weights over the grey picture, `most` the strongest colour. */
  function lay(canvas, weights, most, width) {
    const height = Math.round(width * tall / wide), ctx = fitted(canvas, width, height);
    ctx.imageSmoothingEnabled = width < wide;
    ctx.drawImage(grey, 0, 0, width, height);
    weights.forEach((w, n) => {
      const r = Math.floor(n / cols), c = n % cols;
      ctx.fillStyle = over(w / (most || 1));
      ctx.fillRect(c * width / cols, r * height / rows, width / cols, height / rows);
    });
    const own = state.query - extra;
    if (Q > 1 && own >= 0) {
      for (const [ink, thick] of [["#1c1a27", 4], ["#fbfaf7", 2]]) {
        ctx.strokeStyle = ink;
        ctx.lineWidth = thick;
        ctx.strokeRect((own % cols) * width / cols, Math.floor(own / cols) * height / rows, width / cols, height / rows);
      }
    }
  }

  const large = make("canvas.mapped", { role: "img", tabindex: "0" }), tip = make("p", {}, "\u00a0"), said = make("p.note");
  const small = make("div.thumbs"), bar = make("div.bar"), size = Math.min(480, Math.round(480 * wide / tall));
  small.style.gridTemplateColumns = "repeat(4, 98px)";
  plain.className = "mapped";
  plain.style.width = "98px";
  const name = (what) => (what === "rollout" ? W.rollout : what === "mean" ? W.meant : `${W.head} ${what}`);
  const whats = ["mean", "rollout", ...Array.from({ length: H }, (_, h) => h)];
  let drawn = null;

  function refresh() {
    drawn = cells(state.what);
    const every = whats.map(cells), most = Math.max(...every.slice(2).map((w) => Math.max(...w)));
    lay(large, drawn, Math.max(...drawn), size);
    const own = state.query - extra, where = Q === 1 ? about.asked
      : own < 0 ? "[CLS]" : `${W.patch} ${Math.floor(own / cols)}, ${own % cols}`;
    const title = `${W.layer} ${about.layers[state.layer]} · ${name(state.what)} · ${W.from}: ${where}`;
    large.setAttribute("aria-label", title);
    const rest = drawn.reduce((a, b) => a + b, 0);
    tip.textContent = title;
    said.textContent = [Q > 1 ? W.pick : "", extra ? fill(W.outside, { p: percent(lang, Math.min(1, rest)) }) : "",
      fill(W.rounded, { e: shown(lang, about.stated) }), W.caution].filter(Boolean).join(" ");
    small.replaceChildren(...whats.map((what, n) => {
      const canvas = make("canvas", { "aria-hidden": "true" }), button = make("button", { type: "button", title: name(what),
        "aria-label": name(what), "aria-pressed": String(what === state.what),
        onclick: () => { state.what = what; refresh(); } }, canvas);
      if (what === state.what) button.classList.add("on");
      lay(canvas, every[n], n < 2 ? Math.max(...every[n]) : most, 96);
      return make("div", {}, make("span.axis", {}, name(what)), button);
    }));
    document.documentElement.dataset.shown = title;
  }

  function patchAt(event) {
    const box = large.getBoundingClientRect();
    const at = (part, count) => Math.min(count - 1, Math.max(0, Math.floor(part * count)));
    return [at((event.clientY - box.top) / box.height, rows), at((event.clientX - box.left) / box.width, cols)];
  }
  large.onpointermove = (event) => {
    const [r, c] = patchAt(event);
    tip.textContent = `${W.patch} ${r}, ${c}: ${percent(lang, drawn[r * cols + c])}`;
  };
  function choose(r, c) {
    if (Q === 1) return;
    state.query = extra + Math.min(rows - 1, Math.max(0, r)) * cols + Math.min(cols - 1, Math.max(0, c));
    refresh();
  }
  large.onclick = (event) => choose(...patchAt(event));
  large.onkeydown = (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const own = Math.max(0, state.query - extra);
    choose(Math.floor(own / cols) + step[0], own % cols + step[1]);
  };
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    state.query = start.query;
    refresh();
  });
  bar.append(choice(W.layer, "layer", about.layers.map((layer, n) => [n, layer]), state.layer,
    (n) => { state.layer = +n; refresh(); }),
  make("button", { type: "button", onclick: () => saved(large, "picture.png") }, W.picture));
  document.body.append(make("h1", {}, about.title), bar,
    make("div.stage", {}, make("div", {}, large, tip), make("div.side", {}, plain, small)), said);
  refresh();
  document.documentElement.dataset.ready = "1";
});
