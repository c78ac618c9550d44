"""Head roles: models whose heads were planted by hand, and small ones that learned them."""

import csv
import dataclasses
import json

import pytest
import torch

import mirada
from look import planted
from mirada.cli import main
from mirada.core.attention import Attention
from mirada.core.bias import Buckets
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import LMHead
from mirada.core.mask import Mask
from mirada.core.norm import LayerNorm
from mirada.errors import MiradaError, UntrustedInputError
from mirada.look.heads import probes, scores, templates
from mirada.look.heads.claims import Example, claim, variants
from mirada.look.heads.report import roles
from mirada.look.heads.verdicts import judged
from mirada.model import Model
from mirada.models import gpt2
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe

KINDS = set(planted.PLANTED.values())


def found(report) -> dict:
    """(role, layer, head) -> verdict, of the kinds that were planted."""
    return {(v.score.role, *v.score.at[1:]): v.verdict for v in report.verdicts
            if v.score.role in KINDS}


def as_planted() -> dict:
    planned = {(role, *at): "verified" for at, role in planted.PLANTED.items()}
    return planned | {("induction", *planted.DECOY): "pattern only"}


@pytest.fixture(scope="module")
def report():
    return roles(planted.build(0), "es", rows=12, count=130)


@pytest.mark.scope("1.1.11", "1.18.7", "1.18.8")
def test_planted_heads_are_found_and_verified_and_the_decoy_is_not(report):
    """Precision and recall are 1; the decoy looks as an induction head does and writes nothing."""
    assert found(report) == as_planted()
    nsubj = next(v for v in report.verdicts if v.score.role == "syntactic")
    assert nsubj.score.detail == "nsubj: head → dependent" and nsubj.score.n >= 100
    assert nsubj.score.value >= nsubj.score.baseline + scores.MARGIN
    decoy = next(v for v in report.verdicts if v.score.at[1:] == planted.DECOY)
    assert decoy.effect == 0 and decoy.score.value > 0.9
    rest = next(v for v in report.verdicts if v.score.role == "delimiter")
    assert rest.effect < 1e-6 and rest.percentile == 0
    lengths = next(s for s in report.scores if s.at == rest.score.at and s.detail == "by length")
    assert rest.score.value > 0.9 and lengths.value < 0.1  # what it looks at, and what that brings


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_planted_heads_of_other_seeds(seed):
    assert found(roles(planted.build(seed), "es", rows=12, count=130)) == as_planted()


def test_a_head_that_brings_nothing_is_dead_and_a_sharp_one_is_sure(report):
    """The decoy alone writes nothing; by hand from the pattern, and from what each head adds."""
    dead = [at[1:] for at, f in report.figures.items() if f.dead]
    assert dead == [planted.DECOY] and report.figures["decoder", *planted.DECOY].share == 0
    m = planted.build(0)
    probe = probes.passages(m, [s.text for s in templates.sentences("es", 130)], 12)
    with torch.no_grad(), m.record() as tape:
        m(**probe.batch)
    sure = tape.pattern(0, 0).amax(-1).mean().item()
    assert report.figures["decoder", 0, 0].confidence == pytest.approx(sure, abs=1e-4) and sure > .9
    moved = []
    for h in range(planted.HEADS):
        kept = [n for n in range(planted.HEADS) if n != h]
        with torch.no_grad(), m.record(resid="sublayers") as tape, m.intervene(
                {"site": "head_out", "layer": 0, "heads": kept, "op": "zero"}):
            m(**probe.batch)
        moved.append(tape.added(0, "attn").norm(dim=-1))
    share = (moved[2] / sum(moved)).nan_to_num() * planted.HEADS  # a separator brings nothing
    assert report.figures["decoder", 0, 2].share == pytest.approx(share.mean().item(), abs=1e-4)
    row = next(r for r in report.data()["roles"] if r["role"] == "previous")
    assert row["confidence"] == report.figures["decoder", 0, 0].confidence
    assert "1 cabezas no aportan casi nada al flujo: decoder 1.3" in str(report)


