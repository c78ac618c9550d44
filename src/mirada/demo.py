"""`make demo`: a real pretrained chat model answers a person, with a picture of where it looked."""

from __future__ import annotations

import sys
import time

QUESTION = "What is the capital of France?"
SENTENCE = "El gato bebió la leche porque tenía sed"  # the study guides' own example
NEXT = (
    ("mirada chat smollm2", "talk with it"),
    ('mirada look smollm2 "The pizza just came out of the oven, it was delicious" -o pizza.png',
     "see where it looks in a sentence of yours"),
    ("mirada diff bert:base gpt2:small", "what sets two famous models apart"),
)


def demo(out: str = "attention.png") -> None:
    """Load SmolLM2-135M-Instruct from the package that carries it, ask, draw, say what is next."""
    from mirada import registry
    from mirada.generate import run
    from mirada.look.describe import describe
    from mirada.look.pictures import look

    began = time.perf_counter()
    model = registry.load("smollm2")
    took = time.perf_counter() - began
    print(f"SmolLM2-135M-Instruct: {describe(model).parameters:,} parameters, loaded in "
          f"{took:.1f} s from a package (Apache-2.0)\n")
    print(f"> {QUESTION}")
    sys.stdout.flush()
    run.run(model, QUESTION, max_new_tokens=64)
    print()
    print(look(model, SENTENCE, out=out))
    print("\nTry next:")
    for command, words in NEXT:
        print(f"  {command}\n      {words}")
