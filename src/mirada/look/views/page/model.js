// Model view: every head of every layer as a small map; a click opens one large.

begin(({ about, bytes }) => {
  const { words: W, lang } = about;
  let which = 0, open = null; // open: [place of the layer, head]
  const bar = make("div.bar"), grid = make("div.thumbs"), large = make("div.side.stay");
  const said = make("p.note");
  document.body.append(make("h1", {}, about.title), bar, make("div.stage", {}, grid, large), said);
  const offset = (a, place, head) => a.at + (place * a.heads.length + head) * a.rows * a.cols;

  function thumbs() {
    const a = about.arms[which], tall = Math.max(24, Math.min(72, Math.round(56 * a.rows / a.cols)));
    const wide = 56;
    grid.style.gridTemplateColumns = `auto repeat(${a.heads.length}, ${wide}px)`;
    grid.replaceChildren(make("span.axis", {}, W.layer), ...a.heads.map((h) => make("span.axis.top", {}, String(h))));
    a.layers.forEach((layer, place) => {
      grid.append(make("span.axis", {}, String(layer)));
      a.heads.forEach((head, n) => {
        const canvas = make("canvas"), title = `${W.layer} ${layer}, ${W.head} ${head}`;
        const button = make("button", { type: "button", title, "aria-label": title, onclick: () => show(place, n, button) }, canvas);
        button.style.width = `${wide}px`;
        button.style.height = `${tall}px`;
        paintMap(canvas, bytes, a.rows, a.cols, offset(a, place, n));
        grid.append(button);
      });
    });
  }

  function show(place, head, button) {
    const a = about.arms[which], from = offset(a, place, head);
    grid.querySelector(".on")?.classList.remove("on");
    button.classList.add("on");
    open = [place, head];
    const tip = make("p", {}, "\u00a0"), strongest = [];
    for (let n = 0; n < a.rows * a.cols; n++) if (bytes[from + n] > 25) strongest.push(n);
    strongest.sort((x, y) => bytes[from + y] - bytes[from + x]);
    const name = (texts, n, count) => { // a token, or the first and last of a pooled cell
      const first = Math.floor(n * texts.length / count), end = Math.ceil((n + 1) * texts.length / count);
      return end - first === 1 ? `${texts[first].trim()} (${first})` : `${first}–${end - 1}`;
    };
    const words = (n) => {
      const q = Math.floor(n / a.cols), k = n % a.cols;
      return [name(a.queries, q, a.rows), name(a.keys, k, a.cols), percent(lang, WEIGHT[bytes[from + n]])];
    };
    const map = labelled(bytes, a, from, button.title, 420, (q, k) => {
      const [query, key, weight] = words(q * a.cols + k);
      tip.textContent = `${query} → ${key}: ${weight}`;
    });
    large.replaceChildren(make("h1", {}, button.title), make("p.axis", {}, `${W.keys} → · ${W.queries} ↓`),
      map, tip, table([W.query, W.key, W.weight], strongest.slice(0, 8).map(words), [2]));
    if (large.offsetTop > grid.offsetTop + 40) large.scrollIntoView({ block: "nearest" }); // below
  }

  function rebuild() {
    const a = about.arms[which], [r, c] = a.tile;
    bar.replaceChildren(...(about.arms.length > 1 ? [choice(W.stack, "stack",
      about.arms.map((x, n) => [n, W[x.name] ?? x.name]), which, (v) => { which = +v; large.replaceChildren(); rebuild(); })] : []),
      make("button", { type: "button", onclick: picture }, W.picture));
    thumbs();
    said.textContent = [W.open, r * c > 1 ? fill(W.pooled, { r, c }) : "", fill(W.rounded, { e: shown(lang, about.stated) }),
      about.clipped ? fill(W.clipped, { n: about.clipped }) : "", W.caution].filter(Boolean).join(" ");
  }

  function picture() {
    const a = about.arms[which], cell = 64, out = make("canvas");
    const ctx = fitted(out, 30 + a.heads.length * (cell + 4), 22 + a.layers.length * (cell + 4));
    const style = getComputedStyle(document.body);
    ctx.fillStyle = style.backgroundColor;
    ctx.fillRect(0, 0, out.width, out.height);
    ctx.fillStyle = style.color;
    ctx.imageSmoothingEnabled = false;
    a.heads.forEach((h, n) => ctx.fillText(String(h), 30 + n * (cell + 4) + cell / 2, 14));
    [...grid.querySelectorAll("canvas")].forEach((small, n) => {
      const row = Math.floor(n / a.heads.length), col = n % a.heads.length;
      if (col === 0) ctx.fillText(String(a.layers[row]), 6, 22 + row * (cell + 4) + cell / 2);
      ctx.drawImage(small, 30 + col * (cell + 4), 22 + row * (cell + 4), cell, cell);
    });
    saved(out, "model.png");
  }

  document.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || !open || !grid.contains(document.activeElement)) return;
    const a = about.arms[which], place = open[0] + step[0], head = open[1] + step[1];
    if (place < 0 || head < 0 || place >= a.layers.length || head >= a.heads.length) return;
    event.preventDefault();
    const button = grid.querySelectorAll("button")[place * a.heads.length + head];
    button.focus();
    show(place, head, button);
  });
  rebuild();
  document.documentElement.dataset.ready = "1";
});
