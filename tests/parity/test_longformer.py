"""Longformer against the reference."""

import pytest
import torch
import transformers

import mirada
from mirada.core.attend import Attend
from mirada.errors import MiradaError
from parity.harness import BAR, Row, pair, run_theirs, table, tokens

TINY = dict(vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=40, type_vocab_size=1, pad_token_id=1,
            attention_window=[4, 8, 4])


def chosen(row: Row) -> dict:
    """More of the tokens chosen in one row than in the other; one stands where a pad may."""
    batch = tokens(row, 2, 17)
    far = torch.zeros_like(batch["input_ids"])
    far[0, [3, 8, 15]] = far[1, 5] = 1
    return batch | {"global_attention_mask": far}


def first(row: Row) -> dict:
    """The token that a classifier reads is chosen."""
    far = torch.zeros(2, 17, dtype=torch.long)
    far[:, 0] = far[1, 9] = 1
    return tokens(row, 2, 17) | {"global_attention_mask": far}


def asked(row: Row) -> dict:
    """A question, two separators, a text and a separator, where no pad will stand."""
    batch = tokens(row, 2, 17)
    batch["input_ids"][:, [4, 5, 12]] = 2
    return batch


def patterns(pair, theirs) -> dict:
    """The reference's attentions as whole matrices: it keeps the columns of the chosen keys, then
    a band; a chosen token's own row lies apart."""
    far, T = pair.batch["global_attention_mask"].bool(), pair.batch["input_ids"].shape[1]
    at, made = far.any(0).nonzero()[:, 0], {"encoder": [], "cross": []}
    for banded, rows in zip(theirs.attentions, theirs.global_attentions, strict=True):
        B, H, _, columns = banded.shape
        most, reach = int(far.sum(1).max()), (columns - int(far.sum(1).max())) // 2
        near, whole = banded.new_zeros(B, H, T, T), banded.new_zeros(B, H, len(at), T)
        for i in range(T):
            for j in range(max(0, i - reach), min(T, i + reach + 1)):
                near[:, :, i, j] = banded[:, :, i, most + reach + j - i]
        for b in range(B):
            for n, j in enumerate(far[b].nonzero()[:, 0].tolist()):
                near[b, :, :, j] = banded[b, :, :, n]
                whole[b, :, (at == j).nonzero()[0, 0]] = rows[b, :, :T, n]
        made["encoder"].append((near, (~far)[:, None, :, None]))
        made["cross"].append((whole, far[:, at][:, None, :, None]))
    return made


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "left", "exempt")}
    keys = {"inputs": more.pop("inputs", chosen), "told": False, "patterns": patterns} | keys
    return Row(architecture, "LongformerConfig", TINY | more, **keys)


ROWS = [
    row("LongformerForMaskedLM"),
    row("LongformerForMaskedLM", name="odd", tie_word_embeddings=False, type_vocab_size=2,
        hidden_act="silu", layer_norm_eps=1e-3, pad_token_id=2, attention_window=[12, 4, 6]),
    row("LongformerModel", left=False),
    row("LongformerForSequenceClassification", num_labels=3, left=False, inputs=first),
    row("LongformerForTokenClassification", num_labels=3),
    row("LongformerForQuestionAnswering"),
]
test_parity = table(ROWS)


@pytest.mark.scope("1.16.2")
@pytest.mark.parametrize("architecture, inputs", [
    ("LongformerForMaskedLM", tokens), ("LongformerForSequenceClassification", tokens),
    ("LongformerForQuestionAnswering", asked)])
def test_who_sees_everything_unless_told(architecture, inputs):
    """Nobody; the token that a classifier reads; a question's tokens."""
    both = pair(next(r for r in ROWS if r.architecture == architecture))
    batch = inputs(both.row)
    theirs, ours = run_theirs(both, batch), both.ours(**batch)
    for name, mine in ours.items():
        assert (mine - theirs[name]).abs().max() < BAR
    nobody = batch | {"global_attention_mask": torch.zeros_like(batch["input_ids"])}
    moved = max((ours[n] - m).abs().max() for n, m in both.ours(**nobody).items())
    assert (moved == 0) if architecture.endswith("MaskedLM") else (moved > 1e-3)


@pytest.mark.scope("1.16.2")
def test_a_token_sees_its_window_and_the_chosen_and_is_seen_so():
    both = pair(ROWS[0])
    with both.ours.record() as tape:
        both.ours(**both.batch)
    far = both.batch["global_attention_mask"].bool()
    i, j = torch.meshgrid(torch.arange(17), torch.arange(17), indexing="ij")
    for layer, window in enumerate(TINY["attention_window"]):
        seen = ((i - j).abs() <= window // 2) | far[:, None, None, :]
        assert torch.equal(tape.pattern(layer, stack="encoder") > 0, seen.expand(2, 4, 17, 17))
        rows = tape.pattern(layer, stack="cross")  # of 3, 5, 8 and 15
        assert rows.shape == (2, 4, 4, 17) and (rows > 0).all()
    assert tape.selfcheck < BAR


def test_chosen_tokens_have_their_own_projections_and_nothing_is_paid_without():
    both = pair(ROWS[0])
    far = [b.attn.f.far for b in both.ours.body.blocks]
    assert all(f.o is b.attn.f.o for f, b in zip(far, both.ours.body.blocks, strict=True))
    ran = []
    handles = [m.register_forward_hook(lambda *_: ran.append(1)) for m in both.ours.modules()
               if isinstance(m, Attend)]
    both.ours(both.batch["input_ids"])
    assert len(ran) == 3
    both.ours(**both.batch)
    assert len(ran) == 9
    for handle in handles:
        handle.remove()


def test_what_cannot_be_is_said():
    answers = mirada.build("longformer", "tiny", architecture="LongformerForQuestionAnswering",
                           seed=1)
    with pytest.raises(MiradaError, match="a question ends at the token 2"):
        answers(torch.full((1, 5), 7))
    answers(torch.full((1, 5), 7), global_attention_mask=torch.ones(1, 5))
    with pytest.raises(MiradaError, match="global_attention_mask has 1 rows and 4"):
        answers(torch.full((1, 5), 7), global_attention_mask=torch.ones(1, 4))
    with pytest.raises(MiradaError, match="does not read global_attention_mask"):
        mirada.build("bert", "tiny")(torch.full((1, 5), 7), global_attention_mask=torch.ones(1, 5))
    for window in (5, (4, 4, 4)):
        with pytest.raises(MiradaError, match="attention_window"):
            mirada.build("longformer", "tiny", window=window)


@pytest.mark.scope("1.16.2")
@pytest.mark.parametrize("size", ["base", "large"])
def test_published_sizes(size):
    """allenai/longformer-base-4096 and -large-4096."""
    shape = {} if size == "base" else dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    with torch.device("meta"):
        theirs = transformers.LongformerForMaskedLM(transformers.LongformerConfig(
            vocab_size=50265, max_position_embeddings=4098, type_vocab_size=1, **shape))
    ours = mirada.build("longformer", size, device="meta")
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()
