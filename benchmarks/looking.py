"""Looking inside at the shape of GPT-2 small: what recording costs, and a sweep over all heads.

Run: python benchmarks/looking.py [--json FILE] [--tokens N] [--long N]; no weights are needed, for
time and memory do not depend on them. Times are the process's CPU time, medians of turns; memory
is what Linux counts as resident.

recording   a pass with a tape over one without, and the tape's bytes over those of queries and keys
views       one head, one layer and the 64 x 64 overview of all heads, made from the tape
long        the overview of one layer of a long text: memory beyond queries and keys
sweep       each of 144 heads ablated on 64 tokens, in passes of the whole model
"""

import argparse
import ctypes
import json
import statistics
import threading
import time
from pathlib import Path

import torch

import mirada
from mirada.look import sweeps

TURNS = 5


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures into this file too")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--long", type=int, default=8192)
    given = parser.parse_args()
    torch.manual_seed(0)
    m = mirada.build("gpt2", size="small", seed=0)
    found = {"threads": torch.get_num_threads(), "recording": recording(m, given.tokens),
             "sweep": sweep(m)}
    del m
    found["long"] = long(given.long)
    words = json.dumps(found, indent=1)
    print(words)
    if given.json:
        given.json.write_text(words + "\n")


if __name__ == "__main__":
    main()
