"""A tokenizer of bytes with a chat template, and models that write what a test wants."""

import torch

import mirada
from mirada.text import readers
from mirada.text.stream import byte_of
from mirada.text.tokenizer import Tokenizer

TEMPLATE = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")
CONTROL = ("<system>", "<user>", "<assistant>", "<end>", "<pad>")


def tokenizer() -> Tokenizer:
    """Ids 0 to 255 are bytes, so that é takes two tokens and 😀 four; then CONTROL."""
    spec = readers.byte_level({c: b for c, b in byte_of().items()}, [], "gpt-2")
    spec["added_tokens"] = [
        {"id": 256 + n, "content": token, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False} for n, token in enumerate(CONTROL)]
    return Tokenizer(spec, readers.Settings(
        "bytes", tokens={"eos": "<end>", "pad": "<pad>"}, templates={"default": TEMPLATE}))


def speaker(**changes) -> mirada.Model:
    """A tiny GPT-2 that reads and writes bytes."""
    model = mirada.build("gpt2", size="tiny", seed=2, vocab=261, **changes)
    model.tokenizer = tokenizer()
    for p in model.parameters():
        p.data.mul_(6 if p.ndim > 1 else 1)
    return model


def saying(*texts: str, **changes) -> mirada.Model:
    """A speaker that says these texts, one a generation, each with an end token behind.

    A generation begins where more than one token is read at once.
    """
    model, answers, script = speaker(**changes), iter(texts), []

    def say(module, given, out):
        if given[0].shape[1] > 1 or not script:
            script[:] = model.tokenizer.encode(next(answers)).ids + [259]
        logits = torch.full_like(out["logits"], -9.0)
        logits[:, -1, script.pop(0)] = 9.0
        return {"logits": logits}

    model.head.register_forward_hook(say)
    return model
