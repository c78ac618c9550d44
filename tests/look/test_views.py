"""Views: bertviz's names and forms, every number in one page, nothing of a token in its HTML."""

import base64
import json
import re
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import mirada
from mirada import look
from mirada.errors import MiradaError
from mirada.look import pictures
from mirada.look.views import given, view
from mirada.look.views.words import WORDS

HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"'`${1}",
           "\x00\x1b[31m", "\u202eabc", "\U0001f469\u200d\U0001f467", "\ud800", "", " ", "$x^2$"]


def weights(L=2, H=3, T=5, S=None, causal=False) -> list[torch.Tensor]:
    """As a library hands them out: (1, H, T, S) for each layer."""
    scores = torch.randn(L, 1, H, T, S or T, generator=torch.Generator().manual_seed(0)) * 2
    if causal:
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    return list(scores.softmax(-1))


def words(count: int) -> list[str]:
    return [f"w{n}" for n in range(count)]


def inside(page: str) -> tuple[dict, bytes]:
    """What a page's data block holds, read as its script reads it."""
    (block,) = re.findall(r'<script type="application/base64" id="data">([^<]*)</script>', page)
    raw = zlib.decompress(base64.b64decode(block))
    size = int.from_bytes(raw[-4:], "little")
    return json.loads(raw[-4 - size : -4]), raw[: -4 - size]


@pytest.fixture(scope="module")
def taped():
    """family -> a tape of two texts through a tiny model of it."""
    made = {}
    for family in ("gpt2", "llama", "bloom", "gemma2", "deberta", "t5", "bert", "vit"):
        m = mirada.build(family, size="tiny", seed=3)
        ids = torch.randint(5, 100, (2, 9), generator=torch.Generator().manual_seed(1))
        batch = dict(input_ids=ids)
        if family == "vit":
            batch = dict(pixel_values=torch.randn(1, 3, m.config.image, m.config.image))
        if m.encoder_decoder:
            batch["decoder_input_ids"] = ids[:, :5]
        with m.record(v=True, resid="sublayers", z=True) as tape, torch.inference_mode():
            m(**batch)
        made[family] = tape
    return made


# The guide's code


@pytest.mark.scope("1.18.2", "1.18.3")
def test_the_guides_code_runs_by_changing_the_import():
    attention, tokens = weights(), words(5)
    names: dict = {}
    exec("from bertviz import head_view, model_view".replace("bertviz", "mirada.look"), names)
    head, model = names["head_view"](attention, tokens), names["model_view"](attention, tokens)
    about, data = inside(head.html())
    arm = about["arms"][0]
    assert (arm["queries"], arm["keys"], arm["layers"], arm["heads"]) == (
        tokens, tokens, [0, 1], [0, 1, 2])
    kept = (np.frombuffer(data, np.uint8).reshape(2, 3, 5, 5) / 255.0) ** 2
    wanted = torch.cat(attention).numpy()
    assert np.abs(kept - wanted).max() <= about["stated"]
    assert np.array_equal(head.data()["attention"], wanted)
    assert inside(model.html())[1] == data


def test_arguments_stand_in_bertvizs_order():
    attention, tokens = weights(H=3), words(5)
    about, _ = inside(look.head_view(attention, tokens, 2, False, 1, [0, 2]).html())
    assert (about["arms"][0]["split"], about["layer"], about["heads"]) == (2, 1, [0, 2])
    about, _ = inside(look.model_view(attention, tokens, 2, True, "dark").html())
    assert about["theme"] == "dark" and about["arms"][0]["split"] == 2
    about, _ = inside(look.head_view(
        encoder_attention=weights(T=4), decoder_attention=weights(T=3),
        cross_attention=weights(T=3, S=4), encoder_tokens=words(4), decoder_tokens=words(3),
        include_layers=[1]).html())
    arms = {arm["name"]: (len(arm["queries"]), len(arm["keys"])) for arm in about["arms"]}
    assert arms == {"encoder": (4, 4), "decoder": (3, 3), "cross": (3, 4)}
    assert [arm["at"] for arm in about["arms"]] == [0, 48, 75] and about["layer"] == 1


def test_forms_that_weights_come_in():
    wanted = look.head_view(weights(), words(5)).html()
    for form in (tuple(weights()), torch.stack(weights()), [w[0] for w in weights()],
                 [w.numpy() for w in weights()], torch.cat(weights()),
                 [w.double().requires_grad_() for w in weights()]):
        assert look.head_view(form, words(5)).html() == wanted
    sub = look.model_view(weights(), words(5), include_layers=[1], include_heads=[2, 0])
    assert np.array_equal(sub.data()["attention"][0], weights()[1][0, [2, 0]].numpy())


