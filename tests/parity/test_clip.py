"""CLIP against the reference: both towers alone and matched, both rules of where a text ends."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from mirada.errors import MiradaError, UntrustedInputError
from mirada.models import clip as clip_family
from mirada.serve.served import Served
from mirada.weights import config as configs
from parity.harness import BAR, Row, compare, pair, run_theirs, table

TEXT = dict(vocab_size=40, hidden_size=24, intermediate_size=40, projection_dim=10,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16,
            bos_token_id=38, eos_token_id=39, pad_token_id=1, layer_norm_eps=1e-3)
VISION = dict(hidden_size=16, intermediate_size=20, projection_dim=10, num_hidden_layers=3,
              num_attention_heads=2, image_size=24, patch_size=8, layer_norm_eps=1e-4)


def texts(row: Row, settings=None) -> dict:
    """Rows that end at their fourth token and at their last, what stands behind being read too."""
    said = settings or row.settings
    ids = torch.randint(3, 38, (2, 7))
    ids[0, 3] = ids[1, -1] = 39
    if said["pad_token_id"] == 39:
        ids[0, 4:] = 39
    return {"input_ids": ids}


def pictures(row: Row, settings=None) -> dict:
    said = settings or row.settings
    side = said["image_size"]
    return {"pixel_values": torch.randn(3, said.get("num_channels", 3), side, side)}


def larger(row: Row) -> dict:
    return {"pixel_values": torch.randn(2, 3, 40, 56), "interpolate_pos_encoding": True}


def both(row: Row) -> dict:
    return texts(row, row.settings["text_config"]) | pictures(row, row.settings["vision_config"])


def matched(row: Row) -> dict:
    """As many texts as pictures, for the loss."""
    batch = both(row)
    return batch | {"pixel_values": batch["pixel_values"][:2]}


def towers(pair, theirs) -> dict:
    """The reference keeps each tower's attentions in that tower's own outputs."""
    found = {"text": theirs.get("text_model_output"), "vision": theirs.get("vision_model_output")}
    every = {name: out.attentions for name, out in found.items() if out is not None} or {
        "vision": theirs.attentions}
    return {name: [(a, torch.ones_like(a, dtype=torch.bool)) for a in layers]
            for name, layers in every.items()}


def text(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt", "left")}
    return Row(architecture, "CLIPTextConfig", TEXT | more, texts, **keys)


def vision(architecture: str, inputs=pictures, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt")}
    return Row(architecture, "CLIPVisionConfig", VISION | more, inputs, pads=False, left=False,
               **keys)


def clip(architecture: str, inputs, *, text_config=None, vision_config=None, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt", "pads", "left")}
    said = {"text_config": TEXT | (text_config or {}),
            "vision_config": VISION | (vision_config or {}), "projection_dim": 10}
    return Row(architecture, "CLIPConfig", said | more, inputs, patterns=towers, **keys)


ROWS = [
    clip("CLIPModel", matched),
    clip("CLIPModel", both, name="uneven", projection_dim=6, text_config={"hidden_act": "gelu"},
         vision_config={"num_channels": 1, "hidden_act": "prelu", "image_size": 30}),
    clip("CLIPForImageClassification", lambda row: pictures(row, row.settings["vision_config"]),
         num_labels=5, pads=False, left=False),
    text("CLIPTextModel"),
    text("CLIPTextModel", name="first-files", eos_token_id=2),
    text("CLIPTextModel", name="padded-with-ends", pad_token_id=39, left=False,
         exempt={"padding": "what a causal tower reads behind the end changes nothing there"}),
    text("CLIPTextModelWithProjection"),
    vision("CLIPVisionModel"),
    vision("CLIPVisionModel", larger, name="larger"),
    vision("CLIPVisionModelWithProjection", num_channels=1, hidden_act="gelu"),
]
test_parity = pytest.mark.scope("1.9.1")(table(ROWS))


def test_the_loss_of_pairs_is_the_references():
    two = pair(ROWS[0])
    theirs = run_theirs(two, two.batch | {"return_loss": True})["loss"]
    assert (two.ours(**two.batch, return_loss=True).loss - theirs).abs() < BAR
    assert "loss" not in two.ours(**two.batch, return_loss=False)
    apart = two.batch | {"pixel_values": two.batch["pixel_values"].flip(0)}
    assert (two.ours(**apart, return_loss=True).loss - theirs).abs() > 1e-3


def test_each_tower_reads_alone():
    two = pair(ROWS[0])
    whole = two.ours(**two.batch)
    pixels = two.batch["pixel_values"]
    texts, seen = two.ours(input_ids=two.batch["input_ids"]), two.ours(pixel_values=pixels)
    assert list(texts) == ["text_embeds"] and list(seen) == ["image_embeds"]
    assert torch.equal(texts.text_embeds, whole.text_embeds)
    assert torch.equal(seen.image_embeds, whole.image_embeds)
    assert torch.allclose(whole.image_embeds.norm(dim=-1), torch.ones(2).double())
    cosines = whole.text_embeds @ whole.image_embeds.T
    assert torch.allclose(whole.logits_per_text, cosines * two.ours.head.scale.exp())


FAULTS = {
    "logit scale": lambda m: m.head.scale.data.add_(0.01),
    "the norm before the vision blocks": lambda m: setattr(m.body.vision.embed, "norm",
                                                           torch.nn.Identity()),
    "the norm of the class token": lambda m: setattr(m.head.vision.pool.pick, "norm",
                                                     torch.nn.Identity()),
    "the class token": lambda m: m.body.vision.embed.cls.data.mul_(1.1),
    "a patch's position": lambda m: m.body.vision.embed.position.data[:, 1].mul_(1.1),
    "a word's position": lambda m: m.body.text.embed.position.weight.data[1].mul_(1.1),
    "where a text ends": lambda m: setattr(m.head.text.pool.pick, "eos", 12),
    "the text's projection": lambda m: m.head.text.pool.dense.weight.data[0].mul_(1.1),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_broken_part_shows(fault):
    two = pair(ROWS[0])
    ours, batch = copy.deepcopy(two.ours), dict(two.batch)
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][0, 5] = 39  # the first of two ends is the text's
    batch["input_ids"][0, 3] = 38
    theirs = run_theirs(two, batch)
    assert compare(two, batch, ours(**batch), theirs) < BAR
    fault(ours)
    assert compare(two, batch, ours(**batch), theirs) > 1e-5


def test_the_first_files_take_the_highest_id_for_the_end():
    old, new = pair(ROWS[4]), pair(ROWS[3])
    ids = torch.tensor([[38, 5, 7, 39, 39, 2]])
    for two, place in ((old, 3), (new, 3)):
        out = two.ours(input_ids=ids)
        assert torch.equal(out.pooler_output, out.last_hidden_state[:, place])
    ids = torch.tensor([[5, 38, 7, 6]])  # without an end, which the newer rule must find
    out = old.ours(input_ids=ids)
    assert torch.equal(out.pooler_output, out.last_hidden_state[:, 1])
    with pytest.raises(MiradaError, match="lacks the end-of-text token 39"):
        new.ours(input_ids=ids)


def test_keys_beside_a_towers_object_stand_over_it(tmp_path):
    """As in the first large files, where they bring the tower's defaults with them."""
    beside = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40,
              "num_hidden_layers": 2, "projection_dim": 10, "vocab_size": 40, "bos_token_id": 0,
              "max_position_embeddings": 16}
    said = {"text_config": TEXT | {"eos_token_id": 2, "layer_norm_eps": 0.5},
            "vision_config": VISION, "projection_dim": 10}
    theirs = transformers.CLIPConfig(**said, text_config_dict=beside)
    ours = read(json.loads(json.dumps(said | {"text_config_dict": beside,
                                              "vision_config_dict": None})))
    assert (ours.text.eos, ours.text.eps) == (49407, 1e-5) == (
        theirs.text_config.eos_token_id, theirs.text_config.layer_norm_eps)
    written = configs.write(ours, said | {"text_config_dict": beside})
    assert read(written) == ours


