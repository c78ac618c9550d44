"""The model with its cache, as a search sees it: tokens go in, scores of the next come out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.edit import lower
from mirada.edit.lowered import lowered
from mirada.errors import MiradaError
from mirada.model import Caches, Model

from .budget import Purse
from .defaults import token_id
from .options import Options, whole
from .rows import Rows


class Feed:
    """A checked prompt, the room for its answer, and the cache that grows as tokens go in.

    options: with their lengths in new tokens. start (B, T): what the answer is appended to: the
    prompt, or an encoder-decoder's first id. room: how many tokens may be written. fed: how many
    of each row the cache holds.
    """

    def __init__(self, model: Model, input_ids, attention_mask, options: Options):
        self.model = model
        self.prompt = self.start = _batch(model, input_ids)
        self.mask = _padding(model, self.prompt, attention_mask, options)
        self.memory = options.encoder_outputs
        if model.encoder_decoder:
            self.start = self.prompt.new_full((len(self.prompt), 1), _first_id(model, options))
        self.options = options = options.sized(self.start.shape[1])
        self.room = _room(model, self.prompt, self.start, options)
        self.purse: Purse | None = None  # of a new cache of torch's
        self.cache, self.fed = self._cache(), 0
        if self.cache is options.cache:
            self.fed = _held(options.cache, self.start)

    def _cache(self) -> Caches | Rows:
        """The cache that was given, or a new one: the native runtime's own where that can run."""
        o, native = self.options, lower.ready(self.model)
        if isinstance(o.cache, Caches) or (isinstance(o.cache, Rows) and native is not None
                                           and o.cache.native.stamp == native.stamp):
            return o.cache
        if isinstance(o.cache, Rows):  # somebody listens to the modules now, or their weights are
            kept = o.cache.native.cache  # others: read all again
            return Rows(native, kept) if native else self.model.new_cache()
        named = isinstance(o.cache, str) and o.cache in lower.CACHES
        if native is not None and (named or o.cache == "growing"):
            return Rows(native, o.cache if named else None, o.codes)
        if named or o.codes is not None:
            what = f"a cache in {o.cache}" if named else f"codes={o.codes}"
            runs = (f"this model runs with {lower.path(self.model)}" if native is None else
                    f"cache={o.cache!r} is torch's")
            raise MiradaError(f"{what} is the native runtime's, and {runs}")
        ahead = o.num_assistant_tokens if o.assistant_model else o.prompt_lookup_num_tokens
        most, copies = self.start.shape[1] + self.room, max(o.num_beams, o.num_return_sequences)
        source = self.prompt.shape[1] if self.model.encoder_decoder else 0
        self.purse = Purse(self.model, o.cache, len(self.start) * copies, most, source)
        self.purse.reach(self.start.shape[1])
        return self.model.new_cache(o.cache, size=most, margin=ahead)

    @property
    def first(self) -> Tensor | None:
        """(B,) where each row begins behind its pads; None when no row has any."""
        if self.mask is None or self.model.encoder_decoder:
            return None
        return self.mask.long().argmax(1)

    def begin(self, copies: int = 1) -> Tensor:
        """Scores (B * copies, V) after the prompt, which is read once and then copied."""
        if self.model.encoder_decoder:
            self._source()
        scores = self(self.start[:, self.fed :])
        if copies == 1:
            return scores
        index = torch.arange(len(scores), device=scores.device).repeat_interleave(copies)
        self.reorder(index)
        return scores[index]

    def _source(self) -> None:
        """Read the source once: torch's decoder wants its states, the runtime's their keys."""
        if not isinstance(self.cache, Rows):
            if self.memory is None:
                self.memory = self.model.encode(self.prompt, self.mask)
        elif not self.cache.memory:
            states = self.memory
            if states is None:
                states = lowered(self.model).encode(self.prompt, self.mask)
            self.cache.remember(states, self.mask)
            self.memory = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Take in tokens (B, T); scores (B, V) of the one after, in float32 or wider."""
        return self.scores(tokens, 1)[:, -1]

    def scores(self, tokens: Tensor, keep: int) -> Tensor:
        """Take in tokens (B, T); scores (B, keep, V) of what comes after each of the last."""
        if isinstance(self.cache, Rows):
            return self._native(self.cache, tokens, keep)
        if self.model.encoder_decoder:
            given = {"decoder_input_ids": tokens, "encoder_outputs": self.memory}
        else:
            self._widen(self.fed + tokens.shape[1])
            given = {"input_ids": tokens}
        if self.purse is not None:
            self.purse.reach(self.fed + tokens.shape[1])
        out = self.model(**given, attention_mask=self.mask, cache=self.cache, logits_to_keep=keep)
        self.fed += tokens.shape[1]
        return out.logits[:, -keep:].to(torch.promote_types(out.logits.dtype, torch.float32))

    def _native(self, rows: Rows, tokens: Tensor, keep: int) -> Tensor:
        """The runtime's rows know no pads."""
        if tokens.shape[1] > 1:  # a chosen token is of the vocabulary
            own = getattr(self.model.config, "target", None)  # of an encoder-decoder's answers
            self.model._check_ids(tokens, own or self.model.config.vocab)
        first, self.fed = self.fed, self.fed + tokens.shape[1]
        if self.model.encoder_decoder:  # the mask is the source's
            return rows(tokens.tolist(), keep)
        self._widen(self.fed)
        if self.mask is None:
            return rows(tokens.tolist(), keep)
        real = self.mask[:, first : self.fed].bool()
        return rows([row[r].tolist() for row, r in zip(tokens, real, strict=True)], keep)

    def crop(self, length: int) -> None:
        """Take back all but the first `length` tokens."""
        padded = self.first is not None and isinstance(self.cache, Rows)
        self.cache.crop(self.mask[:, :length].sum(1).tolist() if padded else length)
        self.fed = length
        if self.mask is not None and not self.model.encoder_decoder:
            self.mask = self.mask[:, :length]

    def _widen(self, width: int) -> None:
        """The mask grows with the answer, whose tokens are all real."""
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, width - self.mask.shape[1]), value=1)

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was; index may be longer than the batch."""
        self.cache.reorder(index)
        self.memory = None if self.memory is None else self.memory[index]
        self.mask = None if self.mask is None else self.mask[index]


def _batch(model: Model, ids) -> Tensor:
    """(B, T) ids on the model's device, from a tensor, a list of ids or a list of rows."""
    try:
        ids = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        raise MiradaError("input_ids must be whole numbers, in rows of one length: pad shorter "
                          "prompts on the left and give an attention_mask") from None
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or 0 in ids.shape:
        raise MiradaError("the prompt is empty: generation needs at least one token to go on from")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise MiradaError(f"input_ids must be whole numbers, not {ids.dtype}")
    return ids.to(model.device, torch.long)


