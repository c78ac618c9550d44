"""ELECTRA's two models trained as one, and a student that learns from its teacher."""

import math

import pytest
import torch
import torch.nn.functional as F

import mirada
from mirada.errors import MiradaError
from mirada.train import distill, order, replaced
from mirada.train.language import IGNORED, HiddenToken
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from train import kills, toys

SMALL = dict(layers=2, heads=4, d=32, hidden=128, std=0.15)
LENGTH = 9  # a sentence, [CLS] and [SEP]


@pytest.fixture(scope="module")
def tokenizer():
    return toys.tokenizer(toys.spanish())


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return toys.corpus(tokenizer, toys.spanish())


def electra(tokenizer):
    model = toys.model("electra:tiny", tokenizer, "ElectraForPreTraining", embedding=32, **SMALL)
    return replaced.joint(model, share=2, seed=3)


def drawn(objective, seed, count):
    return objective.batch([objective.sample(i, order.draw(seed, i)) for i in range(count)])


@pytest.mark.scope("1.5.5", "1.12.7")
def test_the_loss_is_the_papers(corpus, tokenizer):
    model = electra(tokenizer).double()
    objective = replaced.ReplacedToken(corpus, LENGTH, model)
    batch = drawn(objective, 0, 16)
    hidden = batch["labels"] != IGNORED
    assert (batch["input_ids"][hidden] == tokenizer.mask_id).all()  # all of them: eq. 1
    torch.manual_seed(0)
    loss, numbers = objective.loss(model, batch)
    torch.manual_seed(0)  # the same draw
    logits = model.generator(batch["input_ids"], batch["attention_mask"]).logits
    own = torch.where(hidden, batch["labels"], batch["input_ids"])
    filled = own.clone()
    filled[hidden] = torch.multinomial(logits[hidden].softmax(-1), 1).flatten()
    found = model.discriminator(filled, batch["attention_mask"]).logits
    wanted = 0.0
    for row in range(16):
        told = F.cross_entropy(logits[row, hidden[row]], batch["labels"][row, hidden[row]])
        seen = F.binary_cross_entropy_with_logits(found[row],
                                                  (filled[row] != own[row]).double())
        wanted += told + 50 * seen
    assert abs((loss - wanted).item()) < 1e-9 and objective.weight(batch) == 16
    assert 0 < numbers["replaced"] <= float(hidden.double().mean())
    loss.backward()
    assert model.generator.body.blocks[0].attn.f.q.weight.grad.abs().max() > 0


@pytest.mark.scope("1.5.5", "1.12.7")
def test_the_generator_learns_by_its_own_loss_alone(corpus, tokenizer):
    """No gradient goes from the discriminator into what the generator wrote."""
    model = electra(tokenizer)
    objective = replaced.ReplacedToken(corpus, LENGTH, model)
    batch = drawn(objective, 0, 8)
    grads = []
    for found in (50.0, 0.0):
        objective.found = found
        model.zero_grad()
        torch.manual_seed(0)
        objective.loss(model, batch)[0].backward()
        grads.append(model.generator.body.blocks[1].mlp.f.up.weight.grad.clone())
    assert torch.equal(*grads)


@pytest.mark.scope("1.5.5", "1.12.7")
def test_both_learn_together_and_share_their_table(corpus, tokenizer, tmp_path):
    model = electra(tokenizer)
    small, large = model.generator.body.embed, model.discriminator.body.embed
    assert small.token.weight is large.token.weight is model.generator.head.out.weight
    assert small.position.weight is large.position.weight
    assert model.generator.config.d == 16 and small.norm.weight is not large.norm.weight
    objective = replaced.ReplacedToken(corpus, LENGTH, model, share=0.25)
    before = objective.loss(model, drawn(objective, 5, 200))[1]
    fit(model, objective, Plan(steps=200, batch=32, dtype="float32"), Recipe(rate=3e-3, warmup=20))
    model.eval()
    after = objective.loss(model, drawn(objective, 5, 200))[1]
    assert after["generator"] < 0.5 * before["generator"]
    assert after["found"] < 0.5 * before["found"] and after["replaced"] > 0.02
    # better than to say of every token that it is the text's own
    assert 1 - after["right"] < 0.7 * after["replaced"]
    mirada.save(model.discriminator, tmp_path / "found")
    from transformers import ElectraForPreTraining
    theirs = ElectraForPreTraining.from_pretrained(tmp_path / "found").eval()
    ids = tokenizer.encode("el gato negro bebe queso hoy .").ids
    with torch.no_grad():
        ours = model.discriminator(torch.tensor([ids])).logits
        assert (theirs(torch.tensor([ids])).logits - ours).abs().max() < 1e-4
    assert ours[0].argmax() in (4, 5)  # a cat drinks no cheese


def joint_run():
    tokenizer = toys.tokenizer(toys.spanish(60))
    model = electra(tokenizer)
    objective = replaced.ReplacedToken(toys.corpus(tokenizer, toys.spanish(60)), LENGTH, model)
    return model, objective, Plan(steps=15, batch=8, save=2), Recipe(rate=1e-2)


