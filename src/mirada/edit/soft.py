"""Prompt tuning (2104.08691): a few learned vectors in front of what a frozen model reads."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.context import Inputs
from mirada.errors import MiradaError, UntrustedInputError
from mirada.model import Caches, Model, Output
from mirada.weights import jsonfile, tensorfile
from mirada.weights.paths import inside, new_folder

from .frozen import frozen
from .share import share, stacks

CARRIES = "it reads soft tokens, which mirada.edit.save_prompt writes alone"
NAME = "prompt_embeddings"  # as PEFT's files call them


class Prompted(Model):
    """A model that reads soft tokens before each row; its outputs are of the tokens it was given.

    soft: (P, D), all of it that trains. Of an encoder-decoder they stand before the source.
    """

    soft: nn.Parameter

    @property
    def context(self) -> int | None:
        whole = super().context
        return None if whole is None else whole - len(self.soft)

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *,
                encoder_outputs=None, cache: Caches | None = None, labels=None,
                logits_to_keep: int = 0, **more) -> Output:
        """As Model.forward, without inputs_embeds, position_ids and segment_ids."""
        if more.keys() & {"inputs_embeds", "position_ids", "segment_ids"}:
            raise MiradaError("before soft tokens a model is called with input_ids and "
                              "attention_mask alone")
        mask = attention_mask if attention_mask is None else self._behind(attention_mask, 1)
        if self.encoder_decoder:
            memory = self.encode(input_ids, attention_mask) if encoder_outputs is None else (
                encoder_outputs)
            return super().forward(attention_mask=mask, encoder_outputs=memory, cache=cache,
                                   labels=labels, logits_to_keep=logits_to_keep, **more)
        if not isinstance(cache, Behind | None):
            raise MiradaError("soft tokens go into a cache of the model's own: use new_cache()")
        begins = cache is None or len(cache.length) == 0
        embeds = self._read(input_ids) if begins else stacks(self)[0].embed.token(input_ids)
        out = super().forward(
            inputs_embeds=embeds, attention_mask=mask, cache=cache, logits_to_keep=logits_to_keep,
            labels=labels if labels is None else self._behind(labels, -100), **more)
        if begins and logits_to_keep == 0:
            out["logits"] = out["logits"][:, len(self.soft) :]
        return out

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The memory (B, P + S, D); forward puts the soft tokens into its attention_mask too."""
        mask = attention_mask if attention_mask is None else self._behind(attention_mask, 1)
        inputs = Inputs(inputs_embeds=self._read(input_ids))
        return self.body.encode(inputs, self._ctx(inputs, mask, None, None, None))

    def new_cache(self, kind: str = "growing", **options) -> Caches:
        caches = Behind(super().new_cache(kind, **options))
        caches.soft = 0 if self.encoder_decoder else len(self.soft)
        return caches

    def _read(self, ids: Tensor) -> Tensor:
        """Soft tokens and the rows' own: (B, P + T, D)."""
        self._check_ids(ids, self.config.vocab)
        embeds = stacks(self)[0].embed.token(ids)
        return torch.cat([self.soft.to(embeds.dtype).expand(len(ids), -1, -1), embeds], 1)

    def _behind(self, rows: Tensor, fill: int) -> Tensor:
        return F.pad(rows, (len(self.soft), 0), value=fill)


class Behind(Caches):
    """Caches that begin with soft tokens, which callers do not count."""

    soft = 0

    def crop(self, lengths: Tensor | int) -> None:
        super().crop(lengths + self.soft)


def prompt(model: Model, tokens: int = 20, text: str | None = None, *,
           seed: int | None = None) -> Prompted:
    """The model, frozen, behind `tokens` soft ones that train; the one given stays.

    They begin as vectors of the vocabulary (sec. 3.2): of `text`, over and over, or of tokens drawn
    by chance; seed: None: torch's current state. Raises MiradaError.
    """
    if not model.generates or isinstance(model, Prompted):
        raise MiradaError(f"{model.architecture} "
                          + ("has soft tokens already" if model.generates else "does not write")
                          + ": prompts are tuned for a language model without one")
    if type(tokens) is not int or not 0 < tokens < (model.context or tokens + 1):
        raise MiradaError(f"tokens={tokens!r} is a whole number from 1, and leaves the model room "
                          f"to read: it has {model.context} places")
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        ids = torch.randint(model.config.vocab, (tokens,))
    if text is not None:
        found = model.tokenizer.encode(text, special=False).ids
        if not found:
            raise MiradaError("the text that soft tokens begin as is empty")
        ids = torch.tensor([found[n % len(found)] for n in range(tokens)])
    table = stacks(model)[0].embed.token
    with torch.no_grad():
        return _with(model, table(ids.to(model.device)), train=True)


def save_prompt(model: Prompted, path) -> Path:
    """Write the soft tokens into a new folder, as PEFT has them; the folder."""
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": len(model.soft),
              "token_dim": model.soft.shape[1], "prompt_tuning_init": "RANDOM",
              "task_type": "SEQ_2_SEQ_LM" if model.encoder_decoder else "CAUSAL_LM",
              "base_model_name_or_path": model.origin.path, "inference_mode": True}

    def write(folder: Path) -> None:
        tensorfile.write_file(folder / "adapter_model.safetensors",
                              [(NAME, model.soft.detach())], {"format": "pt"})
        jsonfile.write(folder / "adapter_config.json", config)

    return new_folder(path, write)


def load_prompt(model: Model, path, *, train: bool = False) -> Prompted:
    """The model behind the soft tokens of a folder that save_prompt or PEFT wrote. Raises
    MiradaError."""
    where = Path(path) / "adapter_config.json"
    config = jsonfile.read(where)
    if not isinstance(config, dict) or config.get("peft_type") != "PROMPT_TUNING":
        raise UntrustedInputError(where, "peft_type", "must be \"PROMPT_TUNING\"")
    file = inside(path, "adapter_model.safetensors", where)
    with tensorfile.open_file(file) as held:
        width = stacks(model)[0].embed.token.embedding_dim
        shape = held.shape(NAME) if NAME in held else ()
        if len(shape) != 2 or shape[1] != width or shape[0] == 0:
            raise UntrustedInputError(file, NAME, f"must be (tokens, {width}), not {list(shape)}")
        return _with(model, held.get(NAME), train)


def _with(model: Model, soft: Tensor, train: bool) -> Prompted:
    other = frozen(share(model, CARRIES))
    other.__class__ = Prompted
    wide = torch.promote_types(model.dtype, torch.float32)
    other.soft = nn.Parameter(soft.to(model.device, wide), requires_grad=train)
    return other
