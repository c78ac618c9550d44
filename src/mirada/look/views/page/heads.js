// Head view: two columns of tokens, lines between them, one colour a head.

const ROW = 24, LISTED = 10;
const MOST = 6000, HELD = 1500; // lines at once, and of one token: so that it follows the mouse

begin(({ about, bytes }) => {
  const { words: W, lang } = about;
  const state = { arm: 0, layer: about.layer, on: new Set(about.heads), part: "all", mode: "lines",
    valued: false, hide: false, least: 0, over: null, held: null }; // over, held: [side, index]; side 0 queries
  const arm = () => about.arms[state.arm];
  let cells, begins; // what is drawn, bytes as weights are kept, and where its first head begins
  const at = (head) => begins + head * arm().rows * arm().cols;

  /** The layer's weights; or of each query the shares of weight times what a key brings. */
  function measure() {
    const a = arm(), place = a.layers.indexOf(state.layer), size = a.rows * a.cols;
    const from = a.at + place * a.heads.length * size;
    [cells, begins] = [bytes, from];
    if (!state.valued || !a.lengths) return;
    [cells, begins] = [new Uint8Array(a.heads.length * size), 0];
    a.lengths[place].forEach((lengths, h) => {
      for (let row = h * size; row < (h + 1) * size; row += a.cols) {
        let sum = 0;
        for (let k = 0; k < a.cols; k++) sum += WEIGHT[bytes[from + row + k]] * lengths[k];
        for (let k = 0; sum && k < a.cols; k++)
          cells[row + k] = Math.round(255 * Math.sqrt(WEIGHT[bytes[from + row + k]] * lengths[k] / sum));
      }
    });
  }
  const focus = () => state.held ?? state.over;

  // Which tokens are in play: [query or not], [key or not], by sentence pair and special tokens.
  function playing() {
    const a = arm(), [from, to] = state.part === "all" ? "  " : state.part;
    const inside = (n, letter) => letter === " " || (n >= a.split) === (letter === "b");
    const side = (texts, letter, resting) => texts.map((_, n) =>
      inside(n, letter) && !(state.hide && resting.includes(n)));
    return [side(a.queries, from, a.resting[0]), side(a.keys, to, a.resting[1])];
  }

  /** The strongest lines to draw, a bounded number, and what the others weigh. */
  function chosen() {
    const a = arm(), [qs, ks] = playing(), held = focus(), counts = new Uint32Array(256), most = held ? HELD : MOST;
    const least = Math.max(1, Math.round(255 * Math.sqrt(state.least)));
    const each = (visit) => {
      for (const h of state.on) {
        const base = at(h);
        for (let q = 0; q < a.rows; q++) {
          if (!qs[q] || (held && held[0] === 0 && held[1] !== q)) continue;
          const row = base + q * a.cols;
          if (held && held[0] === 1) { visit(h, q, held[1], cells[row + held[1]]); continue; }
          for (let k = 0; k < a.cols; k++) if (ks[k]) visit(h, q, k, cells[row + k]);
        }
      }
    };
    let whole = 0, present = 0;
    each((h, q, k, v) => { if (v) { counts[v]++; whole += WEIGHT[v]; present++; } });
    let cut = 256, many = 0;
    while (cut > least && many + counts[cut - 1] <= most) many += counts[--cut];
    let spare = cut > least ? most - many : 0, mass = 0; // of the last byte only some fit
    const lines = [];
    each((h, q, k, v) => {
      if (v >= cut || (v === cut - 1 && v >= least && spare-- > 0)) {
        lines.push([h, q, k, v]);
        mass += WEIGHT[v];
      }
    });
    lines.sort((x, y) => x[3] - y[3]); // the strongest on top
    return { lines, hidden: present - lines.length, rest: whole ? Math.max(0, 1 - mass / whole) : 0 };
  }

  const left = make("ol", { "aria-label": W.queries }), right = make("ol", { "aria-label": W.keys });
  const canvas = make("canvas", { role: "img" });
  const columns = make("div.columns", {}, left, canvas, right);
  const scroll = make("div.scroll", { tabindex: "0", onscroll: () => draw() }, columns);
  const side = make("div.side"), said = make("p.note"), bar = make("div.bar");
  const live = make("p.live", { "aria-live": "polite" });
  document.body.append(make("h1", {}, about.title), bar, make("div.stage", {}, scroll, side), said,
    make("p.note", {}, W.help), live);
  let found;

  function draw() {
    if (state.mode === "map") return;
    const width = columns.clientWidth - left.offsetWidth - right.offsetWidth;
    const height = Math.min(scroll.clientHeight || 1e9, columns.scrollHeight);
    const ctx = fitted(canvas, Math.max(width, 40), Math.max(height, ROW)), top = scroll.scrollTop;
    const strong = found.lines.length ? WEIGHT[found.lines.at(-1)[3]] : 1; // lines are as dark as
    // their share of the strongest drawn: a text of 512 tokens would show nothing otherwise
    for (const [h, q, k, v] of found.lines) {
      const a = (q + 0.5) * ROW - top, b = (k + 0.5) * ROW - top;
      if ((a < 0 && b < 0) || (a > height && b > height)) continue;
      ctx.globalAlpha = Math.max(0.05, WEIGHT[v] / strong);
      ctx.strokeStyle = inkOf(arm().heads[h]);
      ctx.lineWidth = 0.8 + 3 * WEIGHT[v] / Math.max(strong, 0.25);
      ctx.beginPath();
      ctx.moveTo(2, a);
      ctx.lineTo(width - 2, b);
      ctx.stroke();
    }
    ctx.globalAlpha = 1;
    document.documentElement.dataset.lines = found.lines.length;
  }

  /** For a token: the tokens on the other side by the mean weight of the heads shown. */
  function ranked([which, n]) {
    const a = arm(), parts = playing(), other = which === 0 ? a.keys : a.queries, sums = [];
    other.forEach((_, m) => {
      if (!parts[1 - which][m] || !state.on.size) return;
      const cell = which === 0 ? n * a.cols + m : m * a.cols + n;
      let sum = 0;
      for (const h of state.on) sum += WEIGHT[cells[at(h) + cell]];
      sums.push([m, sum / state.on.size]);
    });
    return sums.sort((x, y) => y[1] - x[1]);
  }

  function listen() {
    const held = focus(), a = arm();
    [left, right].forEach((list, which) => [...list.children].forEach((item, n) => {
      item.classList.toggle("at", !!held && held[0] === which && held[1] === n);
      item.classList.toggle("held", !!state.held && state.held[0] === which && state.held[1] === n);
      item.style.background = "";
      item.style.color = "";
    }));
    side.replaceChildren();
    if (!held) return;
    const [which, n] = held, all = ranked(held), best = all.slice(0, LISTED);
    const word = (which === 0 ? a.queries : a.keys)[n], other = which === 0 ? a.keys : a.queries;
    for (const [m, w] of all) {
      if (w < 0.02) break;
      const rgb = heat(Math.sqrt(w)), item = (which === 0 ? right : left).children[m];
      item.style.background = css(rgb);
      item.style.color = inkOn(rgb);
    }
    const title = `“${word.trim()}” (${n}) ${which === 0 ? W.looks : W.seen}`;
    const rows = best.map(([m, w]) => [other[m].trim(), String(m), percent(lang, w)]);
    const rest = all.slice(LISTED).reduce((sum, x) => sum + x[1], 0);
    if (all.length > LISTED) rows.push([fill(W.others, { n: all.length - LISTED }), "", percent(lang, rest)]);
    side.append(make("h1", {}, title), table([which === 0 ? W.key : W.query, "#", state.valued && a.lengths ? W.brought : W.weight], rows, [1, 2]),
      make("p.note", {}, W.mean));
    live.textContent = `${title} ${best.slice(0, 3).map(([m, w]) => `${other[m].trim()} ${percent(lang, w)}`).join(", ")}`;
  }

  function refresh() {
    found = chosen();
    if (state.mode === "lines") draw(); else map();
    listen();
    const values = { n: shown(lang, found.lines.length), m: shown(lang, found.hidden), p: percent(lang, found.rest) };
    said.textContent = [fill(found.hidden ? W.remainder : W.drawn, values),
      fill(W.rounded, { e: shown(lang, about.stated) }),
      state.valued && arm().lengths ? W.worth : "",
      about.clipped ? fill(W.clipped, { n: about.clipped }) : "", W.caution].filter(Boolean).join(" ");
    canvas.setAttribute("aria-label", said.textContent);
  }

  function map() {
    const a = arm(), head = [...state.on][0] ?? 0, title = `${W.head} ${a.heads[head]}`;
    const tip = make("p", {}, "\u00a0");
    const big = labelled(cells, a, at(head), title, 560, (q, k, w) => {
      tip.textContent = `${a.queries[q].trim()} (${q}) → ${a.keys[k].trim()} (${k}): ${percent(lang, w)}`;
    });
    scroll.replaceChildren(make("p.axis", {}, `${title} · ${W.keys} → · ${W.queries} ↓`), big, tip);
  }

  function tokens() {
    const fillList = (list, texts, which, inPlay) => list.replaceChildren(...texts.map((text, n) => {
      const item = make(inPlay[n] ? "li" : "li.away", { title: `${text} (${n})` }, text);
      item.dataset.side = which;
      item.dataset.n = n;
      return item;
    }));
    const [qs, ks] = playing();
    fillList(left, arm().queries, 0, qs);
    fillList(right, arm().keys, 1, ks);
  }

  function tools() {
    const a = arm(), squares = make("span.squares", { role: "group", "aria-label": W.heads });
    a.heads.forEach((name, h) => {
      const square = make("button", { type: "button", "aria-pressed": String(state.on.has(h)),
        title: `${W.head} ${name}`, onclick: () => toggle(h), ondblclick: () => solo(h) }, String(name));
      square.style.setProperty("--head", inkOf(name));
      squares.append(square);
    });
    squares.append(make("button.every", { type: "button", onclick: () => {
      state.on = new Set(state.on.size === a.heads.length ? [] : a.heads.keys());
      marks();
      refresh();
    } }));
    const modes = ["lines", "map"].map((mode) => make("button", { type: "button",
      "aria-pressed": String(state.mode === mode), onclick: () => { state.mode = mode; rebuild(); } }, W[mode]));
    const valued = [false, true].map((on) => make("button", { type: "button", "aria-pressed": String(state.valued === on),
      onclick: () => { state.valued = on; rebuild(); } }, on ? W.valued : W.plain));
    const hide = make("input", { type: "checkbox", id: "hide", checked: state.hide,
      onchange: () => { state.hide = hide.checked; rebuild(); } });
    bar.replaceChildren(...[
      about.arms.length > 1 && choice(W.stack, "stack", about.arms.map((x, n) => [n, W[x.name] ?? x.name]),
        state.arm, (v) => pick(+v)),
      choice(W.layer, "layer", a.layers.map((n) => [n, String(n)]), state.layer, (v) => { state.layer = +v; rebuild(); }),
      make("span", {}, W.heads), squares,
      a.split !== null && choice(W.pair, "part", [["all", W.all], ...["aa", "ab", "ba", "bb"].map((p) => [p, W[p]])],
        state.part, (v) => { state.part = v; rebuild(); }),
      make("span", {}, ...modes),
      a.lengths && make("span", {}, ...valued),
      make("label", {}, hide, a.special ? W.specials : W.first),
      slider(W.weakest, "least", { min: 0, max: 0.5, step: 0.01, value: state.least },
        (v) => percent(lang, v), (v) => { state.least = v; refresh(); }),
      make("button", { type: "button", onclick: picture }, W.picture)].filter(Boolean));
  }

  function pick(n) {
    Object.assign(state, { arm: n, held: null, over: null, part: "all" });
    const a = arm();
    if (!a.layers.includes(state.layer)) state.layer = a.layers[0];
    state.on = new Set([...state.on].filter((h) => h < a.heads.length));
    rebuild();
  }
  function toggle(h) { if (!state.on.delete(h)) state.on.add(h); marks(); refresh(); }
  function solo(h) { state.on = new Set([h]); marks(); refresh(); }
  function marks() { // the squares stay, so that a double click's second click meets the first's
    bar.querySelectorAll(".squares button[title]").forEach((square, h) =>
      square.setAttribute("aria-pressed", String(state.on.has(h))));
    bar.querySelector(".every").textContent = state.on.size === arm().heads.length ? W.none : W.all;
  }
  function rebuild() {
    const id = document.activeElement?.id;
    measure();
    tools();
    marks();
    if (id) document.getElementById(id)?.focus();
    scroll.replaceChildren(columns);
    tokens();
    refresh();
  }

  /** What is seen, tokens beside their lines, as one picture. */
  function picture() {
    const name = `layer-${state.layer}.png`;
    if (state.mode === "map") return saved(scroll.querySelector(".mapped"), name);
    const out = make("canvas"), width = columns.clientWidth, height = canvas.clientHeight;
    const ctx = fitted(out, width, height), style = getComputedStyle(document.body);
    ctx.fillStyle = style.backgroundColor;
    ctx.fillRect(0, 0, width, height);
    ctx.drawImage(canvas, left.offsetWidth, 0, width - left.offsetWidth - right.offsetWidth, height);
    ctx.fillStyle = style.color;
    ctx.font = "14px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    [[left, "right", left.offsetWidth - 8], [right, "left", width - right.offsetWidth + 8]].forEach(([list, align, x]) => {
      ctx.textAlign = align;
      [...list.children].forEach((item, n) => {
        const y = (n + 0.5) * ROW - scroll.scrollTop;
        if (y > -ROW && y < height + ROW && !item.classList.contains("away")) ctx.fillText(item.textContent, x, y);
      });
    });
    saved(out, name);
  }

  const pointed = (event) => {
    const item = event.target.closest?.("li");
    return item ? [+item.dataset.side, +item.dataset.n] : null;
  };
  columns.addEventListener("pointermove", (event) => {
    const now = pointed(event);
    if (state.held || String(now) === String(state.over)) return;
    state.over = now;
    refresh();
  });
  columns.addEventListener("pointerleave", () => { if (state.over) { state.over = null; refresh(); } });
  columns.addEventListener("click", (event) => {
    const now = pointed(event);
    state.held = String(now) === String(state.held) ? null : now;
    refresh();
  });
  document.addEventListener("keydown", (event) => {
    const a = arm(), place = a.layers.indexOf(state.layer);
    const step = { "[": -1, "]": 1 }[event.key], move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") { state.held = state.over = null; refresh(); }
    else if (step && a.layers[place + step] !== undefined) { state.layer = a.layers[place + step]; rebuild(); }
    else if (document.activeElement === scroll && (move || event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      event.preventDefault();
      const [which, n] = state.held ?? [0, move ? -1 : 0];
      const now = move ? which : event.key === "ArrowLeft" ? 0 : 1;
      const count = now === 0 ? a.queries.length : a.keys.length;
      state.held = [now, Math.min(count - 1, Math.max(0, n + (move ?? 0)))];
      refresh();
      (now === 0 ? left : right).children[state.held[1]].scrollIntoView({ block: "nearest" });
    }
  });
  addEventListener("resize", draw);
  rebuild();
  document.documentElement.dataset.ready = "1";
});