def test_a_translators_head_is_aligned():
    """The head that looks at the word it translates; not the one that looks at the same place."""
    m = planted.translator()
    found = roles(m, "en", only="alignment", rows=60)
    assert [(v.score.at, v.verdict) for v in found.verdicts] == [
        (("cross", 0, planted.TRANSLATES), "verified")]
    best = found.verdicts[0].score
    by_place = next(s for s in found.scores if s.at == ("cross", 0, 2))
    assert best.value > 0.95 and best.baseline < 0.85
    assert by_place.value == pytest.approx(best.baseline, abs=0.02)
    rows = slice(96 * planted.TRANSLATES, 96 * (planted.TRANSLATES + 1))
    m.body.decoder.blocks[0].cross.f.o.weight.data[:, rows] = 0
    again = roles(m, "en", only="alignment", rows=60)
    assert [v.verdict for v in again.verdicts] == ["pattern only"]


def test_a_table_with_more_rows_than_words_is_probed_within_them():
    m = planted.build(0)
    m.config = dataclasses.replace(m.config, vocab=m.config.vocab + 400)
    assert probes.repeats(m, 8).ids.max() < m.tokenizer.size


def test_without_its_work_a_head_is_no_longer_verified():
    """Negative control: the same patterns, and nothing written by any planted head."""
    m = planted.build(0)
    K = m.body.blocks[0].attn.f.o.in_features // planted.HEADS
    for layer, head in planted.PLANTED:
        m.body.blocks[layer].attn.f.o.weight.data[:, head * K : (head + 1) * K] = 0
    r = roles(m, "es", rows=12, count=130, only="duplicate")
    assert [v.verdict for v in r.verdicts] == ["pattern only"]


def test_report_says_it_in_words_table_and_picture(report, tmp_path):
    text = str(report)
    assert "verificada: mira la palabra anterior" in text and "se parece: mira lo que" in text
    assert json.loads(json.dumps(report.data()))["roles"][0]["interval"] is not None
    rows = list(csv.DictReader(open(report.save(tmp_path / "roles.csv"))))
    assert len(rows) == len(report.verdicts) and {r["verdict"] for r in rows} == {
        "verified", "pattern only"}
    assert open(report.save(tmp_path / "map.png"), "rb").read(4) == b"\x89PNG"
    assert report.head(1, 0)[0].role == "induction"
    with pytest.raises(MiradaError, match="ending in"):
        report.save(tmp_path / "roles.txt")


class Copies:
    """Random tokens, stretches of which are said again later: only what followed the same token
    before foretells those, for no distance does. `few` is the price of a head: its output's length
    to the half, which a model saves by giving a work to one head rather than to all."""

    count, vocab, length, few = 1 << 20, 32, 40, 0.1

    def sample(self, index, draw):
        row = [draw.randrange(self.vocab) for _ in range(8)]
        labels = [-100] * 8
        while len(row) < self.length:
            many = draw.randrange(4, 12)
            begin = draw.randrange(max(1, len(row) - many))
            again = row[begin : begin + many]
            new = [draw.randrange(self.vocab) for _ in range(draw.randrange(8))]
            row, labels = row + again + new, labels + [-100, *again[1:]] + [-100] * len(new)
        return row[: self.length], labels[: self.length]

    def batch(self, samples):
        return {"input_ids": torch.tensor([row for row, _ in samples]),
                "labels": torch.tensor([labels for _, labels in samples])}

    def weight(self, batch):
        return float(len(batch["input_ids"]))

    def loss(self, model, batch):
        price = sum((block.attn.f.o.weight.unflatten(1, (4, -1)).square().sum((0, 2)) + 1e-4)
                    .pow(0.25).sum() for block in model.body.blocks)
        return (model(**batch).loss + self.few * price) * len(batch["input_ids"]), {}