def read(raw: dict, ignore=()):
    return configs.read(clip_family.Config, {"model_type": "clip"} | raw, "config.json",
                        inert=clip_family.INERT, ignore=ignore).config


@pytest.mark.parametrize("raw, said", [
    ({"text_config": {"gap_size": 2}}, r"text_config\.gap_size: this key"),
    ({"vision_config": {"hidden_size": "768"}}, r"vision_config\.hidden_size.*whole number"),
    ({"vision_config": {"is_decoder": True}}, r"vision_config\.is_decoder: True asks for"),
    ({"vision_config": {"image_size": [24, 32]}}, r"vision_config\.image_size"),
    ({"text_config": {"num_attention_heads": 5}}, "cannot be cut into 5 heads"),
    ({"text_config": 7}, "text_config: 7 is not an object"),
    ({"text_config_dict": {"gap_size": 2}}, r"text_config\.gap_size: this key"),
    ({"text_config_dict": 7}, "does not hold what"),
    ({"gap_size": 2}, "gap_size: this key"),
])
def test_a_towers_keys_are_read_strictly(raw, said):
    with pytest.raises(UntrustedInputError, match=said):
        read(raw)


def test_a_towers_key_can_be_left_out_as_asked():
    raw = {"text_config": {"gap_size": 2, "num_hidden_layers": 3, "auto_map": {}}}
    reading = configs.read(clip_family.Config, raw, "config.json", inert=clip_family.INERT,
                           ignore=["text_config.gap_size"])
    assert reading.config.text.layers == 3 and reading.config.vision == read({}).vision
    assert reading.ignored == {"text_config.gap_size": "left out as asked",
                               "text_config.auto_map": "never acted on"}


