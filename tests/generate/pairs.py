"""Tiny models that write, beside the reference's own with the same weights in float64."""

import torch
import transformers

from parity.harness import Pair, Row, wide

GPT2 = Row("GPT2LMHeadModel", "GPT2Config", dict(
    vocab_size=61, n_positions=32, n_embd=24, n_layer=2, n_head=4, pad_token_id=1,
    bos_token_id=None, eos_token_id=None))
T5 = Row("T5ForConditionalGeneration", "T5Config", dict(
    vocab_size=61, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, pad_token_id=0,
    decoder_start_token_id=0, eos_token_id=None))


def prompts(row: Row, seed: int, rows: int = 3, length: int = 8) -> dict:
    """Unequal prompts: the mask hides the first 2n tokens of row n, ordinary ones."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, row.settings["vocab_size"], (rows, length), generator=generator)
    hidden = torch.arange(length) < 2 * torch.arange(rows)[:, None]
    return {"input_ids": ids, "attention_mask": (~hidden).long()}


def written(pair: Pair, batch: dict, **options) -> torch.Tensor:
    """What the reference's generate gives."""
    with wide():
        options.setdefault("do_sample", False)
        return pair.theirs.generate(**batch, **options)


def ends(ids: torch.Tensor, start: int, at: int) -> int:
    """A token that the first row writes at the given step: as an end token it is sure to occur."""
    return int(ids[0, start + at])


transformers.logging.set_verbosity_error()