def trained(layers: int, steps: int):
    """An attention-only model of four heads a layer, which are told distances, that learned to say
    again what it has read."""
    d, heads, V = 64, 4, Copies.vocab
    torch.manual_seed(0)
    attentions = [Attention(d, heads, bias="", mask=Mask(causal=True),
                            score_bias=Buckets(heads, 16, 32, both_ways=False))
                  for _ in range(layers)]
    body = Stack(Tokens(V, d), [Block(attn=Residual(a, pre=LayerNorm(d))) for a in attentions],
                 LayerNorm(d))
    config = gpt2.Config(vocab=V, context=Copies.length, d=d, layers=layers, heads=heads)
    m = Model("gpt2", config, body, LMHead(d, V), "GPT2LMHeadModel")
    for p in m.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.02)
    fit(m.train(), Copies(), Plan(steps, batch=24, dtype="float32"), Recipe(rate=5e-3, warmup=50))
    return m.eval()


@pytest.mark.slow
@pytest.mark.scope("1.1.11")
def test_a_trained_model_has_an_induction_head_and_the_head_that_feeds_it():
    """One head of each kind carries the work, and both are verified; one layer cannot have them."""
    two = roles(trained(2, 900), only=("induction", "previous"), rows=50)
    verified = {v.score.role: v for v in sorted(two.verdicts, key=lambda v: v.effect)
                if v.verdict == "verified"}  # of each role the one of the greatest effect
    induction, feeder = verified["induction"], verified["previous"]
    assert induction.score.layer == 1 and induction.effect > 3  # nats; chance is 3.5
    assert feeder.score.layer == 0 and feeder.effect > 0.5  # of the weight of what they look for
    one = roles(trained(1, 450), only=("induction", "previous"), rows=50)
    assert not [v for v in one.verdicts if v.score.role == "induction"]


def test_the_grammar_gives_gold_links():
    for lang in templates.LANGUAGES:
        made = templates.sentences(lang, 2000)
        assert len({s.text for s in made}) >= 1990 and made == templates.sentences(lang, 2000)
    assert len(templates.TEMPLATES.strip().split("\n")) * 2 >= 60
    made = templates.sentences("es", 400)
    said = {(s.words[a].lower(), r, s.words[h].lower()) for s in made for r, a, h in s.relations}
    assert ("el", "det", "perro") in said and ("las", "det", "vacas") in said
    assert not any(a in ("la", "las") and h in ("perro", "gatos") for a, r, h in said)
    gender = {"él": "m", "ella": "f", "ellos": "m", "ellas": "f"}
    of = {form: row[1] for row in templates._rows(templates.NOUNS) for form in row[4:]}
    checked = [gender[s.words[a].lower()] == of[s.words[b].lower()] for s in made
               for a, b in s.corefs if s.words[a].lower() in gender]
    assert len(checked) > 40 and all(checked)
    for one, other in templates.twins("en", 60):
        at = one.cue[1]
        assert one.words[:at] == other.words[:at] and one.words[at] != other.words[at]
        assert one.words[at] in ("never", "not", "without")
    english, spanish = templates.pairs(400)[-1]
    assert {"D1", "N1"} <= english.names.keys() & spanish.names.keys()


CONLLU = """# text = Hablo del perro.
1\tHablo\thablar\tVERB\t_\t_\t0\troot\t_\t_
2-3\tdel\t_\t_\t_\t_\t_\t_\t_\t_
2\tde\tde\tADP\t_\t_\t4\tcase\t_\t_
3\tel\tel\tDET\t_\t_\t4\tdet\t_\t_
4\tperro\tperro\tNOUN\t_\t_\t1\tobl\t_\tSpaceAfter=No
5\t.\t.\tPUNCT\t_\t_\t1\tpunct\t_\t_
"""


def test_conllu_of_the_user(tmp_path):
    path = tmp_path / "own.conllu"
    path.write_text(CONLLU)
    (one,) = templates.read_conllu(path)
    assert one.text == "Hablo del perro." and one.words == ["Hablo", "del", "del", "perro", "."]
    assert ("case", 1, 3) in one.relations and ("det", 2, 3) in one.relations
    for broken, says in ((CONLLU.replace("\t4\tcase", "\t9\tcase"), "line 4.*head 9"),
                         (CONLLU.replace("\t", " "), "line 2.*10 columns"), ("", "no sentence"),
                         (CONLLU.replace("5\t.", "x\t."), "line 7.*no word's number")):
        path.write_text(broken)
        with pytest.raises(UntrustedInputError, match=f"(?s){says}"):
            templates.read_conllu(path)
    path.write_bytes(b"1\t\xff")
    with pytest.raises(UntrustedInputError, match="UTF-8"):
        templates.read_conllu(path)


