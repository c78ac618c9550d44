"""Model: a body, a head and a tokenizer behind the reference's argument names."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention, CrossAttention
from mirada.core.block import EncoderDecoder, Stack
from mirada.core.cache import Fixed, Growing, Rolling, Static
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.linear import KEPT
from mirada.core.mask import Mask
from mirada.errors import MiradaError


class Output(dict):
    """Named outputs, as items and as attributes: out.logits, out["logits"]."""

    def __getattr__(self, name: str):
        if name in self:
            return self[name]
        raise AttributeError(f"this output has {', '.join(self)}, not {name!r}")


class Caches(list):
    """One dict of caches per place in the decoder's order: sublayer name -> its cache."""

    def each(self):
        return (cache for place in self for cache in place.values())

    @property
    def length(self) -> Tensor:
        """(B,) tokens that each row has taken in; empty before the first."""
        return next(c.length for c in self.each() if not isinstance(c, Fixed))

    def crop(self, lengths: Tensor | int) -> None:
        for cache in self.each():
            cache.crop(lengths)

    def reorder(self, index: Tensor) -> None:
        for cache in self.each():
            cache.reorder(index)


@dataclass
class Origin:
    """Where a model came from: what `save` writes back and `describe` repeats."""

    path: str | None = None
    raw: dict = field(default_factory=dict)  # the file's config
    generation: dict | None = None  # generation_config.json, where the folder has one
    ignored: dict = field(default_factory=dict)  # config keys not acted on -> why
    carried: dict = field(default_factory=dict)  # tensors not used, by their names in the file
    duplicates: list = field(default_factory=list)  # shared tensors that the file wrote twice
    derived: list = field(default_factory=list)
    spelled: dict = field(default_factory=dict)  # a tensor's name today -> in the file
    bare: bool = False  # the file's names lack the family's prefix
    dialect: str = "folder"
    edits: tuple[str, ...] = ()  # what edits did that no file can say; `save` refuses with them