def test_killed(tmp_path):
    """The generator's draws come back after a kill as they were."""
    kills.survives(joint_run, tmp_path, kills=2)


def test_tables_of_two_widths_are_not_shared(tokenizer):
    large = toys.model("electra:tiny", tokenizer, "ElectraForPreTraining", embedding=32, **SMALL)
    small = toys.model("electra:tiny", tokenizer, "ElectraForMaskedLM", embedding=16, **SMALL)
    with pytest.raises(MiradaError, match="share their token table"):
        replaced.Joint(small, large)


# Distillation


@pytest.fixture(scope="module")
def teacher(corpus, tokenizer):
    model = toys.model("bert:tiny", tokenizer, "BertForMaskedLM", **SMALL | {"layers": 4})
    fit(model, HiddenToken(corpus, LENGTH, tokenizer), Plan(steps=250, batch=32, dtype="float32"),
        Recipe(rate=3e-3, warmup=20))
    return model


def student(tokenizer):
    return toys.model("distilbert:tiny", tokenizer, "DistilBertForMaskedLM", **SMALL)


@pytest.mark.scope("1.5.4")
def test_the_three_terms_are_distilberts(corpus, tokenizer, teacher):
    model, wise = student(tokenizer).double(), mirada.build(
        "bert", architecture="BertForMaskedLM", seed=4, dtype=torch.float64,
        **vars(teacher.config))
    objective = distill.Distill(corpus, LENGTH, model, wise)
    batch = drawn(objective, 0, 6)
    given = {k: v for k, v in batch.items() if k != "labels"}
    loss, numbers = objective.loss(model, batch)
    s, t = model(**given).logits, wise(**given).logits
    kl = sum(F.kl_div((s[row] / 2).log_softmax(-1), (t[row] / 2).softmax(-1),
                      reduction="batchmean") * 4 for row in range(6))
    hidden = sum(F.cross_entropy(s[row], batch["labels"][row]) for row in range(6))
    body = [distill.seen(m, given)[1] for m in (model, wise)]
    cosine = sum(F.cosine_embedding_loss(body[0][row], body[1][row], torch.ones(LENGTH))
                 for row in range(6))
    assert abs((loss - (5 * kl + 2 * hidden + cosine)).item()) < 1e-9
    assert numbers["kl"] == pytest.approx(kl.item() / 6) and numbers["cosine"] > 0
    assert not any(p.requires_grad for p in wise.parameters())


@pytest.mark.scope("1.5.4")
def test_a_student_begins_with_every_other_block(tokenizer, teacher):
    model = student(tokenizer)
    distill.begin(model, teacher)
    for ours, theirs in ((0, 0), (1, 2)):
        for (name, a), b in zip(model.body.blocks[ours].named_parameters(),
                                teacher.body.blocks[theirs].parameters(), strict=True):
            assert torch.equal(a, b), name
    assert torch.equal(model.body.embed.token.weight, teacher.body.embed.token.weight)
    assert torch.equal(model.head.transform.dense.weight, teacher.head.transform.dense.weight)
    with pytest.raises(MiradaError, match="has 4 blocks and its teacher 2"):
        distill.begin(teacher, model)


@pytest.mark.scope("1.5.4")
def test_a_taught_student_knows_more_than_one_alone(corpus, tokenizer, teacher):
    plan, recipe = Plan(steps=60, batch=32, dtype="float32"), Recipe(rate=3e-3, warmup=5)
    alone, taught = student(tokenizer), student(tokenizer)
    hidden = HiddenToken(corpus, LENGTH, tokenizer)
    fit(alone, hidden, plan, recipe)
    distill.begin(taught, teacher)
    objective = distill.Distill(corpus, LENGTH, taught, teacher)
    first = objective.loss(taught, drawn(objective, 7, 100))[1]
    fit(taught, objective, plan, recipe)
    last = objective.loss(taught.eval(), drawn(objective, 7, 100))[1]
    assert all(last[name] < 0.5 * first[name] for name in ("kl", "hidden", "cosine"))
    batch = drawn(hidden, 7, 200)
    loss = {name: float(hidden.loss(model.eval(), batch)[0].detach()) / hidden.weight(batch)
            for name, model in (("alone", alone), ("taught", taught), ("teacher", teacher))}
    assert loss["taught"] < 0.8 * loss["alone"] < 0.8 * math.log(tokenizer.size)


def test_who_cannot_teach(corpus, tokenizer, teacher):
    model = student(tokenizer)
    other = mirada.build("bert:tiny", architecture="BertForMaskedLM", vocab=50, d=32)
    with pytest.raises(MiradaError, match="one tokenizer"):
        distill.Distill(corpus, LENGTH, model, other)
    wide = toys.model("bert:tiny", tokenizer, "BertForMaskedLM", **SMALL | {"d": 64})
    with pytest.raises(MiradaError, match="weight of the cosine to 0"):
        distill.Distill(corpus, LENGTH, model, wide)
    distill.Distill(corpus, LENGTH, model, wide, weights=(5, 2, 0))