def test_scores_are_the_sums_they_say():
    """By hand: the weight of the token before, and of what followed an equal token."""
    m = mirada.build("gpt2", size="tiny", seed=2)
    probe = probes.repeats(m, 3, period=5, times=2)
    with torch.no_grad(), m.record() as tape:
        m(**probe.batch)
    w = tape.pattern(0)
    made = scores.measure(w, probe)
    byhand = torch.stack([w[:, :, i, i - 4] for i in range(5, 10)]).mean(0)
    assert torch.allclose(made["induction", ""][0], byhand, atol=1e-6)
    before = torch.stack([w[:, :, i, i - 6] for i in range(6, 10)]).mean(0)
    assert torch.allclose(made["induction", "before"][0], before, atol=1e-6)
    equal = torch.stack([w[:, :, i, i - 5] for i in range(5, 10)]).mean(0)
    assert torch.allclose(made["duplicate", ""][0], equal, atol=1e-6)
    text = probes.passages(m, [], 4)
    with torch.no_grad(), m.record() as tape:
        m(**text.batch)
    w = tape.pattern(1)
    byhand = w.diagonal(-1, dim1=2, dim2=3).mean(-1)
    assert torch.allclose(scores.measure(w, text)["previous", ""][0], byhand, atol=1e-6)


@pytest.mark.scope("1.18.9")
def test_meaning_and_negation_are_scored():
    """Weights made to look at what is alike, or at the cue alone, score 1 or near; even ones do
    not."""
    m = planted.build(0)
    both = [s for pair in templates.twins("es", 20) for s in pair]
    probe = probes.sentences(m, both, "twins")
    even = (probe.seen / probe.seen.sum(-1, keepdim=True).clamp(min=1))[:, None]
    to_cue = even.clone()
    for b, s in enumerate(both):
        if b % 2 == 0:  # its twin has another word there
            query, key = (probe.words[b][at] for at in s.cue)
            to_cue[b, 0, query, key] = 1.0
    value, base = scores.measure(torch.cat([even, to_cue], 1), probe)["negation", ""]
    assert value.mean(0)[0] == pytest.approx(0.5, abs=0.1) and value.mean(0)[1] > 0.75
    assert base.mean() == 0.5
    text = probes.passages(m, [s.text for s in templates.sentences("es", 60)], 4)
    table = m.body.embed.token.weight.detach()
    x = torch.nn.functional.normalize(table[text.ids], dim=-1)
    alike = (4 * x @ x.transpose(1, 2)).masked_fill(~text.seen, -1e9).softmax(-1)
    plain = (text.seen / text.seen.sum(-1, keepdim=True))
    noise = torch.rand(alike.shape, generator=torch.Generator().manual_seed(0)) * plain
    value, _ = scores.similarity(torch.stack([alike, noise], 1), text, table)
    assert value.mean(0)[0] > 0.5 > 0.25 > value.mean(0)[1].abs()