class Model(nn.Module):
    """A Transformer with its head. Built by mirada.load and mirada.build.

    family: the family's name; config: its Config; architecture: the reference's class name.
    """

    def __init__(self, family: str, config, body: nn.Module, head: nn.Module, architecture: str):
        super().__init__()
        self.family, self.config, self.architecture = family, config, architecture
        self.body, self.head = body, head
        self.origin = Origin()
        self._tokenizer: Any = None
        self._processor: Any = None
        self.tape = None  # set while a recording runs
        self.native: object = None  # the native runtime's program, or why there is none: edit.lower

    @property
    def kind(self) -> str:
        """"encoder", "decoder", "encoder-decoder", "vision" or "dual-encoder"."""
        from mirada import registry
        return registry.family(self.family).KIND

    @property
    def encoder_decoder(self) -> bool:
        return isinstance(self.body, EncoderDecoder)

    @property
    def decoder(self) -> Stack:
        """The stack that generates (of a decoder-only model: its only one)."""
        return self.body.decoder if self.encoder_decoder else self.body

    @property
    def generates(self) -> bool:
        """True for language models that write one token after another."""
        return self.kind in ("decoder", "encoder-decoder") and hasattr(self.head, "out")

    @property
    def context(self) -> int | None:
        """Most tokens a sequence may have, or None where nothing limits it."""
        return getattr(self.config, "context", None)

    @property
    def reads(self) -> set[str]:
        """Arguments that only this kind of body reads."""
        return getattr(self.body, "reads", set())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def tokenizer(self):
        """The tokenizer that came with the files; read when first used."""
        if self._tokenizer is None and self.origin.path is not None:
            from mirada.text.tokenizer import Tokenizer
            self._tokenizer = Tokenizer.beside(self.origin.path)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, value) -> None:
        self._tokenizer = value

    @property
    def processor(self):
        """What makes pixel_values of pictures: the files' own, else a plain one of the config's
        size; None of a model that sees none."""
        if self._processor is None and hasattr(self.config, "image"):
            from mirada.image import Processor
            found = self.origin.path and Processor.beside(self.origin.path)
            if not found:  # not kept: what the files did not say, `save` does not write
                return Processor.plain(self.config)
            self._processor = found
        return self._processor

    @processor.setter
    def processor(self, value) -> None:
        self._processor = value

    def paths(self) -> dict[str, str]:
        """Every state path (`body.` left out) -> the first path of the same tensor."""
        state = list(self.named_parameters(remove_duplicate=False))
        state += [(n, b) for n, b in self.named_buffers(remove_duplicate=False)]
        first: dict[int, str] = {}
        return {short: first.setdefault(id(t), short)
                for short, t in ((n.removeprefix("body."), t) for n, t in state)}

    def state(self) -> dict[str, Tensor]:
        """Each tensor once, by its first path."""
        paths = self.paths()
        every = dict(self.named_parameters(remove_duplicate=False))
        every |= dict(self.named_buffers(remove_duplicate=False))
        short = {n.removeprefix("body."): t for n, t in every.items()}
        return {p: short[p].detach() for p, one in paths.items() if p == one}

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *,
                token_type_ids=None, position_ids=None, inputs_embeds=None, segment_ids=None,
                global_attention_mask=None, pixel_values=None, bool_masked_pos=None,
                interpolate_pos_encoding=False, noise=None,
                decoder_input_ids=None, decoder_attention_mask=None, decoder_inputs_embeds=None,
                encoder_outputs=None, cache: Caches | None = None, labels=None,
                logits_to_keep: int = 0, **more_labels) -> Output:
        """Named outputs under the reference's names; `loss` too when labels are given.

        input_ids (B, T); attention_mask (B, past + T), 1 where real; position_ids (B, T), counted
        over real tokens when None; segment_ids (B, T): only equal ids meet (packed documents);
        global_attention_mask (B, T), 1 where a token sees and is seen beyond its model's windows;
        noise (B, N), by which a masked autoencoder hides patches, drawn when None;
        labels: see the head's loss. Of an encoder-decoder: encoder_outputs (B, S, D), what `encode`
        gave, in place of input_ids; attention_mask is still the source's. decoder_input_ids are the
        labels (other heads: input_ids) shifted right when None; decoder_attention_mask
        (B, past + T). logits_to_keep: a language-model head scores only so many last tokens of
        each row, all when 0.
        """
        self._refuse_unread(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids,
            position_ids=position_ids, inputs_embeds=inputs_embeds, segment_ids=segment_ids,
            pixel_values=pixel_values, bool_masked_pos=bool_masked_pos, cache=cache,
            global_attention_mask=global_attention_mask, noise=noise,
            decoder_input_ids=decoder_input_ids, decoder_attention_mask=decoder_attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds, encoder_outputs=encoder_outputs)
        inputs = Inputs(input_ids, inputs_embeds, token_type_ids, pixel_values, bool_masked_pos,
                        interpolate_pos_encoding, global_attention_mask, noise)
        if "noise" in self.reads:  # drawn once: the body and the head must mean the same patches
            inputs = self.body.drawn(inputs)
        out = Output()
        if self.encoder_decoder:
            seen = inputs if encoder_outputs is None else Inputs(inputs_embeds=encoder_outputs)
            source = self._ctx(seen, attention_mask, position_ids, None, None)
            if encoder_outputs is None:
                encoder_outputs = self.body.encode(inputs, source)
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.shifted(labels if self.generates else input_ids)
            target = Inputs(decoder_input_ids, decoder_inputs_embeds)
            ctx = self._ctx(target, decoder_attention_mask, None, None, cache,
                            getattr(self.config, "target", None))
            ctx = replace(ctx, memory=encoder_outputs, memory_mask=source.mask)
            out["encoder_last_hidden_state"] = encoder_outputs
        else:
            target = inputs
            ctx = self._ctx(inputs, attention_mask, position_ids, segment_ids, cache)
        x = self._last(self.body(target, ctx, cache), logits_to_keep)  # (B, T, D)
        out.update(self.head(x, inputs, ctx))
        given = {k: v for k, v in {"labels": labels, **more_labels}.items()
                 if v is not None and v is not False}
        if given:
            self._refuse_frozen()
            out["loss"] = self._loss(out, given, real=ctx.mask.padding, inputs=inputs)
        return out

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The encoder's memory (B, S, D), to be handed to forward as encoder_outputs."""
        if not self.encoder_decoder:
            raise MiradaError(f"{self.architecture} has no encoder apart from its decoder: call "
                              "the model itself")
        inputs = Inputs(input_ids)
        return self.body.encode(inputs, self._ctx(inputs, attention_mask, None, None, None))

    def new_cache(self, kind: str = "growing", *, size: int | None = None, margin: int = 0):
        """Empty caches for generation.

        kind: "growing"; "static" (a buffer of `size` keys); "rolling" (layers with a sliding
        window keep only that, the others grow; `margin` tokens can be taken back).
        """
        makers = {"growing": lambda a: Growing(), "static": lambda a: Static(size or self.context),
                  "rolling": lambda a: (Rolling(a.mask.window, margin) if a.mask.window
                                        else Growing())}
        if kind not in makers:
            raise MiradaError(f"no cache is called {kind!r}; there are {', '.join(makers)}")
        if kind == "static" and not (size or self.context):
            raise MiradaError("this model has no longest context: give a static cache its size=")
        decoder, caches = self.decoder, Caches()
        for index in decoder.order:
            inner = {name: sub.f for name, sub in decoder.blocks[index].named_children()
                     if isinstance(getattr(sub, "f", None), Attention)}
            caches.append({name: Fixed() if isinstance(a, CrossAttention) else makers[kind](a)
                           for name, a in inner.items()})
        return caches

    def _ctx(self, inputs: Inputs, attention_mask, positions, segments, cache,
             vocab: int | None = None) -> Ctx:
        given = inputs.inputs_embeds if inputs.input_ids is None else inputs.input_ids
        if given is None and inputs.pixel_values is not None:
            return Ctx()
        if given is None:
            raise MiradaError("this model reads tokens: call it with input_ids=(batch, tokens), "
                              "and its decoder with decoder_input_ids")
        self._check_ids(inputs.input_ids, vocab or self.config.vocab)
        self._check_width(inputs.inputs_embeds)
        (B, T), past = given.shape[:2], 0
        if cache is not None:
            past = int(next(iter(cache.length), torch.tensor(0)))
            if len(cache.length) not in (0, B):
                raise MiradaError(f"the cache holds {len(cache.length)} rows and the model was "
                                  f"given {B}: one cache serves one batch")
        _check_shape("attention_mask", attention_mask, (B, past + T),
                     f"the {past} cached and {T} new tokens")
        _check_shape("token_type_ids", inputs.token_type_ids, (B, T), "the tokens")
        _check_shape("global_attention_mask", inputs.global_attention_mask, (B, T), "the tokens")
        _check_shape("position_ids", positions, (B, T), "the tokens", one_row=True)
        _check_shape("segment_ids", segments, (B, T), "the tokens")
        if positions is None and attention_mask is None:
            positions = torch.arange(past, past + T, device=given.device)[None]
        elif positions is None:  # differs: references count pads too, unless generate() tells them
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        pads = None if attention_mask is None else attention_mask.bool()
        if pads is not None and pads.device.type == "cpu" and bool(pads.all()):  # speed
            pads = None
        packed = () if segments is None else ((segments, segments),)
        positions = positions.view(positions.shape)  # a new value each pass: tables are kept by it
        return Ctx(positions, Mask(padding=pads, segments=packed))

    def _refuse_unread(self, **given) -> None:
        """An argument that this kind of model does not read would be a silent mistake."""
        words = {"input_ids", "attention_mask", "position_ids", "inputs_embeds"}
        unread = set() if hasattr(self.config, "vocab") else words
        unread |= set() if hasattr(self.config, "image") else {"pixel_values", "bool_masked_pos"}
        unread |= {"segment_ids"} if self.encoder_decoder else {
            "decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds",
            "encoder_outputs"}
        unread |= set() if self.generates else {"cache"}
        unread |= {"global_attention_mask", "noise"} - self.reads
        if given["token_type_ids"] is not None and self.kind != "encoder":
            unread |= {"token_type_ids"}  # an encoder without types is given zeros by habit
        found = [name for name in unread if given[name] is not None]
        if found:
            raise MiradaError(f"{self.architecture} does not read {', '.join(sorted(found))}: "
                              "leave it out")

    def _refuse_frozen(self) -> None:
        """A model in training whose every weight is quantized would learn nothing."""
        if self.training and torch.is_grad_enabled() and not any(
                p.requires_grad for p in self.parameters()) and any(
                isinstance(m, KEPT) for m in self.modules()):
            raise MiradaError("quantized weights do not train: tune adapters on them (LoRA, "
                              "QLoRA), or load the model with dtype=torch.float32")

    def _check_ids(self, ids: Tensor | None, vocab: int) -> None:
        """ids (B, T) must be of the vocabulary; their values are looked at on the CPU only."""
        if ids is None:
            return
        if not torch.is_tensor(ids):
            raise MiradaError(f"input_ids must be a tensor, (batch, tokens), and not a "
                              f"{type(ids).__name__}")
        if ids.ndim != 2 or ids.numel() == 0 or ids.is_floating_point():
            raise MiradaError(f"input_ids must be whole numbers, (batch, tokens) with at least one "
                              f"token; they are {ids.dtype} of shape {tuple(ids.shape)}")
        if ids.device.type != "cpu":
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab:
            bad = low if low < 0 else high
            raise MiradaError(f"token id {bad} is not in this model's vocabulary of "
                              f"{vocab}; was the text encoded with its tokenizer?")

    def _check_width(self, embeds) -> None:
        if embeds is None:
            return
        stack = self.decoder
        embed = getattr(stack, "embed", None)
        width = embed.token.embedding_dim if isinstance(embed, Tokens) else None
        shape = tuple(embeds.shape) if torch.is_tensor(embeds) else type(embeds).__name__
        if len(shape) != 3 or 0 in shape or width not in (None, shape[-1]):
            raise MiradaError(f"embeddings must be a tensor (batch, tokens, {width}); this is "
                              f"{shape}")

    def shifted(self, labels: Tensor | None) -> Tensor:
        """What an encoder-decoder's decoder reads to write labels (B, T); -100 counts as pad."""
        if labels is None:
            raise MiradaError("an encoder-decoder needs decoder_input_ids, or labels to shift")
        pad = getattr(self.config, "pad", 0)
        labels = labels.masked_fill(labels < 0, pad)
        if self.config.start is None:  # the last real token, a language's name, comes first
            first = labels.gather(1, ((labels != pad).sum(1, keepdim=True) - 1).clamp(min=0))
        else:
            first = labels.new_full((len(labels), 1), self.config.start)
        return torch.cat([first, labels[:, :-1]], 1)

    def _last(self, x: Tensor, keep: int) -> Tensor:
        """The last `keep` tokens of x (B, T, D), all when 0: what a language-model head scores."""
        if keep < 0 or (keep and not hasattr(self.head, "out")):
            raise MiradaError(f"logits_to_keep is {keep}; it is 0 (all) or more, and more only "
                              f"before a language-model head, which {self.architecture} "
                              f"{'has' if hasattr(self.head, 'out') else 'lacks'}")
        return x[:, -keep:] if keep else x

    def _loss(self, out: Output, given: dict, **known) -> Tensor:
        """The head's loss. It may also take what is known here: `real` tokens, (B, T) or None, and
        the `inputs`."""
        loss = getattr(self.head, "loss", None)
        takes = [] if loss is None else list(inspect.signature(loss).parameters)[1:]
        known = {name: value for name, value in known.items() if name in takes}
        takes = [name for name in takes if name not in known]
        if set(given) != set(takes):
            what = f"for a loss it takes {' and '.join(takes)}" if takes else "its head has no loss"
            raise MiradaError(f"{self.architecture} was given {', '.join(sorted(given))}: {what}")
        try:
            return loss(out, **given, **known)
        except (IndexError, ValueError, RuntimeError, AttributeError) as error:
            shapes = ", ".join(f"{n} {tuple(getattr(t, 'shape', ()))}" for n, t in given.items())
            raise MiradaError(f"no loss can be taken of {shapes}: {error}") from error

    @property
    def adapters(self):
        """This model's adapters: names, active, use(), using(); see mirada.edit.lowrank."""
        from mirada.edit.lowrank import Adapters
        return Adapters(self)

    def path(self) -> str:
        """What generation runs, the native runtime or torch, and why; see mirada.edit.lower."""
        from mirada.edit.lower import path
        return path(self)

    def record(self, **options):
        """A context manager giving a tape of this model's attention; see mirada.look.record."""
        from mirada.look.record import record
        return record(self, **options)

    def intervene(self, *changes):
        """A context manager in which this model runs with parts of it changed; see
        mirada.look.intervene."""
        from mirada.look.intervene import intervene
        return intervene(self, *changes)

    def explore(self, **options) -> None:
        """Serve this model's Explorer to the browser until interrupted; options: lang, port,
        open_page. See mirada.serve.explorer."""
        from mirada.serve.explorer import explore
        explore({self.origin.path or self.family: self}, **options)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None,
                 **options) -> Tensor:
        """Token ids, the prompt's and the new ones; see mirada.generate.loop.generate."""
        from mirada.generate.loop import generate
        return generate(self, input_ids, attention_mask, **options)

    def stream(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options):
        """Yields token ids one by one; see mirada.generate.loop.stream."""
        from mirada.generate.loop import stream
        return stream(self, input_ids, attention_mask, **options)


def _check_shape(name: str, given, shape: tuple[int, int], of: str, one_row=False) -> None:
    """given must be a tensor of `shape`, or with one_row of a single row of it."""
    if given is None:
        return
    found = tuple(given.shape) if torch.is_tensor(given) else ()
    if found != shape and not (one_row and found == (1, shape[1])):
        says = "{} rows and {} columns".format(*found) if len(found) == 2 else f"shape {found}"
        raise MiradaError(f"{name} has {says}; it must be a tensor of {shape[0]} rows and "
                          f"{shape[1]} columns, for {of}")