def _padding(model: Model, ids: Tensor, mask, options: Options) -> Tensor | None:
    """(B, T), 1 where real; None when all is. Of a decoder's prompt without a mask, pad ids are
    taken for padding, as the reference does, unless the pad id is an end token too."""
    pad = options.pad_token_id
    guess = not model.encoder_decoder and pad is not None and pad not in options.eos_token_id
    if mask is None and guess:
        mask = ids != pad
    if mask is None:
        return None
    mask = torch.as_tensor(mask, device=ids.device).long()
    if mask.shape != ids.shape:
        raise MiradaError(f"attention_mask is {list(mask.shape)} and input_ids {list(ids.shape)}; "
                          "they must be alike")
    if not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise MiradaError(f"row {row} of the prompt is empty: all of it is padding")
    if not model.encoder_decoder and not bool(mask[:, -1].all()):
        row = int((mask[:, -1] == 0).nonzero()[0])
        raise MiradaError(f"row {row} of the prompt is padded on the right, where the answer goes "
                          "on: pad on the left")
    return None if bool(mask.all()) else mask


def _first_id(model: Model, options: Options) -> int:
    known = (options.decoder_start_token_id, token_id(model, "decoder_start_token_id"),
             getattr(model.config, "start", None))
    start = next((one for one in known if whole(0)(one)), None)
    if start is None:
        raise MiradaError("this model's config does not say which token begins an answer: give "
                          "decoder_start_token_id")
    return start


def _room(model: Model, prompt: Tensor, start: Tensor, options: Options) -> int:
    """How many tokens may be written before the context ends."""
    limit = options.context
    if limit is None:
        return options.max_new_tokens
    length = prompt.shape[1]
    if length > limit or (not model.encoder_decoder and length == limit):
        raise MiradaError(
            f"the prompt has {length} tokens and the context is {limit}"
            f"{', which leaves no room for an answer' if length == limit else ''}: shorten it, or "
            'drop tokens with mirada.generate.window.fit(ids, context, room, "left" or "middle")')
    return min(options.max_new_tokens, limit - start.shape[1])


def _held(cache: Caches, start: Tensor) -> int:
    """How much of the prompt a cache holds already; at least one token must be left to read."""
    held = int(next(iter(cache.length), torch.tensor(0)))
    if held >= start.shape[1]:
        raise MiradaError(f"the cache holds {held} tokens and the prompt has {start.shape[1]}: "
                          "crop it, so that at least one token is left to read")
    return held