def test_chance_and_many_tests():
    """Noise alone passes no more often than is said; a real difference does."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 2000, generator=draw)
    p = scores.chance(noise, torch.zeros(200, 1))
    assert (p < 0.05).float().mean() == pytest.approx(0.05, abs=0.015)
    assert scores.chance(noise + 1, torch.zeros(200, 1)).max() < 1e-6
    made = [scores.Score("decoder", 0, n, "sink", "", 0.9, 0.0, 200, x) for n, x in
            enumerate(p.tolist())]
    assert sum(s.passes for s in scores.controlled(made)) == 0


def score(role="duplicate"):
    return scores.Score("decoder", 0, 0, role, "", 0.9, 0.0, 24, 0.0, True)


def test_the_rule_of_verdicts():
    null = [0.01 * n for n in range(-16, 16)]
    up = torch.full((24,), 0.5) + torch.linspace(-0.1, 0.1, 24)
    half = torch.cat([torch.full((12,), -0.1), torch.full((12,), 2.0)])
    cases = {"verified": up, "contradicted": -up, "pattern only": half}
    for verdict, effect in cases.items():
        assert judged(score(), effect, null, "edges").verdict == verdict
    assert judged(score(), up, [0.4, *[1.0] * 9], "edges").verdict == "pattern only"
    assert judged(score("sink"), up * 0, [n + 1 for n in null], "rest").verdict == "verified"
    assert judged(score("sink"), up, null, "rest").verdict == "contradicted"


def test_a_claim_of_the_guides_is_answered_yes_and_no():
    """On the planted model, whose verbs look at their subject: yes, and it matters. Without that
    head: no."""
    example = Example("El perro con la mesa duerme", (("subject", "duerme", "perro", "mesa"),),
                      ({"perro": ("perro", "gato", "niño", "lobo", "pato", "tío")},
                       {"duerme": ("duerme", "corre", "canta", "llora")}))
    m = planted.build(0)
    (yes,) = claim(m, example)
    assert yes.holds and yes.head == ("decoder", 0, 3) and yes.weight > 0.9 and yes.share == 1
    assert yes.verdict.interval[0] > 0 and yes.verdict.percentile > 0.9
    assert yes.others["mesa"] < 0.1 and yes.by_place < 0.5 and "duerme → perro" in str(yes)
    K = m.body.blocks[0].attn.f.q.out_features // planted.HEADS
    m.body.blocks[0].attn.f.q.weight.data[3 * K : 4 * K] = 0
    (no,) = claim(m, example)
    assert not no.holds and no.matters is None and "subject): no" in str(no)


@pytest.mark.scope("1.18.12")
def test_the_examples_of_the_guides():
    shipped = mirada.look.examples()
    texts = [e.text for e in shipped.values()]
    for said in ("El gato bebió la leche porque tenía sed", "El perro grande corrió rápido",
                 "La pizza acaba de salir del horno, estaba rica", "Diego eats pizza",
                 "Pizza eats Diego"):
        assert said in texts
    assert texts[-1].split().count("banco") == 2
    for example in shipped.values():
        for _, query, key, _ in example.links:
            made = variants(example, query, key)
            assert made[0].words == example.text.replace(",", " ,").split()
            assert len(made) == len({s.text for s in made}) == (24 if example.variants else 1)
            for s in made:
                ((_, to, at),) = s.relations
                assert at != to and s.words[at].isalpha()


def test_what_a_user_may_do_wrong():
    m = mirada.build("gpt2", size="tiny")
    for wrong, says in (({"only": "previos"}, "no role is called 'previos'"),
                        ({"lang": "fr"}, "lang is en or es"),
                        ({"only": "coreference"}, "no tokenizer")):
        with pytest.raises(MiradaError, match=says):
            roles(m, **wrong)
    with pytest.raises(MiradaError, match="pictures"):
        roles(mirada.build("vit", size="tiny"))
    with pytest.raises(MiradaError, match="no tokenizer"):
        claim(m)
    with pytest.raises(MiradaError, match="does not see"):
        claim(planted.build(0), Example("El perro duerme", (("subject", "perro", "duerme", None),)))
    with pytest.raises(MiradaError, match="has no word 'vaca'"):
        claim(planted.build(0), Example("El perro duerme", (("subject", "duerme", "vaca", None),)))
    with pytest.raises(MiradaError, match="no example is called"):
        claim(planted.build(0), "perra")


def test_command(tmp_path, monkeypatch, capsys):
    mirada.save(mirada.build("gpt2", size="tiny"), tmp_path / "m")
    out = tmp_path / "map.svg"
    assert main(["look", str(tmp_path / "m"), "--roles", "-o", str(out), "--lang", "es"]) == 0
    said = capsys.readouterr()
    assert "de 8 cabezas tienen un papel" in said.out and out.read_text().startswith("<?xml")
    assert main(["look", str(tmp_path / "m")]) == 2
    assert "TEXT" in capsys.readouterr().err
