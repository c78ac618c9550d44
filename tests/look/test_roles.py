"""Head roles: models whose heads were planted by hand, and small ones that learned them."""

import csv
import json

import pytest
import torch

import mirada
from look import planted
from mirada.cli import main
from mirada.errors import MiradaError, UntrustedInputError
from mirada.look.heads import probes, scores, templates
from mirada.look.heads.claims import Example, claim, variants
from mirada.look.heads.report import roles
from mirada.look.heads.verdicts import judged

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