def test_marks_of_spaces_are_taken_off():
    tokens = ["Ġgato", "▁leche", "sed</w>", "Ċ", "Ġ"]
    arm = inside(look.head_view(weights(), tokens).html())[0]["arms"][0]
    assert arm["queries"] == [" gato", " leche", "sed", "⏎", "␣"]
    arm = inside(look.head_view(weights(), tokens, prettify_tokens=False).html())[0]["arms"][0]
    assert arm["queries"] == tokens


@pytest.mark.parametrize("arguments, said", [
    (dict(attention=weights()), "tokens is missing"),
    (dict(attention=weights(), tokens=words(4)), "4 texts for weights of 5"),
    (dict(), "there is no attention"),
    (dict(attention=weights(), tokens=words(5), encoder_attention=weights()), "not both"),
    (dict(attention=[torch.rand(3, 2, 5, 5)], tokens=words(5)), "batch of 3"),
    (dict(attention=[None, None], tokens=words(5)), "attn_implementation='eager'"),
    (dict(attention=[weights(), weights()], tokens=words(5)), "one list a step"),
    (dict(attention=torch.rand(5, 5), tokens=words(5)), "one tensor"),
    (dict(attention=[torch.full((1, 2, 5, 5), torch.nan)], tokens=words(5)), "not finite"),
    (dict(attention=[], tokens=words(5)), "no layer"),
    (dict(attention=weights(), tokens=words(5), layer=2), "layer 2"),
    (dict(attention=weights(), tokens=words(5), heads=[3]), "head 3"),
    (dict(attention=weights(), tokens=words(5), include_layers=[7]), "layer 7"),
    (dict(attention=weights(), tokens=words(5), sentence_b_start=5), "sentence_b_start is 5"),
    (dict(attention=weights(), tokens=words(5), html_action="show"), "html_action"),
    (dict(attention=weights(), tokens=words(5), lang="fr"), "'fr'"),
])
def test_what_is_refused_in_one_sentence(arguments, said):
    with pytest.raises(MiradaError, match=said):
        look.head_view(**arguments)


# The page


def test_a_page_holds_its_data_once_and_reaches_nothing():
    page = look.head_view(weights(), words(5)).html()
    rule = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert rule.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in rule
    assert "http" not in page.replace("http-equiv", "")
    script = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(script) == 1 and view._hash(script[0]) in rule
    assert page.count('id="data"') == 1


@pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's font has no emoji
@pytest.mark.parametrize("kind", ["head_view", "model_view"])
def test_hostile_tokens_never_stand_in_the_page(kind):
    show = getattr(look, kind)
    plain = show(weights(T=len(HOSTILE)), words(len(HOSTILE)))
    made = show(weights(T=len(HOSTILE)), HOSTILE)

    def bare(page):
        return re.sub(r'id="data">[^<]*<', "<", page)

    assert bare(made.html()) == bare(plain.html())
    assert made._repr_html_().count("<") == 2, "the iframe alone"
    assert inside(made.html())[0]["arms"][0]["queries"][0] == HOSTILE[0]
    assert made.to_svg().startswith("<?xml") and "<script" not in made.to_svg()


def test_pages_stay_small():
    page = look.head_view(weights(12, 12, 128), words(128)).html()
    assert len(page) <= 3.5 * 2**20
    page = look.head_view(weights(1, 12, 512), words(512)).html()
    assert len(page) <= 4.5 * 2**20


def test_too_large_a_page_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr(view, "MOST", 1 << 16)
    with pytest.raises(MiradaError, match="include_layers.*mirada explore"):
        look.head_view(weights(2, 12, 100), words(100)).html()


def test_a_long_text_is_pooled_in_the_model_view(taped):
    made = look.model_view(weights(1, 2, 300), words(300))
    about, data = inside(made.html())
    arm = about["arms"][0]
    assert (arm["rows"], arm["cols"], arm["tile"]) == (128, 128, [4, 4])
    assert len(data) == 2 * 128 * 128
    largest = weights(1, 2, 300)[0].max().sqrt().item()
    assert np.frombuffer(data, np.uint8).max() == round(255 * largest)


def test_weights_outside_0_to_1_are_counted():
    given = weights()
    given[0][0, 0, 0, :2] = torch.tensor([-0.5, 1.5])
    about, data = inside(look.head_view(given, words(5)).html())
    assert about["clipped"] == 2 and list(data[:2]) == [0, 255]


