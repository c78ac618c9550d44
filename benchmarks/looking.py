"""What looking inside costs, at the shape of GPT-2 small: recording, views, sweeps, pages.

Run: python benchmarks/looking.py [--all] [--json FILE] [--tokens N] [--long N]; no weights are
needed, for time and memory do not depend on them. Times are the process's CPU time, medians of
turns; memory is what Linux counts as resident.

recording   a pass with a tape over one without, and the tape's bytes over those of queries and keys
views       one head, one layer and the 64 x 64 overview of all heads, made from the tape
long        the overview of one layer of a long text: memory beyond queries and keys
sweep       each of 144 heads ablated on 64 tokens, in passes of the whole model
--all       these and what the pages cost, as one table of goals, P1 to P12; it drives Chromium, and
            bertviz where it can be imported (pip install --no-deps bertviz==1.4.1, and ipython)
"""

import argparse
import ctypes
import gzip
import importlib.util
import io
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import torch

import mirada
from mirada.look import sweeps

TURNS = 5
STATIC = Path(mirada.__file__).parent / "serve" / "static"
SLIDE = """async () => {
  const slider = document.getElementById("t"), began = performance.now();
  slider.value = "0.7";
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  const worked = performance.now() - began;
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return [worked, performance.now() - began];
}"""


def timed(work) -> tuple[float, object]:
    start = time.process_time()
    with torch.no_grad():
        made = work()
    return time.process_time() - start, made


def recording(m, tokens: int) -> dict:
    """P6: at most 1.10 of the time and 1.05 of the bytes of queries and keys."""
    ids = torch.randint(0, m.config.vocab, (1, tokens))

    def plain():
        return m(input_ids=ids, logits_to_keep=1)

    def taped():
        with m.record() as tape:
            plain()
        return tape

    timed(plain)
    turns = []
    for n in range(TURNS):
        first, second = (plain, taped) if n % 2 else (taped, plain)
        turns.append({work: timed(work)[0] for work in (first, second)})
    tape = taped()
    kept = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for runs in tape.runs.values() for run in runs for call in run
            for x in (call.q, call.k)}
    wanted = 2 * m.config.layers * tokens * m.config.d * 4
    passes = [t[plain] for t in turns]
    return {"tokens": tokens, "pass_s": statistics.median(passes),
            "time_ratio": statistics.median(t[taped] / t[plain] for t in turns),
            "fastest_ratio": min(t[taped] for t in turns) / min(passes),
            "bytes_ratio": sum(kept.values()) / wanted, "selfcheck": tape.selfcheck,
            "views": views(tape, statistics.median(passes))}


