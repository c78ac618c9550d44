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


def shapes(count, seed=0, side=16):
    """(N, 1, side, side) from -1 to 1, (N,): a bar that lies, one that stands, a square or a cross,
    anywhere on a noisy ground."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draw)
    corners = torch.randint(1, side - 8, (count, 2), generator=draw).tolist()
    forms = torch.zeros(4, 7, 7, dtype=torch.bool)
    forms[0, 3], forms[1, :, 3] = True, True
    forms[2, [0, -1]], forms[2, :, [0, -1]] = True, True
    forms[3] = (torch.eye(7) + torch.eye(7).flip(0)) > 0
    points = torch.rand(count, side, side, generator=draw) * 60
    for one, label, (a, b) in zip(points, labels, corners, strict=True):
        one[a : a + 7, b : b + 7][forms[label]] = 230.0
    return (points.round() / 127.5 - 1)[:, None], labels