# A tape


@pytest.mark.scope("1.18.4")
@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "gemma2", "deberta", "t5"])
def test_neuron_view_adds_up_to_the_weights_of_any_family(taped, family):
    tape = taped[family]
    for stack in tape.stacks:
        made = look.neuron_view(tape, 1, 2, stack=stack, row=1)
        T, S = made.scores.shape
        for i, j in ((0, 0), (T - 1, 0), (T - 1, S - 1), (1, 2)):
            terms = tape.qk_terms(1, 2, i, j, stack=stack, row=1)
            assert made.seen[i, j] == terms.seen
            assert terms.seen is False or abs(made.scores[i, j] - terms.score) < 1e-5
            assert np.abs(made.products(i, j) - terms.products.numpy()).max() < 1e-6
        softmax = torch.from_numpy(made.scores).softmax(-1)
        assert (softmax - torch.from_numpy(made.weights)).abs().max() < 1e-6
        about, data = inside(made.html())
        floats = np.frombuffer(data, "<f4", T * about["channels"])
        assert np.array_equal(floats.reshape(T, -1), made.q)
    assert isinstance(made.figure(), Figure) and "largest channels" in str(made)


def test_neuron_view_follows_a_cached_generation():
    m = mirada.build("llama", size="tiny", seed=3)
    ids = torch.randint(5, 100, (1, 6), generator=torch.Generator().manual_seed(2))
    with m.record() as tape, torch.inference_mode():
        out = m.generate(ids, max_new_tokens=5, do_sample=False)
    cached = look.neuron_view(tape, 1, 0)
    with m.record() as tape, torch.inference_mode():
        m(input_ids=out[:, :-1])
    whole = look.neuron_view(tape, 1, 0)
    assert np.array_equal(cached.seen, whole.seen)
    assert np.abs(cached.scores[whole.seen] - whole.scores[whole.seen]).max() < 1e-5


def test_neuron_view_needs_scores(taped):
    with pytest.raises(MiradaError, match="give a tape"):
        look.neuron_view(weights(), 0, 0)


@pytest.mark.scope("1.18.3")
def test_a_tape_shows_every_stack_with_its_own_tokens(taped):
    made = look.model_view(taped["t5"], row=1)
    about, data = inside(made.html())
    assert [arm["name"] for arm in about["arms"]] == ["encoder", "decoder", "cross"]
    assert [(arm["rows"], arm["cols"]) for arm in about["arms"]] == [(9, 9), (5, 5), (5, 9)]
    bytes_ = np.frombuffer(data, np.uint8)
    for arm in about["arms"]:
        wanted = taped["t5"].pattern(1, stack=arm["name"])[1].float().numpy()
        size = wanted.size
        kept = bytes_[arm["at"] + size : arm["at"] + 2 * size].reshape(wanted.shape)
        assert np.abs((kept / 255.0) ** 2 - wanted).max() <= about["stated"]
        assert np.array_equal(made.data()[arm["name"]][1], wanted)
    raw = {f"{name}_attention": [taped["t5"].pattern(n, stack=name)[1:] for n in range(2)]
           for name in ("encoder", "decoder", "cross")}
    arms = about["arms"]
    again = look.model_view(**raw, encoder_tokens=arms[0]["queries"],
                            decoder_tokens=arms[1]["queries"])
    assert inside(again.html())[1] == data
    (only,) = inside(look.head_view(taped["t5"], stack="cross", row=1).html())[0]["arms"]
    assert (only["queries"], only["keys"]) == (arms[1]["queries"], arms[0]["queries"])


def test_flow_lens_attribution_and_next_token_are_views_too(taped):
    tape = taped["gpt2"]
    for made in (look.flow(tape), look.flow(tape, "routes"), look.lens(tape), look.dla(tape),
                 look.next_token(tape)):
        about, _ = inside(made.html("es"))
        assert about["lang"] == "es" and about["title"]
        assert "<iframe sandbox" in made._repr_html_() and isinstance(made.figure(), Figure)


def test_next_token_is_the_models_own_distribution(taped):
    tape = taped["gpt2"]
    found = look.next_token(tape, k=4, row=1)
    logits = tape.model(input_ids=tape.ids()).logits[1, -1]
    wanted = logits.softmax(-1)
    assert np.abs(found.probs - wanted.detach().numpy()).max() < 1e-6
    rows = found.data()["rows"]
    assert [r["id"] for r in rows] == wanted.topk(4).indices.tolist()
    assert str(found).splitlines()[0].split() == ["TokenId", "Probs", "Token"]
    with pytest.raises(MiradaError, match="token 99"):
        look.next_token(tape, pos=99)


