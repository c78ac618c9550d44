"""Prompt tuning: soft tokens in front, in training, in generation and as files."""

import pytest
import torch
import transformers

import mirada
from mirada.errors import MiradaError, UntrustedInputError
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from mirada.train.sft import Answers
from parity.harness import wide

IDS = torch.arange(3, 12)[None].repeat(2, 1)
IGNORED = -100


def tiny(family="gpt2", **more):
    return mirada.build(f"{family}:tiny", seed=1, **more)


def scores(model, ids, mask=None):
    """Of the last token, read in one go."""
    with torch.no_grad():
        return model(ids, mask).logits[:, -1]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_it_is_the_model_behind_these_vectors(family, tmp_path):
    plain = tiny(family, dtype=torch.float64)
    model = mirada.edit.prompt(plain, 5, seed=2)
    folder, kind = mirada.save(plain, tmp_path / "plain"), getattr(transformers, plain.architecture)
    with wide(), torch.no_grad():
        theirs = kind.from_pretrained(folder, dtype=torch.float64).eval()
        embeds = theirs.get_input_embeddings()(IDS)
        embeds = torch.cat([model.soft.expand(2, -1, -1), embeds], 1)
        wanted = theirs(inputs_embeds=embeds).logits[:, 5:]
    with torch.no_grad():
        out = model(IDS, labels=IDS)
    assert out.logits.shape == (2, 9, 1024) and (out.logits - wanted).abs().max() < 1e-9
    loss = torch.nn.functional.cross_entropy(wanted[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    # the first given token is told too, by the last soft one: it is not among the 8 others
    with torch.no_grad():
        first = model(IDS, labels=torch.cat([torch.full((2, 1), IGNORED), IDS[:, 1:]], 1)).loss
    assert abs(float(first) - float(loss)) < 1e-9


def test_generation_reads_them_once_and_pads_do_not_matter():
    model = mirada.edit.prompt(tiny(), 4, seed=2)
    text = model.generate(IDS[:1], max_new_tokens=6, do_sample=False)
    ids = IDS[:1]
    for _ in range(6):  # without a cache
        ids = torch.cat([ids, scores(model, ids).argmax(-1, keepdim=True)], 1)
    assert torch.equal(text, ids)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS[:1]], 1)
    mask = torch.tensor([[0, 0, 0] + [1] * 9])
    torch.testing.assert_close(scores(model, padded, mask), scores(model, IDS[:1]))
    both = model.generate(torch.cat([padded, padded]), torch.cat([mask, mask]), max_new_tokens=6,
                          do_sample=False)
    assert torch.equal(both[0, 3:], text[0])
    cache = model.new_cache()
    with torch.no_grad():
        model(IDS[:1], cache=cache)
        cache.crop(4)
        again = model(IDS[:1, 4:], cache=cache).logits[:, -1]
    torch.testing.assert_close(again, scores(model, IDS[:1]))
    assert model.context == 256 - 4


def test_an_encoder_reads_them_before_the_source():
    model = mirada.edit.prompt(tiny("t5"), 4, seed=2)
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    with torch.no_grad():
        out = model(IDS, mask, decoder_input_ids=IDS[:, :3])
        short = model(IDS[1:, :6], decoder_input_ids=IDS[1:, :3])
        bare = tiny("t5")(IDS, mask, decoder_input_ids=IDS[:, :3])
    assert out.encoder_last_hidden_state.shape[1] == 13 and out.logits.shape == bare.logits.shape
    torch.testing.assert_close(out.logits[1:], short.logits)
    assert (out.logits - bare.logits).abs().max() > 1e-3
    text = model.generate(IDS, mask, max_new_tokens=4, do_sample=False)
    ids = text[:, :1]
    for _ in range(text.shape[1] - 1):
        with torch.no_grad():
            step = model(IDS, mask, decoder_input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, step], 1)
    assert torch.equal(text[0], ids[0])


def test_they_alone_learn_a_task(tmp_path):
    """The frozen model counts on; the soft tokens turn that to another habit of its."""
    plain = tiny("llama", vocab=24, layers=2, d=32, heads=2, kv_heads=2, hidden=64)
    read = [([mark, n], [IGNORED, n + step, 23]) for mark, step in ((21, 1), (22, 2))
            for n in range(1, 13)]
    rows = [(ids + answer[1:], [IGNORED] * 2 + answer[1:]) for ids, answer in read]
    plan = Plan(steps=120, batch=24, dtype="float32")
    assert fit(plain, Answers(rows), plan, Recipe(rate=1e-2)).loss < 0.1
    model = mirada.edit.prompt(plain, 2, seed=2)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["soft"]
    bare = [([n, n + 2, 23], [IGNORED, n + 2, 23]) for n in range(1, 13)]  # the mark is missing
    before = {n: p.detach().clone() for n, p in plain.named_parameters()}
    result = fit(model, Answers(bare), plan, Recipe(rate=3e-2))
    assert result.loss < 0.3 * result.history[0]["loss"]
    assert all(torch.equal(p, before[n]) for n, p in plain.named_parameters())
    mirada.edit.save_prompt(model, tmp_path / "soft")
    again = mirada.edit.load_prompt(plain, tmp_path / "soft")
    assert torch.equal(scores(again, IDS), scores(model, IDS))
    assert not any(p.requires_grad for p in again.parameters())


def test_what_cannot_be(tmp_path):
    plain = tiny()
    model = mirada.edit.prompt(plain, 3, seed=2)
    assert model.path().startswith("torch: Prompted has no native program")
    for call, said in [
            (lambda: mirada.edit.prompt(model), "has soft tokens already"),
            (lambda: mirada.edit.prompt(tiny("bert")), "does not write"),
            (lambda: mirada.edit.prompt(plain, 256), "leaves the model room"),
            (lambda: mirada.save(model, tmp_path / "no"), "save_prompt writes alone"),
            (lambda: model(IDS, position_ids=IDS), "input_ids and attention_mask alone"),
            (lambda: model(IDS, cache=plain.new_cache()), "use new_cache"),
            (lambda: model(IDS + 2000), "not in this model's vocabulary")]:
        with pytest.raises(MiradaError, match=said):
            call()
    mirada.edit.save_prompt(mirada.edit.prompt(tiny(d=32), 3, seed=2), tmp_path / "narrow")
    with pytest.raises(UntrustedInputError, match=r"must be \(tokens, 64\), not \[3, 32\]"):
        mirada.edit.load_prompt(plain, tmp_path / "narrow")
    mirada.edit.save_adapter(mirada.edit.lora(plain, seed=0), tmp_path / "lora")
    with pytest.raises(UntrustedInputError, match="PROMPT_TUNING"):
        mirada.edit.load_prompt(plain, tmp_path / "lora")
