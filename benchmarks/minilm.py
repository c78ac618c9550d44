"""Sentence embedding with a real MiniLM: mirada against transformers, in turns on this machine.

Run: python benchmarks/minilm.py [--json FILE] [--rounds N]; it needs what real-packages.txt names.
A batch of 32 texts becomes 32 vectors: the mean over real tokens, of length one, which is what
sentence-transformers does around BertModel. Figures are medians over rounds in which both sides run
one after the other, first one and then the other going first; a ratio above 1 means that mirada is
the faster. The last column is the ratio of each side's fastest round, which other work on the
machine disturbs less. Both sides' vectors are compared before anything is timed.
"""

import argparse
import json
import os
import random
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
import transformers

import mirada
from mirada import shelf
from mirada.tasks.features import swift

BATCH = 32
LENGTHS = {"32 tokens": (32, 32), "128 tokens": (128, 128), "8 to 128": (8, 128)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLOSE = {"fp32": 1e-5, "bf16": 2e-2}  # largest difference of two unit vectors' coordinates


def texts(tokenizer, low: int, high: int) -> list[str]:
    """A batch of texts of whole words, from `low` to `high` tokens with [CLS] and [SEP]."""
    draw = random.Random(0)
    words = sorted(w for w in tokenizer.get_vocab() if w.isalpha() and w.isascii() and len(w) > 2)
    counts = [low + (high - low) * n // (BATCH - 1) - 2 for n in range(BATCH)]
    draw.shuffle(counts)
    return [" ".join(draw.choices(words, k=count)) for count in counts]


def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, D): the mean over real tokens, of length one."""
    real = mask[..., None].to(states.dtype)
    return F.normalize((states * real).sum(1) / real.sum(1), dim=-1)


def sides(folder: str, kind: str, some: list[str]) -> dict[str, tuple]:
    """What is timed: "model" from ids to vectors, "text" from text to vectors; theirs and ours.

    swift is the model as mirada.embed runs it, its weights packed for the CPU on first use.
    """
    theirs = transformers.BertModel.from_pretrained(folder, dtype=DTYPES[kind]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = mirada.load(folder, dtype=DTYPES[kind])
    bare, batch = swift(ours), dict(tokenizer(some, padding=True, return_tensors="pt"))

    @torch.inference_mode()
    def their_model(batch=batch):
        return pooled(theirs(**batch).last_hidden_state, batch["attention_mask"])

    def their_text():
        return their_model(dict(tokenizer(some, padding=True, return_tensors="pt")))

    @torch.inference_mode()
    def our_model():
        return pooled(bare(**batch).last_hidden_state, batch["attention_mask"])

    def our_text():
        return mirada.embed(ours, some, normalize=True, batch_size=BATCH)

    return {"model": (their_model, our_model), "text": (their_text, our_text)}


def seconds(act) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def compare(theirs, ours, rounds: int, close: float) -> tuple[list[float], list[float]]:
    """Seconds of each, in turns, after one run of each whose vectors must agree."""
    apart = float((theirs().float() - ours().float()).abs().max())
    if not apart <= close:
        raise SystemExit(f"the two sides differ by {apart:.2g}, more than {close:.0e}")
    taken: tuple[list[float], list[float]] = ([], [])
    for n in range(rounds):
        for side in ((0, 1), (1, 0))[n % 2]:
            taken[side].append(seconds((theirs, ours)[side]))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    args = parser.parse_args()
    folder, found = str(shelf.find("minilm")), []
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; medians of "
          f"{args.rounds} rounds, ms a batch of {BATCH}")
    print(f"{'':34}{'transformers':>12} {'mirada':>9}  ratio  fastest")
    for kind in args.dtypes:
        for length, (low, high) in LENGTHS.items():
            for part, pair in sides(folder, kind, texts(tokenizer, low, high)).items():
                for threads in args.threads:
                    torch.set_num_threads(threads)
                    taken = compare(*pair, args.rounds, CLOSE[kind])
                    theirs, ours = map(statistics.median, taken)
                    best = min(taken[0]) / min(taken[1])
                    found.append({"dtype": kind, "length": length, "from": part,
                                  "threads": threads, "transformers_s": theirs, "mirada_s": ours,
                                  "ratio": theirs / ours, "ratio_of_fastest": best})
                    print(f"{kind}, {length:10}, from {part:5}, {threads} thread"
                          f"{'s' * (threads > 1):1}{theirs * 1e3:12.1f} {ours * 1e3:9.1f}  "
                          f"{theirs / ours:.3f}    {best:.3f}", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"torch": torch.__version__, "transformers": transformers.__version__,
                       "rounds": args.rounds, "batch": BATCH, "figures": found}, file, indent=2)


if __name__ == "__main__":
    main()
