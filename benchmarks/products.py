"""One projection in each form it can have, in turns, against float32.

    python benchmarks/products.py
"""

import statistics
import time

import torch

from mirada.core.linear import kept
from mirada.kernels.pack import pack

OUT, IN, ROUNDS = 5632, 2048, 15
FORMS = ("I8",)  # what torch's own kernels multiply without expanding


def main() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(IN, OUT, bias=False)
    modules = {"float32": linear} | {t: kept(linear, pack(linear.weight, t), t) for t in FORMS}
    print(f"{OUT} x {IN}, {torch.get_num_threads()} threads, median of {ROUNDS} rounds in turns")
    for tokens in (1, 8, 64, 512):
        x = torch.randn(tokens, IN)
        times: dict[str, list[float]] = {name: [] for name in modules}
        with torch.inference_mode():
            for _ in range(ROUNDS + 1):
                for name, module in modules.items():
                    start = time.perf_counter()
                    module(x)
                    times[name].append(time.perf_counter() - start)
        took = {name: statistics.median(t[1:]) for name, t in times.items()}
        cells = "  ".join(f"{name} {1e3 * t:.2f} ms ({took['float32'] / t:.2f})"
                          for name, t in took.items())
        print(f"{tokens:4d} tokens  {cells}")


if __name__ == "__main__":
    main()
