"""Another head on a trained body: how a model that reads becomes one that labels what it reads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mirada import registry
from mirada.edit.share import share
from mirada.errors import MiradaError
from mirada.model import Model, Origin

LAST = ("score", "tag", "span")  # the layer of a head that names its labels


def with_head(model: Model, kind: str, labels: list[str] | None = None, *, seed: int = 0,
              **raw) -> Model:
    """The model with the head of its family whose name ends in `kind` (ForSequenceClassification,
    ForTokenClassification, ForQuestionAnswering), or with kind "Model" with none.

    labels: their names, in the order of the head's outputs; the same names on the same head keep
    that. raw: more keys of the config. The body is shared with the model given; a pooler that both
    heads have is kept, the rest of the head is new, by seed. Raises MiradaError.
    """
    architecture = _named(model, kind)
    told = _told(model, labels) | raw
    kept = (model.origin.raw.get("id2label") or {}) if labels else {}
    if architecture == model.architecture and kept == told.get("id2label", {}):
        return model
    fam = registry.family(model.family)
    config = model.config if labels is None else replace(model.config, labels=len(labels))
    if getattr(config, "pad", 0) is None:  # such a head finds the last token by the pads behind it
        config = replace(config, pad=told.get("pad_token_id"))
    body = _body(model, fam, config, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        alone = nn.Module()
        alone.head = head = fam.HEADS[architecture](config, body)
        fam.init(alone, config)
    old = dict(model.head.named_parameters())
    with torch.no_grad():
        for name, p in head.named_parameters():
            if name in old and old[name].shape == p.shape and name.split(".")[0] not in LAST:
                p.copy_(old[name])
    made = Model(model.family, config, body, head.to(model.device, model.dtype), architecture)
    made.tokenizer = model.tokenizer
    gone = ("architectures", "id2label", "label2id", "num_labels", "problem_type")
    origin = {name: value for name, value in model.origin.raw.items() if name not in gone}
    made.origin = Origin(raw=origin | told)
    return made.train(model.training)


def _named(model: Model, kind: str) -> str:
    heads = registry.family(model.family).HEADS
    for name in heads:
        own = name.removesuffix(kind)
        if own != name and not own.endswith("LMHead") and model.architecture.startswith(own):
            return name
    raise MiradaError(f"{model.family} has no head ...{kind}; it has {', '.join(heads)}: take a "
                      "model of another family")


def _told(model: Model, labels: list[str] | None) -> dict:
    """What config.json is to say of the labels, and of pads where it says nothing."""
    told: dict = {}
    if model.origin.raw.get("pad_token_id") is None and model.tokenizer is not None:
        pad = model.tokenizer.pad_id
        told["pad_token_id"] = min(model.tokenizer.eos_ids, default=0) if pad is None else pad
    if labels is not None:
        told["id2label"] = {str(n): name for n, name in enumerate(labels)}
        told["label2id"] = {name: n for n, name in enumerate(labels)}
    return told


def _body(model: Model, fam, config, architecture: str):
    """The body; of a family whose heads stand on different ones (Longformer), the head's own."""
    bodies = getattr(fam, "BODIES", {})
    if bodies.get(architecture) is bodies.get(model.architecture):
        return share(model).body
    body = bodies.get(architecture, fam.build)(config).to(model.device, model.dtype)
    body.load_state_dict(model.body.state_dict())
    return body