def test_a_look_may_be_a_page(real, tmp_path):
    m = mirada.load(real("minilm"))
    found = pictures.look(m, "El gato bebió la leche porque tenía sed", out=tmp_path / "x.html")
    about, _ = inside((tmp_path / "x.html").read_text())
    assert (about["layer"], about["heads"]) == (found.layer, [found.head])
    assert [t.strip() for t in about["arms"][0]["queries"]] == [t.strip() for t in found.queries]


# Maps


@pytest.mark.parametrize("lang, labels", [
    ("en", ("Key positions", "Query positions")),
    ("es", ("Posiciones de las claves", "Posiciones de las consultas"))])
def test_attention_map_bears_the_guides_labels(taped, lang, labels):
    for attention, tokens in ((weights(), words(5)), (weights()[0], words(5)), (taped["t5"], None),
                              (weights()[0][0, 1], None), (taped["vit"], None)):
        figure = look.attention_map(attention, tokens, 0, 0, lang=lang)
        assert isinstance(figure, Figure)
        large = figure.get_axes()[0]
        assert (large.get_xlabel(), large.get_ylabel()) == labels


def test_attention_map_draws_the_head_that_is_asked_for(taped):
    tape = taped["bert"]
    figure = look.attention_map(tape, layer=1, head=2, row=1)
    wanted = tape.pattern(1, 2)[1, 0].numpy()
    assert np.allclose(figure.get_axes()[0].images[0].get_array(), wanted)
    axes = Figure().subplots()
    assert look.attention_map(tape, layer=1, head=2, row=1, ax=axes) is axes.figure
    assert np.allclose(axes.images[0].get_array(), wanted) and axes.get_xlabel() == "Key positions"
    cross = look.attention_map(taped["t5"], layer=0, head=1, stack="cross").get_axes()[0]
    assert cross.images[0].get_array().shape == (5, 9)


@pytest.mark.parametrize("name", ["head.html", "head.png", "head.svg", "head.pdf"])
def test_saved_as_its_ending_says(tmp_path, name):
    made = look.head_view(weights(), ["$a$", *words(4)])
    assert made.save(tmp_path / name) == str(tmp_path / name)
    starts = {"html": b"<!doctype html>", "png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert (tmp_path / name).read_bytes().startswith(starts[name[5:]])
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_file_that_cannot_be_is_refused(tmp_path):
    made = look.head_view(weights(), words(5))
    for path in (tmp_path / "head.doc", tmp_path / "no" / "head.html"):
        with pytest.raises(MiradaError, match="a folder that exists"):
            made.save(path)
    with pytest.raises(MiradaError):
        made.to_png(tmp_path / "head.svg")
    assert made.to_png().startswith(b"\x89PNG")


def test_a_notebook_shows_each_view_once(monkeypatch):
    shell, seen = types.SimpleNamespace(execution_count=1), []
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(
        get_ipython=lambda: shell, display=types.SimpleNamespace(
            display=lambda made: seen.append(made._repr_html_()))))
    first = look.head_view(weights(), words(5))  # in the middle of a cell, as in the guide
    last = look.model_view(weights(), words(5))  # at its end, where the notebook shows it itself
    assert len(seen) == 2 and all("<iframe" in page for page in seen)
    assert last._repr_html_() is None
    shell.execution_count = 2
    assert "<iframe" in first._repr_html_()
    look.head_view(weights(), words(5), html_action="return")
    assert len(seen) == 2


def test_both_languages_have_the_same_words():
    assert WORDS["en"].keys() == WORDS["es"].keys()
    for name, word in WORDS["en"].items():
        gaps, theirs = (sorted(re.findall(r"\{\w+\}", w)) for w in (word, WORDS["es"][name]))
        assert gaps == theirs, name
    used = set()
    for source in view.HERE.glob("*.js"):
        used |= set(re.findall(r"\bW\.(\w+)", source.read_text()))
    assert used <= WORDS["en"].keys()


def test_special_tokens_are_known():
    tokens = ["[CLS]", "<s>", "</s>", "<|endoftext|>", "<pad>", "gato", "<", "[x]"]
    assert given.resting(tokens) == ([0, 1, 2, 3, 4], True)
    assert given.resting(["El", "gato"]) == ([0], False)
