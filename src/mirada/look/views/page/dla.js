// Direct logit attribution: what each part adds to one logit.

begin(({ about }) => {
  const { words: W, lang, terms } = about, FIRST = 40;
  const largest = Math.max(...terms.map(([, v]) => Math.abs(v)), 1e-9);
  const number = (v) => shown(lang, v, { minimumFractionDigits: 3, maximumFractionDigits: 3, signDisplay: "exceptZero" });
  const row = (name, value) => {
    const bar = make(value < 0 ? "span.fill.less" : "span.fill");
    bar.style.width = `${Math.round(260 * Math.abs(value) / largest)}px`;
    return make("tr", {}, make("td", {}, name), make("td.n", {}, number(value)), make("td", {}, bar));
  };
  const rest = terms.slice(FIRST).reduce((sum, [, v]) => sum + v, 0), body = make("tbody");
  body.append(...terms.slice(0, FIRST).map(([name, value]) => row(name, value)));
  if (terms.length > FIRST) body.append(row(fill(W.others, { n: terms.length - FIRST }), rest));
  body.append(make("tr", {}, make("th", {}, W.sum), make("th.n", {}, number(about.sum)), make("td")),
    make("tr", {}, make("th", {}, W.logit), make("th.n", {}, number(about.logit)), make("td")));
  document.body.append(make("h1", {}, about.title), make("table", {}, make("thead", {}, make("tr", {},
    make("th", {}, W.parts), make("th.n", {}, W.adds), make("th"))), body), make("p.note", {}, about.note));
  document.documentElement.dataset.ready = "1";
});
