"""Heads and their losses, by formula and as the reference computes them."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.loss.loss_utils import (
    ForQuestionAnsweringLoss,
    ForSequenceClassificationLoss,
)

from mirada.core import heads
from mirada.core.context import Ctx, Inputs
from mirada.core.heads import (
    Classifier,
    First,
    Last,
    LastOf,
    LMHead,
    Mean,
    Pooled,
    Pooler,
    Span,
    TokenClassifier,
    Transform,
)
from mirada.core.mask import Mask
from mirada.errors import MiradaError

B, T, D, V = 3, 4, 6, 9
IDS = torch.tensor([[5, 6, 7, 8], [5, 1, 1, 1], [1, 1, 5, 6]])  # 1 is the pad


def stream() -> torch.Tensor:
    return torch.randn(B, T, D)


@pytest.mark.scope("1.3.8")
def test_the_language_model_head_shares_its_table_or_has_its_own():
    table = nn.Embedding(V, D)
    tied, own = LMHead(D, V, tied=table.weight), LMHead(D, V, bias=True)
    assert tied.out.weight is table.weight and own.out.bias.shape == (V,)
    x = stream()
    assert torch.equal(tied(x, Inputs(), Ctx())["logits"], x @ table.weight.T)
    own.out.bias.data.normal_()
    logits = own(x, Inputs(), Ctx())["logits"]
    assert torch.allclose(logits, x @ own.out.weight.T + own.out.bias, atol=1e-6)
    assert LMHead(D, V).out.bias is None


def test_transform_scale_and_cap_come_in_that_order():
    transform = nn.Linear(D, D)
    head, x = LMHead(D, V, transform=transform, scale=0.5, cap=2.0), stream() * 5
    wanted = 2 * torch.tanh((transform(x) * 0.5) @ head.out.weight.T / 2)
    assert torch.allclose(head(x, Inputs(), Ctx())["logits"], wanted, atol=1e-6)


def test_a_transform_is_dense_then_act_then_norm():
    t, x = Transform(D, "relu", 0.1, 4), stream()
    nn.init.normal_(t.norm.weight)
    wanted = F.layer_norm(F.relu(t.dense(x)), (4,), t.norm.weight, t.norm.bias, 0.1)
    assert torch.allclose(t(x), wanted) and Transform(D, "relu", 0.1).dense.out_features == D


def test_a_mean_counts_real_tokens_only():
    x = stream()
    assert torch.allclose(Mean()(x, Inputs(), Ctx()), x.mean(1))
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1]]).bool()
    wanted = torch.stack([x[0].mean(0), x[1, 0], x[2, 2:].mean(0)])
    assert torch.allclose(Mean()(x, Inputs(), Ctx(mask=Mask(padding=real))), wanted)


def test_which_token_a_row_is_read_at():
    x = stream()
    assert torch.equal(First()(x, Inputs(), Ctx()), x[:, 0])
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1]]).bool()
    rows = torch.arange(B)
    by_pad = Last(1)(x, Inputs(IDS), Ctx(mask=Mask(padding=torch.ones(B, T).bool())))
    assert torch.equal(by_pad, x[rows, [3, 0, 3]]), "the pad id says it, whatever the mask"
    by_mask = Last(None)(x, Inputs(IDS), Ctx(mask=Mask(padding=real)))
    assert torch.equal(by_mask, x[rows, [3, 0, 3]])
    by_mask = Last(1)(x, Inputs(inputs_embeds=x), Ctx(mask=Mask(padding=real)))
    assert torch.equal(by_mask, x[rows, [3, 0, 3]])
    assert torch.equal(Last(None)(x, Inputs(IDS), Ctx()), x[:, -1])
    assert torch.equal(Last(1)(x, Inputs(inputs_embeds=x), Ctx()), x[:, -1])


def test_the_last_of_an_id():
    x, ids = stream(), torch.tensor([[2, 5, 2, 7], [5, 6, 7, 2], [2, 5, 5, 5]])
    assert torch.equal(LastOf(2)(x, Inputs(ids), Ctx()), x[torch.arange(B), [2, 3, 0]])
    with pytest.raises(MiradaError, match="reads the last token 2 of each row"):
        LastOf(2)(x, Inputs(IDS), Ctx())
    with pytest.raises(MiradaError, match="call it with input_ids"):
        LastOf(2)(x, Inputs(inputs_embeds=x), Ctx())


def test_poolers_and_classifiers():
    x, pool = stream(), Pooler(D, nn.Tanh(), 4)
    assert torch.allclose(pool(x, Inputs(), Ctx()), torch.tanh(pool.dense(x[:, 0])))
    assert Pooler(D, nn.Tanh()).dense.out_features == D
    last = Pooler(D, nn.Tanh(), pick=Last(None))
    assert torch.allclose(last(x, Inputs(), Ctx()), torch.tanh(last.dense(x[:, -1])))
    head = Classifier(4, 5, pool)
    wanted = head.score(pool(x, Inputs(), Ctx()))
    assert torch.equal(head(x, Inputs(), Ctx())["logits"], wanted) and wanted.shape == (B, 5)
    assert head.score.bias is not None and Classifier(4, 5, pool, bias=False).score.bias is None
    tags = TokenClassifier(D, 3)
    assert torch.equal(tags(x, Inputs(), Ctx())["logits"], tags.tag(x))
    span = Span(D)
    out = span(x, Inputs(), Ctx())
    assert torch.equal(torch.stack([out["start_logits"], out["end_logits"]], -1), span.span(x))
    assert list(Pooled()(x, Inputs(), Ctx())) == ["last_hidden_state"]
    out = Pooled(First())(x, Inputs(), Ctx())
    assert out["last_hidden_state"] is x and torch.equal(out["pooler_output"], x[:, 0])


@pytest.mark.parametrize("head", [Classifier(D, 5, First()), TokenClassifier(D, 5)])
def test_heads_drop_out_in_training_only(head):
    x = torch.ones(1, 3, D)
    head.eval()
    plain, head.dropout = head(x, Inputs(), Ctx())["logits"], 0.5
    assert torch.equal(head(x, Inputs(), Ctx())["logits"], plain)
    assert not torch.equal(head.train()(x, Inputs(), Ctx())["logits"], plain)


def test_the_next_token_is_scored_by_those_before_it():
    logits, labels = torch.randn(2, 5, V), torch.randint(0, V, (2, 5))
    labels[0, 3] = heads.IGNORE
    log, terms = logits.log_softmax(-1), []
    for b in range(2):
        terms += [-log[b, t, labels[b, t + 1]] for t in range(4) if labels[b, t + 1] != -100]
    loss = heads.next_token({"logits": logits}, labels)
    assert len(terms) == 7 and torch.allclose(loss, torch.stack(terms).mean())
    assert LMHead(D, V).loss is heads.next_token and LMHead(D, V, shift=False).loss is heads.token


def test_tokens_are_scored_where_they_stand():
    logits, labels = torch.randn(2, 3, V), torch.randint(0, V, (2, 3))
    labels[1, 0] = heads.IGNORE
    log = logits.log_softmax(-1)
    terms = [-log[b, t, labels[b, t]] for b in range(2) for t in range(3) if (b, t) != (1, 0)]
    assert torch.allclose(heads.token({"logits": logits}, labels), torch.stack(terms).mean())


KINDS = {  # outputs, labels
    "regression": (1, lambda: torch.randn(4)),
    "regression of counts": (1, lambda: torch.tensor([1, 0, 2, 5])),
    "yes or no": (3, lambda: torch.rand(4, 3).round()),
    "classes": (3, lambda: torch.tensor([2, 0, 1, 1])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_label_a_row_is_scored_as_the_reference_does(kind):
    outputs, make = KINDS[kind]
    logits, labels = torch.randn(4, outputs), make()
    ours = heads.label({"logits": logits}, labels)
    config = transformers.GPT2Config(num_labels=outputs)
    wanted = labels.float() if outputs == 1 else labels
    assert torch.allclose(ours, ForSequenceClassificationLoss(wanted, logits, config))
    if outputs == 1:
        assert torch.allclose(ours, (logits[:, 0] - labels).pow(2).mean())
    if labels.ndim == 1:
        assert torch.equal(ours, heads.label({"logits": logits}, labels[:, None]))


def test_where_an_answer_begins_and_ends():
    start, end = torch.randn(2, 3, 5)
    first, last = torch.tensor([0, 4, 9]), torch.tensor([2, 5, 1])  # 9 and 5 lie past the end
    out = {"start_logits": start, "end_logits": end}
    theirs = ForQuestionAnsweringLoss(start, end, first, last)
    a = -start.log_softmax(-1)[[0, 1], [0, 4]].mean()
    b = -end.log_softmax(-1)[[0, 2], [2, 1]].mean()
    ours = heads.span(out, first, last)
    assert torch.allclose(ours, theirs) and torch.allclose(ours, (a + b) / 2)
    assert torch.equal(heads.span(out, first[:, None], last[:, None]), ours)