def test_a_towers_fields_are_changed_by_name():
    clip = mirada.build("clip:tiny", text={"layers": 3}, vision={"act": "gelu"}, device="meta")
    assert (clip.config.text.layers, clip.config.text.d) == (3, 64)
    assert len(clip.body.text.blocks) == 3 and clip.config.vision.act == "gelu"
    for wrong, said in ((dict(text={"layer": 3}), "clip's text has no field.*mean 'layers'"),
                        (dict(text=3), "text: 3 is not"), (dict(test={}), "did you mean 'text'"),
                        (dict(vision={"act": "nothing"}), "is not one of"),
                        (dict(vision={"heads": 5}), "cannot be cut into 5 heads")):
        with pytest.raises(MiradaError, match=said):
            mirada.build("clip:tiny", device="meta", **wrong)


def test_what_shows_one_text_says_that_there_are_two_towers():
    clip = mirada.build("clip:tiny", seed=1)
    with pytest.raises(MiradaError, match="two towers"):
        Served("clip", clip, "clip")
    with pytest.raises(MiradaError, match="two towers"):
        mirada.look.roles(clip)


@pytest.mark.parametrize("size, count", [("base-32", 151_277_313), ("base-16", 149_620_737),
                                         ("large-14", 427_616_513), ("large-14-336", 427_944_193)])
def test_published_sizes(size, count):
    clip = mirada.build("clip", size=size, device="meta")
    assert sum(p.numel() for p in clip.parameters()) == count


@pytest.mark.parametrize("architecture, batch, said", [
    ("CLIPModel", {}, "reads tokens"),
    ("CLIPModel", {"inputs_embeds": torch.zeros(1, 4, 64)}, "texts and pictures"),
    ("CLIPModel", {"pixel_values": torch.zeros(1, 3, 32, 40)}, r"\(32, 40\) pixels"),
    ("CLIPModel", {"input_ids": torch.tensor([[3]]), "return_loss": True}, "of pairs"),
    ("CLIPForImageClassification", {"input_ids": torch.tensor([[3]])}, "pictures alone"),
])
def test_what_it_may_not_be_given(architecture, batch, said):
    clip = mirada.build("clip:tiny", architecture=architecture)
    with pytest.raises(MiradaError, match=said):
        clip(**batch)


def test_older_files_hold_the_positions_numbers(tmp_path):
    folder = pair(ROWS[0]).folder
    tensors = load_file(folder / "model.safetensors") | {
        "text_model.embeddings.position_ids": torch.arange(16)[None],
        "vision_model.embeddings.position_ids": torch.arange(10)[None]}
    (tmp_path / "old").mkdir()
    save_file(tensors, tmp_path / "old" / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path / "old")
    mirada.save(mirada.load(tmp_path / "old"), tmp_path / "new")
    again = load_file(tmp_path / "new" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_a_towers_file_may_bear_the_towers_name(tmp_path):
    """Files of text encoders from before the reference's names were shortened."""
    bare = pair(ROWS[3])
    tensors = load_file(bare.folder / "model.safetensors")
    (tmp_path / "old").mkdir()
    save_file({f"text_model.{n}": t for n, t in tensors.items()},
              tmp_path / "old" / "model.safetensors")
    shutil.copy(bare.folder / "config.json", tmp_path / "old")
    old = mirada.load(tmp_path / "old")
    assert torch.equal(old(**bare.batch).pooler_output, bare.ours(**bare.batch).pooler_output)
    mirada.save(old, tmp_path / "new")
    assert all(n.startswith("text_model.") for n in load_file(tmp_path / "new/model.safetensors"))
