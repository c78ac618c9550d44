"""CLIP: texts and pictures in one space, each matched with its own (Radford et al., 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.block import Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.heads import Classifier
from mirada.core.init import normal
from mirada.errors import MiradaError
from mirada.models import clip_text, clip_vision
from mirada.weights import config as configs
from mirada.weights.config import ANY, key, nested
from mirada.weights.rows import Weights

KIND = "dual-encoder"


@dataclass(frozen=True)
class Config:
    text: clip_text.Config = nested("text_config", clip_text.Config, clip_text.INERT)
    vision: clip_vision.Config = nested("vision_config", clip_vision.Config, clip_vision.INERT)
    projection: int = key("projection_dim", 512, low=1)
    scale: float = key("logit_scale_init_value", 2.6592)  # log of 1 / 0.07
    labels: int = 2

    # What others ask of any config: words are the text tower's, the rest the picture's.
    vocab = property(lambda self: self.text.vocab)
    context = property(lambda self: self.text.context)
    pad = property(lambda self: self.text.pad)
    eos = property(lambda self: self.text.eos)
    image = property(lambda self: self.vision.image)
    channels = property(lambda self: self.vision.channels)
    d = property(lambda self: self.vision.d)
    layers = property(lambda self: self.vision.layers)
    heads = property(lambda self: self.vision.heads)

    def __post_init__(self):
        if self.text.d % self.text.heads:
            raise MiradaError(f"text_config.num_attention_heads: a width of {self.text.d} cannot "
                              f"be cut into {self.text.heads} heads")

    @staticmethod
    def prepare(raw: dict) -> dict:
        """The first files say some of a tower's keys beside its object; these and the defaults
        stand over what is in it, as in the reference."""
        for name, tower in (("text_config", clip_text), ("vision_config", clip_vision)):
            beside = raw.pop(f"{name}_dict", None)
            if beside is not None:
                raw[name] = (raw.get(name) or {}) | configs.write(tower.Config()) | beside
        return raw


class Towers(nn.Module):
    """A stack for texts and one for pictures: {"text": (B, T, D), "vision": (P, N, D')}, of what
    is given. Neither sees the other."""

    def __init__(self, vision: Stack, text: Stack | None = None):
        super().__init__()
        self.text, self.vision = text, vision

    def forward(self, inputs: Inputs, ctx: Ctx, cache=None) -> dict[str, Tensor]:
        seen = {}
        if inputs.input_ids is not None:
            if self.text is None:
                raise MiradaError("this head looks at pictures alone: leave input_ids out")
            seen["text"] = self.text(inputs, ctx)
        if inputs.pixel_values is not None:
            seen["vision"] = self.vision(replace(inputs, input_ids=None), Ctx())
        if not seen:
            raise MiradaError("this model reads texts and pictures: give input_ids, pixel_values "
                              "or both")
        return seen


def build(c: Config) -> Towers:
    return Towers(clip_vision.build(c.vision), clip_text.build(c.text))


class Matched(nn.Module):
    """Unit vectors of texts and pictures, and how well each text fits each picture.

    text_embeds (B, P), image_embeds (I, P); of both, logits_per_image (I, B) and its transpose:
    cosines times exp(scale). return_loss=True gives the loss of pairs in their order.
    """

    def __init__(self, c: Config):
        super().__init__()
        self.text = clip_text.projected(c.text, c.projection)
        self.vision = clip_vision.projected(c.vision, c.projection)
        self.scale = nn.Parameter(torch.tensor(c.scale))

    def forward(self, x: dict[str, Tensor], inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        found = {}
        for tower, stream in x.items():
            head = getattr(self, tower)
            found[head.name] = F.normalize(head(stream, inputs, ctx)[head.name], dim=-1)
        if len(found) == 1:
            return found
        texts = found["text_embeds"] @ found["image_embeds"].T * self.scale.exp()  # (B, I)
        return {"logits_per_image": texts.T, "logits_per_text": texts} | found

    @staticmethod
    def loss(outputs: dict, return_loss: bool) -> Tensor:
        """The mean of both cross-entropies: of each text's picture and of each picture's text
        (figure 3)."""
        if "logits_per_text" not in outputs or len(set(outputs["logits_per_text"].shape)) > 1:
            raise MiradaError("the contrastive loss is of pairs: give as many texts as pictures, "
                              "each at its picture's place")
        texts = outputs["logits_per_text"]
        own = torch.arange(len(texts), device=texts.device)
        return (F.cross_entropy(texts, own) + F.cross_entropy(texts.T, own)) / 2


class MeanOfPatches(nn.Module):
    """The vision tower's patches, averaged."""

    def forward(self, x: dict[str, Tensor], inputs: Inputs, ctx: Ctx) -> Tensor:
        return x["vision"][:, 1:].mean(1)


HEADS = {
    "CLIPModel": lambda c, body: Matched(c),
    "CLIPForImageClassification": lambda c, body: Classifier(c.vision.d, c.labels,
                                                             MeanOfPatches()),
}
BODIES = {"CLIPForImageClassification": lambda c: Towers(clip_vision.build(c.vision))}


def weights(c: Config) -> Weights:
    return Weights([
        *clip_text.rows("text.", "head.text."),
        *clip_vision.rows("vision.", "head.vision."),
        ("logit_scale", "head.scale"),
        ("classifier.{p}", "head.score.{p}"),
    ], derived=clip_text.derived(c.text) | clip_vision.derived(c.vision),
        carried=("vision_model.post_layernorm.{p}",))


@torch.no_grad()
def init(model, c: Config) -> None:
    normal(model, 0.02)
    clip_vision.begin(model.body.vision)
    if model.body.text is None:
        model.head.score.weight.normal_(0, c.vision.d**-0.5)
        return
    clip_text.narrowed(model.body.text)
    model.head.text.pool.dense.weight.normal_(0, c.text.d**-0.5)
    model.head.vision.pool.dense.weight.normal_(0, c.vision.d**-0.5)
    model.head.scale.fill_(c.scale)


INERT = {"initializer_factor": ANY}
_14 = Config(clip_text.SIZES["large"], clip_vision.SIZES["large-14"], 768)
SIZES = {
    "base-32": Config(), "base-16": Config(vision=clip_vision.SIZES["base-16"]),
    "large-14": _14, "large-14-336": replace(_14, vision=clip_vision.SIZES["large-14-336"]),
    "tiny": Config(clip_text.SIZES["tiny"], clip_vision.SIZES["tiny"], 32),
}