def views(tape, one_pass: float) -> dict:
    """P7, without the server's share: one head 50 ms, one layer 120 ms, overview 1.6 passes."""
    head, layer, whole = (timed(work)[0] for work in (
        lambda: tape.pattern(5, 3), lambda: tape.pattern(6), lambda: tape.pooled(64)))
    return {"head_s": head, "layer_s": layer, "overview_passes": whole / one_pass}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def long(tokens: int) -> dict:
    """P8: the overview may take 512 MB beyond queries and keys; a tile of 512 x 512, 150 ms."""
    m = mirada.build("gpt2", size="small", seed=0, context=tokens, vocab=512, layers=1)
    with torch.no_grad(), m.record() as tape:
        m(input_ids=torch.randint(0, 512, (1, tokens)), logits_to_keep=1)
    ctypes.CDLL(None).malloc_trim(0)  # what the pass gave back would hide what the overview takes
    before, most, running = resident(), [0], [True]

    def watch():
        while running:
            most[0] = max(most[0], resident())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    seconds, _ = timed(lambda: tape.pooled(64))
    running.clear()
    thread.join()
    tile, _ = timed(lambda: tape.pattern(0, 3, range(tokens // 2, tokens // 2 + 512))[..., :512])
    return {"tokens": tokens, "layer_overview_s": seconds, "extra_mb": (most[0] - before) / 1e6,
            "tile_s": tile}


def sweep(m) -> dict:
    """P11: one ablation at most 1.5 passes, all 144 at most 60."""
    ids = torch.randint(0, m.config.vocab, (1, 64))
    metric, one = sweeps.logit_difference(5, 9), {"site": "head_out", "layer": 5, "heads": [1],
                                                  "op": "mean"}

    def changed():
        with m.intervene(one):
            return m(input_ids=ids)

    plain = statistics.median(timed(lambda: m(input_ids=ids))[0] for _ in range(TURNS))
    single = statistics.median(timed(changed)[0] for _ in range(TURNS))
    whole, found = timed(lambda: sweeps.sweep(m, {"input_ids": ids, "logits_to_keep": 1}, metric))
    return {"one_passes": single / plain, "all_passes": whole / plain,
            "blocks_in_passes": found.forwards}


def row(goal: str, what: str, measured: float, most: float, unit: str) -> tuple:
    """(goal, what, at most, measured, whether it is reached) of one figure."""
    return goal, what, f"{most:,g} {unit}", f"{measured:,.3g} {unit}", measured <= most


def shipped() -> list[tuple]:
    """P1: what the Explorer's page weighs."""
    files = [f for f in STATIC.rglob("*") if f.is_file()]
    code = sum(len(gzip.compress(f.read_bytes(), 9)) for f in files if f.suffix in (".js", ".css"))
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as packed:
        for f in files:
            packed.write(f, f.name)
    return [row("P1", "JS and CSS, gzipped", code / 1e3, 120, "KB"),
            row("P1", "all static files", sum(f.stat().st_size for f in files) / 1e3, 500, "KB"),
            row("P1", "these in the wheel", len(wheel.getvalue()) / 1e3, 600, "KB")]


def pages() -> list[tuple]:
    """P9, P10 and P12: pages that views write, beside bertviz's, drawn without a network."""
    import views
    from playwright.sync_api import sync_playwright

    bertviz = importlib.util.find_spec("bertviz") and importlib.util.find_spec("IPython")
    asked, sizes = [], {}
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"),
                                       args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("request", lambda request: asked.append(request.url))

        def opened(text: str) -> float:
            path = Path(folder) / "view.html"
            path.write_text(text, encoding="utf-8")
            began = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]")
            return time.perf_counter() - began

        for layers, tokens in ((12, 128), (1, 512)):
            weights, words = views.attention(layers, tokens), [f"token{n}" for n in range(tokens)]
            made = views.ours("head", weights, words)
            sizes[tokens] = len(made) / 1e6
            opened(made)
        theirs = len(views.theirs("head", *widest())) / 1e6 if bertviz else None
        m = mirada.build("gpt2", size="tiny", seed=0, vocab=131072)
        with torch.no_grad(), m.record(resid=True) as tape:
            m(input_ids=torch.arange(8)[None])
        opened(mirada.look.next_token(tape).html())
        turns = [page.evaluate(SLIDE) for _ in range(TURNS)]
        browser.close()
    painted = statistics.median(painted for _, painted in turns)
    outside = [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]
    beside = [("P9", "bertviz's, times as large", "30 times", "it is not installed", None)]
    if theirs is not None:
        times = theirs / sizes[128]
        beside = [("P9", f"bertviz's {theirs:.1f} MB are", "30 times", f"{times:.0f} times",
                   times >= 30)]
    return [row("P9", "head view, 12 x 12 at 128 tokens", sizes[128], 3.5, "MB"), *beside,
            row("P9", "head view, a layer at 512 tokens", sizes[512], 4.5, "MB"),
            row("P10", "a slider moved to painted, 128k words", painted, 50, "ms"),
            row("P12", "requests to another host by these pages", len(outside), 0, "")]


def widest():
    """What bertviz is given: the head view of P9."""
    import views
    return views.attention(12, 128), [f"token{n}" for n in range(128)]


def goals(found: dict) -> list[tuple]:
    """Every goal's figures. Those of the page are measured by explorer.py; that no screen of it
    asks another host, tests/e2e sees to."""
    import explorer
    r, s, v, far = found["recording"], found["sweep"], found["recording"]["views"], found["long"]
    rows = [*shipped(), *explorer.rows(), *pages(),
            row("P6", "recording, of the time without", r["time_ratio"], 1.10, "times"),
            row("P6", "the tape, of the bytes of Q and K", r["bytes_ratio"], 1.05, "times"),
            row("P7", "a head, in Python", v["head_s"] * 1e3, 50, "ms"),
            row("P7", "a layer, in Python", v["layer_s"] * 1e3, 120, "ms"),
            row("P7", "overview of 144 heads, in Python", v["overview_passes"], 1.6, "passes"),
            row("P8", f"overview at {far['tokens']:,} tokens, more", far["extra_mb"], 512, "MB"),
            row("P8", "a tile of 512 x 512 there", far["tile_s"] * 1e3, 150, "ms"),
            row("P11", "one head ablated", s["one_passes"], 1.5, "passes"),
            row("P11", "all 144 heads ablated", s["all_passes"], 60, "passes")]
    return sorted(rows, key=lambda row: int(row[0][1:]))


def table(rows: list[tuple]) -> str:
    """The goals in Markdown."""
    said = {True: "reached", False: "**missed**", None: "not measured"}
    lines = [f"| {' | '.join(figures)} | {said[ok]} |" for *figures, ok in rows]
    return "\n".join(["| | | goal | measured | |", "|---|---|---|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every goal, pages too, as one table")
    parser.add_argument("--json", type=Path, help="write the figures into this file too")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--long", type=int, default=8192)
    given = parser.parse_args()
    torch.manual_seed(0)
    m = mirada.build("gpt2", size="small", seed=0)
    print("recording, sweeping and a long text", file=sys.stderr)
    found = {"threads": torch.get_num_threads(), "recording": recording(m, given.tokens),
             "sweep": sweep(m)}
    del m
    found["long"] = long(given.long)
    if given.all:
        print("pages", file=sys.stderr)
        found["goals"] = goals(found)
    print(table(found["goals"]) if given.all else json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
