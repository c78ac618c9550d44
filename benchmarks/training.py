"""A training step of GPT-2 beside transformers': tokens a second, and share of the machine.

Run: python benchmarks/training.py [--shape gpt2|small|tiny] [--against eager,compile] [--steps N]
     [--rounds N] [--threads N] [--json FILE]
Each side runs in processes of its own, in turn; a round gives the median of its steps behind the
first two. Both: bfloat16 autocast over float32 weights, clipped gradients, fused AdamW, the same
random tokens. The peak is measured in the run: the best of some bfloat16 products of 2,048 x 2,048.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

# name -> (rows, tokens in a row, layers, width, heads, vocabulary)
SHAPES = {"gpt2": (4, 512, 12, 768, 12, 50257), "small": (32, 256, 6, 384, 6, 4096),
          "tiny": (2, 32, 2, 32, 2, 97)}
SIDES = ("mirada", "eager", "compile")
PEAK = 2048


def ids(shape: str, seed: int = 0) -> torch.Tensor:
    rows, length, *_, vocab = SHAPES[shape]
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def ours(shape: str, steps: int) -> list[float]:
    """Seconds of each step."""
    import mirada
    from mirada.train.allocator import keep_freed
    from mirada.train.corpus import Corpus
    from mirada.train.language import NextToken
    from mirada.train.loop import Plan, fit
    from mirada.train.optim import Recipe
    rows, length, layers, width, heads, vocab = SHAPES[shape]
    keep_freed()
    model = mirada.build("gpt2:small", layers=layers, d=width, heads=heads, vocab=vocab)
    objective = NextToken(Corpus.of(ids(shape).tolist()), length)
    began, seconds = time.perf_counter(), []

    def watch(line: dict) -> None:
        nonlocal began
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()

    fit(model, objective, Plan(steps=steps, batch=rows, dtype="bfloat16"), Recipe(), watch=watch)
    return seconds


def theirs(shape: str, steps: int, compiled: bool) -> list[float]:
    from transformers import GPT2Config, GPT2LMHeadModel
    rows, length, layers, width, heads, vocab = SHAPES[shape]
    model = GPT2LMHeadModel(GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocab, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01, fused=True)
    run = torch.compile(model) if compiled else model
    seconds, given = [], ids(shape)
    for _ in range(steps):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(input_ids=given, labels=given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        float(loss)
        seconds.append(time.perf_counter() - began)
    return seconds


def child(side: str, shape: str, steps: int) -> dict:
    """What one process finds."""
    began = time.perf_counter()
    seconds = (ours(shape, steps) if side == "mirada"
               else theirs(shape, steps, side == "compile"))
    import resource
    return {"seconds": statistics.median(seconds[2:]), "first": seconds[0],
            "all": time.perf_counter() - began,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def peak() -> float:
    """FLOP/s of the machine's best bfloat16 product, now."""
    a = torch.ones(PEAK, PEAK, dtype=torch.bfloat16)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - began)
    return 2.0 * PEAK**3 / min(times)


def flops(shape: str) -> float:
    """Of a step: 6 a weight that is multiplied and token, 12 L D T a token for attention."""
    rows, length, layers, width, _, vocab = SHAPES[shape]
    weights = 12 * layers * width**2 + vocab * width
    return rows * length * (6.0 * weights + 12.0 * layers * width * length)


def measured(shape: str, sides: list[str], steps: int, rounds: int, threads: int) -> dict:
    found: dict[str, list[dict]] = {side: [] for side in sides}
    peaks = []
    for _ in range(rounds):
        peaks.append(peak())
        for side in sides:
            words = [sys.executable, __file__, "--child", side, "--shape", shape, "--steps",
                     str(steps), "--threads", str(threads)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    rows, length = SHAPES[shape][:2]
    best = statistics.median(peaks)
    middle = {s: {k: statistics.median(x[k] for x in every) for k in every[0]}
              for s, every in found.items()}
    return {"shape": shape, "threads": threads, "peak_gflops": best / 1e9, "sides": {
        side: m | {"tokens_per_second": rows * length / m["seconds"],
                   "share": flops(shape) / m["seconds"] / best,
                   "mirada_faster": m["seconds"] / middle["mirada"]["seconds"]}
        for side, m in middle.items()}}


def told(found: dict) -> str:
    lines = [f"{found['shape']}, {found['threads']} threads; products: "
             f"{found['peak_gflops']:,.0f} GFLOP/s in bfloat16",
             f"{'':10} tokens/s  share  mirada is  first step  memory"]
    for side, m in found["sides"].items():
        lines.append(f"{side:10} {m['tokens_per_second']:8,.0f}  {m['share']:5.1%}  "
                     f"{m['mirada_faster']:8.2f}x  {m['first']:8.1f} s  {m['peak_mib']:,.0f} MiB")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--against", default="eager")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=SIDES)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shapes = args.shape or ["gpt2", "small"]
    if args.child:
        print(json.dumps(child(args.child, shapes[0], args.steps)))
        return
    sides = ["mirada", *(s for s in args.against.split(",") if s)]
    every = [measured(shape, sides, args.steps, args.rounds, args.threads) for shape in shapes]
    print("\n\n".join(map(told, every)))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(every, file, indent=1)


if __name__ == "__main__":
    main()
