"""Small texts with something to learn in them, and tokenizers and models that fit them."""

import json
import random
import tempfile
from pathlib import Path

import torch

import mirada
from mirada import registry
from mirada.core.init import normal
from mirada.text import Tokenizer
from mirada.text.train import train
from mirada.train.corpus import Corpus

ANIMALS = {"gato": "bebe leche", "perro": "muerde huesos", "caballo": "come hierba",
           "pájaro": "canta canciones", "ratón": "roba queso", "pez": "busca algas"}
WHEN = ["hoy", "siempre", "aquí", "fuera", "tarde", "solo"]
COLOURS = ["blanco", "negro", "gris", "viejo", "pequeño"]


def spanish(count=400, seed=0):
    """Sentences of seven words in which the animal says what it does, whatever else is said."""
    draw = random.Random(seed)
    return [f"el {animal} {draw.choice(COLOURS)} {ANIMALS[animal]} {draw.choice(WHEN)} ."
            for animal in draw.choices(list(ANIMALS), k=count)]


def stories(count=120, seed=0, length=(4, 8)):
    """Documents of several sentences, each document about one animal."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        animal = draw.choice(list(ANIMALS))
        does, what = ANIMALS[animal].split()
        lines = [draw.choice([f"el {animal} {does} {what} {draw.choice(WHEN)} .",
                              f"veo {what} y un {animal} {draw.choice(COLOURS)} .",
                              f"el {animal} {draw.choice(COLOURS)} {does} {draw.choice(WHEN)} ."])
                 for _ in range(draw.randint(*length))]
        made.append(" ".join(lines))
    return made


def tokenizer(texts, kind="wordpiece", special=()):
    """Every word is a token; of kind "bpe", every byte."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        file.write_text("\n".join(texts))
        size = 257 + len(special) if kind == "bpe" else 1000
        made = Path(train([str(file)], kind, size, Path(folder) / "made", special=special).folder)
        spec = json.loads((made / "tokenizer.json").read_text())
        roles = [token["content"] for token in spec["added_tokens"]]
        words = sorted({word for text in texts for word in text.split()})
        if kind == "wordpiece":
            spec["model"]["vocab"] = {token: i for i, token in enumerate([*roles, *words])}
        elif kind == "unigram":
            spec["model"]["vocab"] = [[token, 0.0] for token in roles] + [
                ["▁" + word, -1.0] for word in words]
        (made / "tokenizer.json").write_text(json.dumps(spec))
        return Tokenizer.from_folder(made)


def corpus(tokenizer, texts):
    """The texts' tokens, an end token behind each where there is one."""
    end = sorted(tokenizer.eos_ids)[:1]
    return Corpus.of([tokenizer.encode(text, special=False).ids + end for text in texts])


def model(name, tokenizer, architecture=None, std=None, **changes):
    """A small model that reads with the tokenizer. std: of its first weights; the families' own
    0.02 is made for widths of 768, and at 32 the sublayers say next to nothing for long."""
    own = registry.family(name.partition(":")[0]).Config.__dataclass_fields__
    told = {"vocab": tokenizer.size, "pad": tokenizer.pad_id, "start": tokenizer.pad_id,
            "eos": min(tokenizer.eos_ids, default=None)}
    told = {n: v for n, v in told.items() if n in own and v is not None}
    made = mirada.build(name, architecture=architecture, seed=1, **told | changes)
    if std is not None:
        torch.manual_seed(0)
        normal(made, std)
    made.tokenizer = tokenizer
    return made
