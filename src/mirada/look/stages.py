"""One sentence through a whole model, every stage shown: tokenizer, embeddings, blocks, head,
decoding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mirada.core.block import Branch, Residual
from mirada.core.heads import LMHead
from mirada.errors import MiradaError

from . import draw
from .describe import stacks
from .figures import links

FEW = 4  # numbers of a vector that are printed
KINDS = (*draw.PICTURES, ".json", ".safetensors")


@dataclass(frozen=True)
class Stage:
    """One step on the way: about in words, then rows of a table under its columns."""

    name: str
    about: str
    columns: list[str]
    rows: list[list]


@dataclass(frozen=True)
class Trace:
    """A sentence's way through a model. Printed, it is a page.

    stages: in the order in which they run; tensors: what went through them, by name and of the one
    row: embed.token (T, D), blocks.0.attn (what it adds), blocks.0 (the stream after it), logits.
    """

    model: str
    text: str
    output: str | None  # the text with its next token, of a model that writes
    stages: list[Stage]
    tensors: dict[str, Tensor]
    tokens: dict[str, list[str]]  # stack -> its tokens

    def data(self) -> dict:
        """For programs: all but the tensors, of which the shapes."""
        return {"model": self.model, "text": self.text, "output": self.output,
                "stages": [vars(s) for s in self.stages],
                "tensors": {name: list(x.shape) for name, x in self.tensors.items()}}

    def __str__(self) -> str:
        lines = [f"{self.model}: {json.dumps(self.text, ensure_ascii=False)}"]
        for n, stage in enumerate(self.stages, 1):
            lines += ["", f"{n}. {stage.name}: {stage.about}", *_table(stage)]
        return "\n".join(lines)

    def save(self, path) -> str:
        """Write the trace: the tables as .json, the tensors as .safetensors, or a picture of how
        each token's vector grows through the blocks. Raises MiradaError."""
        out = draw.place(path, KINDS)
        if out.suffix == ".json":
            words = json.dumps(self.data(), ensure_ascii=False, indent=2) + "\n"
            return draw.written(out, lambda aside: Path(aside).write_text(words))
        if out.suffix == ".safetensors":
            from safetensors.torch import save_file
            kept = {n: x.contiguous().clone() for n, x in self.tensors.items()}
            return draw.written(out, lambda aside: save_file(kept, aside))
        return draw.save(self._drawn(), out)

    def _drawn(self):
        guesses = next((s for s in self.stages if s.columns[-1:] == ["probability"]), None)
        sides = [max(0.42 * len(tokens) + 1.6, 3.6) for tokens in self.tokens.values()]
        sides += [3.4] if guesses else []
        rows = max(len(self._grid(stack)) for stack in self.tokens)
        figure = draw.canvas(min(sum(sides), 16), min(max(0.22 * rows + 1.8, 3.4), 10))
        axes = figure.subplots(1, len(sides), width_ratios=sides, squeeze=False)[0]
        for place, stack in zip(axes, self.tokens, strict=False):
            self._lengths(figure, place, stack)
        if guesses:
            bars = draw.dressed(axes[-1], guesses.name, "Probability")
            bars.barh(range(len(guesses.rows)), [row[-1] for row in guesses.rows],
                      color=draw.INKS[0], height=0.65)
            bars.set_yticks(range(len(guesses.rows)),
                            [draw.short(str(row[1])) for row in guesses.rows])
            bars.set_ylim(max(len(guesses.rows), rows // 2) - 0.4, -0.6)
            bars.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.2g}%")
        return figure

    def _lengths(self, figure, axes, stack: str) -> None:
        """A token's vector through the layers: long ones dark, by their logarithm."""
        from matplotlib.colors import LogNorm
        title = f"Vector lengths, {stack}" if len(self.tokens) > 1 else "Length of each vector"
        draw.dressed(axes, title, "", "Layer")
        grid, tokens = self._grid(stack), self.tokens[stack]
        lengths = torch.stack(list(grid.values())).clamp(min=1e-6).cpu()
        picture = axes.imshow(lengths.numpy(), aspect="auto", cmap=draw.heat(), norm=LogNorm())
        step = -(-len(tokens) // 40)
        axes.set_xticks(range(0, len(tokens), step), [draw.short(t, 12) for t in tokens[::step]],
                        rotation=90)
        axes.set_yticks(range(len(grid)), list(grid))
        low, high = lengths.min().item(), lengths.max().item()
        ticks = [float(f"{low * (high / low) ** (n / 5):.2g}") for n in range(6)]
        draw.bar(figure, picture, axes, size=7, ticks=ticks,
                 format=lambda x, _: f"{x:g}").ax.minorticks_off()

    def _grid(self, stack: str) -> dict[str, Tensor]:
        """Layer -> (T,) lengths of the stream after it."""
        before = f"{stack}." if len(self.tokens) > 1 else ""
        found, count = {"embed": self.tensors[before + "embed"]}, 0
        while (name := f"{before}blocks.{count}") in self.tensors:
            found[str(count)] = self.tensors[name]
            count += 1
        return {label: x.float().norm(dim=-1) for label, x in found.items()}


def trace(model, text: str, *, k: int = 5, **decoding) -> Trace:
    """Every stage of one text's way through a model, as it really runs.

    k: how many guesses are shown. decoding: how the next token is chosen, the options of generate;
    the likeliest when none is given. An encoder-decoder is shown as it writes its first token.
    Raises MiradaError.
    """
    batch, tokens, ids = read(model, text)
    with torch.no_grad(), model.record() as tape, _watch(model) as tensors:
        out = model(**batch)
    tensors |= {name: x[0] for name, x in out.items() if x.ndim > 1}
    stages, output = [], None
    for (stack, built), name in zip(stacks(model).items(), tokens, strict=True):
        before = f"{stack}." if model.encoder_decoder else ""
        stages += [_tokenized(before, tokens[name], ids[name]),
                   _embedded(before, built.embed, tokens[name], tensors),
                   _blocks(before, name, tokens, tensors, tape)]
    stages.append(_headed(model, out, ids, k))
    if model.generates:
        stage, output = _decoded(model, batch, decoding)
        stages.append(stage)
    return Trace(f"{model.family} {model.architecture}", text, output, stages, tensors, tokens)


def read(model, text: str, to: str | None = None) -> tuple[dict, dict[str, list[str]],
                                                           dict[str, list[int]]]:
    """What a model is given for a text; its tokens and ids by stack. to: what a decoder is given
    after its start token. Raises MiradaError."""
    if not hasattr(model.config, "vocab"):
        raise MiradaError(f"{model.architecture} reads no text")
    if model.tokenizer is None:
        raise MiradaError("this model has no tokenizer beside its weights, so a text cannot be "
                          "read; set model.tokenizer")
    row = model.tokenizer.encode(text).ids
    if not text.strip() or not row:
        raise MiradaError("the text is empty: there is nothing to look at")
    if model.context and len(row) > model.context:
        raise MiradaError(f"the text has {len(row)} tokens and the model takes {model.context}; "
                          "shorten it")
    ids = {"encoder" if model.encoder_decoder else model.kind: row}
    batch = {"input_ids": torch.tensor([row], device=model.device)}
    if model.encoder_decoder:  # without a start of its own it begins with the source's last id
        start = row[-1] if model.config.start is None else model.config.start
        ids["decoder"] = [start, *(model.tokenizer.encode(to).ids if to else [])]
        batch["decoder_input_ids"] = torch.tensor([ids["decoder"]], device=model.device)
    return batch, {name: model.tokenizer.pieces(own) for name, own in ids.items()}, ids


@contextmanager
def _watch(model) -> Iterator[dict[str, Tensor]]:
    """Within this context the outputs of every stage of one pass are kept, by name.

    Two stacks may share a token table and places of a stack a block, so names are made as it runs.
    """
    kept: dict[str, Tensor] = {}
    where, layer = "", -1
    handles, heard = [], set()

    def keep(module: nn.Module, name: str) -> None:
        def take(_, args, output):
            row = output.detach()  # positions and segments may have no batch
            kept[where + name.format(layer=layer)] = row[0] if row.ndim == 3 else row

        if module not in heard:
            handles.append(module.register_forward_hook(take))
            heard.add(module)

    def begin(before: str):
        def enter(module, args):
            nonlocal where, layer
            where, layer = before, -1
        return enter

    def step(module, args):
        nonlocal layer
        layer += 1

    for stack, built in stacks(model).items():
        before = f"{stack}." if model.encoder_decoder else ""
        handles.append(built.register_forward_pre_hook(begin(before)))
        keep(built.embed, "embed")
        for part in ("token", "position", "segment"):
            if getattr(built.embed, part, None) is not None:
                keep(getattr(built.embed, part), f"embed.{part}")
        for block in built.blocks:
            handles.append(block.register_forward_pre_hook(step))
            keep(block, "blocks.{layer}")
            for name, part in _parts(block):
                keep(part, f"blocks.{{layer}}.{name}")
        keep(built.norm, "norm")
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _parts(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The sublayers by name, each as the module whose output it adds to the stream."""
    for name, part in block.named_children():
        if isinstance(part, Residual | Branch):
            yield name, part.post if isinstance(part, Residual) else part


def _tokenized(before: str, tokens: list[str], ids: list[int]) -> Stage:
    rows = [[n, i, token] for n, (i, token) in enumerate(zip(ids, tokens, strict=True))]
    name, about = _title("Tokenizer", before), f"{len(ids)} token{'s' * (len(ids) != 1)}"
    return Stage(name, about, ["position", "id", "token"], rows)


def _embedded(before: str, embed: nn.Module, tokens: list[str], tensors: dict) -> Stage:
    names = [n for n in ("token", "position", "segment") if f"{before}embed.{n}" in tensors]
    shape = tuple(tensors[before + "embed"].shape)
    scaled = f" · {embed.scale:g}" if getattr(embed, "scale", 1.0) != 1.0 else ""
    norm = getattr(embed, "norm", nn.Identity())
    after = "" if isinstance(norm, nn.Identity) else f", then {type(norm).__name__}"
    rows = []
    for n, token in enumerate(tokens):
        each = [tensors[f"{before}embed.{name}"] for name in names] + [tensors[before + "embed"]]
        rows.append([token, *(_vector(x if x.ndim == 1 else x[n]) for x in each)])
    return Stage(_title("Embeddings", before), f"{shape}, {' + '.join(names)}".replace(
        "token", f"token{scaled}", 1) + f"{after}; the first {FEW} of {shape[1]} numbers",
        ["token", *names, "into block 0"], rows)


def _blocks(before: str, stack: str, tokens: dict, tensors: dict, tape) -> Stage:
    columns, rows, best = [], [], {}
    for link in links(tape, stack=before[:-1] or None, most=1 << 30):
        best.setdefault(link.layer, link)
    layer = 0
    while (name := f"{before}blocks.{layer}") in tensors:
        columns = [key for key in tensors if key.startswith(name + ".")]
        look = best.get(layer)
        words = "" if look is None else (
            f"{tokens[stack][look.query]} → {tokens[stack][look.key]} {look.weight:.0%}, "
            f"head {look.head}")
        lengths = [round(_length(tensors[key]), 3) for key in [*columns, name]]
        rows.append([layer, *lengths, words])
        layer += 1
    parts = [c.rpartition(".")[2] for c in columns]
    return Stage(_title("Blocks", before), f"{layer} of {', '.join(parts)}; the median "
                 "length of what each adds to a token's vector", [
                     "layer", *(f"{p} adds" for p in parts), "the vector", "strongest look"], rows)


def _headed(model, out: dict, ids: dict, k: int) -> Stage:
    logits = out.get("logits", out.get("prediction_logits"))
    norm = type(model.decoder.norm).__name__
    name = ("" if norm == "Identity" else f"{norm}, ") + type(model.head).__name__
    if logits is None:
        shapes = ", ".join(f"{n} {tuple(x.shape)}" for n, x in out.items())
        return Stage("Head", f"{name}: {shapes}", [], [])
    about = f"{name}: logits {tuple(logits.shape)}"
    if not isinstance(model.head, LMHead):
        if logits.ndim != 2:
            return Stage("Head", about, [], [])
        labels = model.origin.raw.get("id2label") or {}
        return Stage("Head", about, ["id", "label", "probability"], _likeliest(
            logits[0], k, lambda n: labels.get(str(n), f"LABEL_{n}")))
    if model.generates:
        about, row = f"{about}, softmax: the next token", logits[0, -1]
    else:
        hidden = model.tokenizer.mask_id
        if hidden not in ids[model.kind]:
            word = "a hidden word" if hidden is None else model.tokenizer.token(hidden)
            return Stage("LM head", f"{about}; write {word} in the text to see it guessed", [], [])
        row = logits[0, ids[model.kind].index(hidden)]
        about += f", softmax: the word at {model.tokenizer.token(hidden)}"
    size = model.tokenizer.size  # some tables have more rows than the vocabulary has tokens
    rows = _likeliest(row, k, lambda n: model.tokenizer.pieces([n])[0] if n < size else "")
    return Stage("LM head", about, ["id", "token", "probability"], rows)


def _likeliest(logits: Tensor, k: int, name) -> list[list]:
    best = logits.float().softmax(-1).topk(min(k, len(logits)))
    return [[n, name(n), chance] for n, chance in
            zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _decoded(model, batch: dict, decoding: dict) -> tuple[Stage, str]:
    """The next token, chosen by the same loop that writes texts, and the text with it."""
    settings = {"num_beams": 1, "max_new_tokens": 1, "forced_eos_token_id": ()}
    settings |= decoding or {"do_sample": False}
    rule = ", ".join(f"{n}={x}" for n, x in decoding.items()) or "greedy, the likeliest"
    ids = model.generate(batch["input_ids"], **settings)[0].tolist()
    token, text = model.tokenizer.pieces(ids[-1:])[0], model.tokenizer.decode(ids)
    return Stage("Decoding", rule, ["id", "token", "text"], [[ids[-1], token, text]]), text


def _title(name: str, before: str) -> str:
    return f"{name} ({before[:-1]})" if before else name


def _length(x: Tensor) -> float:
    return x.float().norm(dim=-1).median().item()


def _vector(x: Tensor) -> list[float]:
    return [round(n, 3) for n in x[:FEW].float().tolist()]


def _table(stage: Stage) -> list[str]:
    if not stage.rows:
        return []
    cells = [stage.columns, *([_cell(x) for x in row] for row in stage.rows)]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [isinstance(x, int | float) for x in stage.rows[0]]
    return ["   " + "  ".join(x.rjust(w) if right else x.ljust(w) for x, w, right in
                              zip(row, wide, numbers, strict=True)).rstrip() for row in cells]


def _cell(x) -> str:
    if isinstance(x, list):
        return " ".join(f"{n:6.2f}" for n in x)
    if isinstance(x, float):
        return f"{x:.4f}" if x < 1 else f"{x:.2f}"
    return x.replace("\n", "⏎") if isinstance(x, str) else str(x)
