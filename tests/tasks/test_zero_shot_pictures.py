"""Labels for pictures by their texts alone, as the reference's pipeline gives them."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

import mirada
from mirada.errors import MiradaError
from parity.harness import shake
from text import vocabularies as v

LABELS = ["a cat", "two dogs", "the sea"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny seeded model with a tokenizer of bytes and an image processor."""
    where = tmp_path_factory.mktemp("clip") / "model"
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(a + "</w>" for a in alphabet), "<|startoftext|>", "<|endoftext|>"]
    v.folder(where, {"vocab.json": {w: n for n, w in enumerate(words)},
                     "merges.txt": "#version: 0.2\n"})
    tokenizer = transformers.CLIPTokenizer.from_pretrained(where)
    end = len(words) - 1
    said = {"text_config": dict(vocab_size=len(words), hidden_size=24, intermediate_size=40,
                                num_hidden_layers=2, num_attention_heads=4, eos_token_id=end,
                                bos_token_id=end - 1, pad_token_id=end),
            "vision_config": dict(hidden_size=16, intermediate_size=20, num_hidden_layers=2,
                                  num_attention_heads=2, image_size=24, patch_size=8),
            "projection_dim": 10}
    torch.manual_seed(3)
    model = transformers.CLIPModel(transformers.CLIPConfig(**said)).eval()
    shake(model)
    model.logit_scale.data.fill_(1.0)  # the scores of random vectors lie apart, and none at 1
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    (where / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24},
        "crop_size": {"height": 24, "width": 24}}))
    return where


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(4)
    return [Image.fromarray(draw.integers(0, 255, (31, 43, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def ours(folder):
    return mirada.pipeline("zero-shot-image-classification", folder)


@pytest.mark.scope("1.9.1")
@pytest.mark.parametrize("template", [None, "{}", "a drawing of {}"])
def test_as_the_references_pipeline(folder, pictures, ours, template):
    theirs = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    more = {} if template is None else {"hypothesis_template": template}
    wanted = theirs(pictures, candidate_labels=LABELS, **more)
    found = ours(pictures, candidate_labels=LABELS, **more)
    assert [[one["label"] for one in row] for row in found] == [
        [one["label"] for one in row] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        for one, two in zip(row, other, strict=True):
            assert one.keys() == two.keys() and abs(one["score"] - two["score"]) < 2e-5
        assert abs(sum(one["score"] for one in row) - 1) < 1e-5
    alone = ours(pictures[0], candidate_labels=LABELS, **more)
    assert [one["label"] for one in alone] == [one["label"] for one in found[0]]
    assert len({round(one["score"], 3) for row in found for one in row}) > 6, "all is one score"


@pytest.mark.scope("1.9.1")
def test_several_templates_are_averaged(pictures, ours):
    several = ["a photo of {}.", "a drawing of {}.", "{}"]
    found = ours(pictures[1], LABELS, hypothesis_template=several)
    model, scores = ours.model, {}
    seen = model(**model.processor(pictures[1])).image_embeds[0]
    for label in LABELS:
        texts = model.tokenizer([one.replace("{}", label) for one in several])
        mean = model(input_ids=texts["input_ids"],
                     attention_mask=texts["attention_mask"]).text_embeds.mean(0)
        scores[label] = mean / mean.norm() @ seen * model.head.scale.exp()
    wanted = torch.stack([*scores.values()]).softmax(0).tolist()
    got = {one["label"]: one["score"] for one in found}
    assert [got[label] for label in LABELS] == pytest.approx(wanted, abs=1e-5)
    alone = {one["label"]: one["score"] for one in ours(pictures[1], LABELS)}
    assert max(abs(alone[label] - got[label]) for label in LABELS) > 1e-3


def test_labels_between_commas_and_in_order_of_score(pictures, ours):
    found = ours(pictures[2], "a cat, two dogs,the sea")
    assert {one["label"] for one in found} == set(LABELS)
    assert [one["score"] for one in found] == sorted((o["score"] for o in found), reverse=True)


@pytest.mark.parametrize("given, said", [
    ({}, "needs candidate_labels"), ({"candidate_labels": []}, "needs candidate_labels"),
    ({"candidate_labels": [3]}, "needs candidate_labels"),
    ({"candidate_labels": LABELS, "hypothesis_template": "a photo"}, "where the label goes"),
    ({"candidate_labels": LABELS, "hypothesis_template": []}, "where the label goes"),
    ({"candidate_labels": LABELS, "hypotesis_template": "{}"}, "did you mean"),
    ({"candidate_labels": ["a" * 200]}, "the context of this model is 77"),
])
def test_what_cannot_be_asked(pictures, ours, given, said):
    with pytest.raises(MiradaError, match=said):
        ours(pictures[0], **given)


def test_a_model_that_matches_nothing_is_refused():
    with pytest.raises(MiradaError, match="matches texts with pictures"):
        mirada.pipeline("zero-shot-image-classification", mirada.build("clip_vision:tiny"))
