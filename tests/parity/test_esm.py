"""ESM-2 and ESM-1b against the reference."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from mirada.errors import MiradaError
from mirada.models.esm import contacts
from parity.harness import Row, pair, shake, table, tokens, wide

TINY = dict(vocab_size=33, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            intermediate_size=40, max_position_embeddings=20, pad_token_id=1, mask_token_id=32)
ESM2 = dict(position_embedding_type="rotary", token_dropout=True, layer_norm_eps=1e-5)


def hidden(row: Row) -> dict:
    """Three of the first row's residues and one of the second's are hidden."""
    batch = tokens(row)
    batch["input_ids"][0, [1, 2, 5]] = batch["input_ids"][1, 3] = 32
    return batch


def row(architecture: str, **more) -> Row:
    """The reference counts learned positions itself, from the pad's id on. A pooler reads the first
    token, so there is nothing to compare where that is a pad."""
    name, pooled = more.pop("name", ""), architecture.endswith(("Model", "SequenceClassification"))
    steps = ("esm." * (architecture != "EsmModel") + "rotary_embeddings.inv_freq",)
    rotary = more.get("position_embedding_type") == "rotary"
    exempt = {"rotary": "the file brings its own angular steps"} if rotary else {}
    return Row(architecture, "EsmConfig", TINY | more, inputs=hidden, name=name, told=False,
               left=not pooled, buffers=steps * rotary, exempt=exempt)


ROWS = [
    row("EsmForMaskedLM", **ESM2),
    row("EsmForMaskedLM", name="1b", emb_layer_norm_before=True, token_dropout=True),
    row("EsmForMaskedLM", name="odd", tie_word_embeddings=False, rope_theta=500.0,
        position_embedding_type="rotary", emb_layer_norm_before=True, layer_norm_eps=1e-3),
    row("EsmModel", **ESM2),
    row("EsmModel", name="learned"),
    row("EsmForSequenceClassification", **ESM2, num_labels=3),
    row("EsmForTokenClassification", **ESM2, num_labels=3),
]
test_parity = table(ROWS)


def protein(both) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole row and one with two pads, each between its ends."""
    ids = both.batch["input_ids"].clone()
    ids[:, 0], ids[0, -1], ids[1, -3:] = 0, 2, torch.tensor([2, 1, 1])
    return ids, (ids != 1).long()


@pytest.mark.parametrize("row", [ROWS[0], ROWS[1], ROWS[3]], ids=str)
def test_contacts_are_the_references(row):
    both = pair(row)
    ids, real = protein(both)
    with wide(), torch.no_grad():
        whole = both.theirs.predict_contacts(ids[:1], torch.ones_like(ids[:1]))
        padded = both.theirs.predict_contacts(ids, real)
    assert (contacts(both.ours, ids[:1]) - whole).abs().max() < 1e-10
    ours = contacts(both.ours, ids, real)
    assert ours.shape == (2, 5, 5) and (ours - padded).abs().max() < 1e-10
    assert whole.std() > 1e-3 and (ours[1] - ours[0]).abs().max() > 1e-3
    assert (contacts(both.ours, ids) - padded)[1].abs().max() > 1e-6


def test_hidden_residues_scale_the_others():
    """What training's 12 % would do: nothing hidden shrinks all, everything hidden is zero."""
    embed = mirada.build("esm:tiny", seed=0).body.embed
    model = mirada.build("esm:tiny", seed=0).double()
    seen = []
    model.body.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for ids in ([5, 6, 7, 8], [5, 6, 32, 32], [32, 32, 32, 32]):
        model(torch.tensor([ids]))
    assert torch.allclose(seen[0], 0.88 * embed.token.weight[5:9].double())
    assert torch.allclose(seen[1][:, :2], 2 * seen[0][:, :2]) and not seen[1][:, 2:].any()
    assert not seen[2].any() and model(torch.tensor([[32]])).logits.isfinite().all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("esm")
    theirs = transformers.EsmForMaskedLM(transformers.EsmConfig(**TINY | ESM2))
    shake(theirs)
    theirs.save_pretrained(path)
    return path


def test_a_published_file_keeps_its_angles_and_its_names(folder, tmp_path):
    """Released files hold, for each layer, angular steps rounded to half precision, positions that
    nothing reads, and norms with a weight and a bias where today's writer has gamma and beta."""
    now = load_file(folder / "model.safetensors")
    assert any(n.endswith("LayerNorm.gamma") for n in now)
    named = {n.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"): t for n, t in now.items() if "inv_freq" not in n}
    steps = (10000.0 ** (-torch.arange(0, 8, 2) / 8)).half().float()
    layer = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
    released = named | {layer.format(n): steps.clone() for n in range(2)} | {
        "esm.embeddings.position_embeddings.weight": torch.zeros(20, 24),
        "esm.embeddings.position_ids": torch.arange(20)[None]}
    (tmp_path / "released").mkdir()
    save_file(released, tmp_path / "released" / "model.safetensors")
    config = (folder / "config.json").read_text()
    (tmp_path / "released" / "config.json").write_text(config)
    ours, ids = mirada.load(tmp_path / "released"), torch.randint(4, 24, (1, 16))
    theirs = transformers.EsmForMaskedLM.from_pretrained(tmp_path / "released").eval()
    assert torch.equal(theirs.esm.rotary_embeddings.inv_freq, steps)
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)
    assert (mirada.load(folder)(ids).logits - ours(ids).logits).abs().max() > 1e-4
    for path, before in ((folder, now), (tmp_path / "released", released)):
        mirada.save(mirada.load(path), tmp_path / f"again-{path.name}")
        after = load_file(tmp_path / f"again-{path.name}" / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_a_file_without_angles_turns_by_its_base(folder, tmp_path, base):
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "inv_freq" not in n},
              tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text()) | {"rope_theta": base}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ids = torch.randint(4, 24, (1, 16))
    theirs, ours = transformers.EsmForMaskedLM.from_pretrained(tmp_path), mirada.load(tmp_path)
    assert torch.allclose(ours(ids).logits, theirs.eval()(ids).logits, atol=1e-5)
    ours.body.blocks[0].attn.f.rotary.base *= 1.1
    assert (ours(ids).logits - theirs(ids).logits).abs().max() > 1e-4


@pytest.mark.parametrize("key, value", [
    ("is_folding_model", True), ("hidden_act", "relu"), ("mask_token_id", None),
    ("position_embedding_type", "relative_key"), ("pad_token_id", None),
    ("num_attention_heads", 8)])
def test_what_esm_here_is_not_is_refused(folder, tmp_path, key, value):
    raw = json.loads((folder / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(MiradaError):
        mirada.load(tmp_path)


@pytest.mark.parametrize("changes, said", [
    ({"d": 20}, "a head has 5"), ({"mask": None}, "needs the id of the mask")])
def test_what_cannot_be_built_is_said(changes, said):
    with pytest.raises(MiradaError, match=said):
        mirada.build("esm:tiny", **changes)


@pytest.mark.parametrize("size, count", [
    ("8m", 7_512_474), ("35m", 33_501_394), ("150m", 148_140_154), ("650m", 651_043_254),
    ("3b", 2_839_005_634), ("15b", 15_129_100_194)])
def test_published_sizes(size, count):
    model = mirada.build("esm", size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count
