"""The files on which llama.cpp's answers were written down, and what it answered (golden.json).

test_llamacpp.py asks the engine again where it is at hand; test_golden.py holds everywhere that
we still write the very same bytes, and that our own answers are these.
"""

import hashlib
import json
from pathlib import Path

import torch

import mirada

PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
SMALL = [5, 17, 101, 7, 900, 33, 250, 4]
FILES = {"llama F32": SMALL, "gpt2 F32": SMALL, "smollm2 Q8_0": PROMPT, "smollm2 Q4_0": PROMPT}
ANSWERS = json.loads(Path(__file__).with_name("golden.json").read_text())


def write(name: str, folder: Path, real) -> Path:
    """One of FILES. Random weights come from whole numbers: the same on every processor."""
    family, type = name.split()
    if family == "smollm2":
        model = mirada.load(real("smollm2"), dtype=torch.float32)
        return mirada.save(model, folder / "m.gguf", type=type)
    model = mirada.build(family, "tiny")
    with torch.no_grad():
        for n, p in enumerate(model.parameters()):
            codes = (torch.arange(p.numel()) * (7919 + 2 * n) % 1009).view(p.shape) - 504
            p.copy_((p.ndim == 1) + codes.double() / 2520)
    return mirada.save(model, folder / "m.gguf", type=type)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def greedy(model, ids: list[int], most: int = 12):
    """Our greedy tokens, and the logits after the prompt."""
    said, first = torch.tensor([ids]), None
    with torch.inference_mode():
        for _ in range(most):
            last = model(said).logits[0, -1]
            first = last if first is None else first
            said = torch.cat([said, last.argmax()[None, None]], 1)
    return said[0, len(ids):].tolist(), first
