"""DeiT against the reference: two tokens before the patches, and a classifier of each."""

import pytest
import torch

import mirada
from parity.harness import Row, table
from parity.test_vit import TINY, hidden, larger, picture


def row(architecture: str, inputs=picture, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt")}
    return Row(architecture, "DeiTConfig", TINY | more, inputs, pads=False, left=False, **keys)


ROWS = [
    row("DeiTForImageClassificationWithTeacher", num_labels=5),
    row("DeiTForImageClassificationWithTeacher", name="odd", image_size=[16, 40],
        patch_size=[4, 8], num_channels=1, qkv_bias=False, hidden_act="prelu",
        layer_norm_eps=1e-3),
    row("DeiTForImageClassification", num_labels=5),
    row("DeiTForImageClassification", larger, name="larger"),
    row("DeiTModel"),
    row("DeiTModel", name="odd", pooler_output_size=10, pooler_act="prelu", image_size=30),
    row("DeiTForMaskedImageModeling", hidden),
]
test_parity = pytest.mark.scope("1.8.3")(table(ROWS))


@pytest.mark.parametrize("size, count", [("base", 87_338_192), ("small", 22_436_432),
                                         ("ti", 5_910_800), ("base-384", 87_630_032)])
def test_published_sizes(size, count):
    """The paper's table 1 has 86, 22 and 5 million, without the second token and its classifier."""
    deit = mirada.build("deit", size=size, device="meta")
    assert sum(p.numel() for p in deit.parameters()) == count


def test_each_classifier_reads_its_own_token():
    deit = mirada.build("deit:tiny", seed=0)
    pixels, last = torch.randn(2, 3, 32, 32), []
    deit.body.register_forward_hook(lambda module, args, x: last.append(x))
    out = deit(pixel_values=pixels)
    own, taught = (part(last[0][:, n]) for n, part in enumerate((deit.head.own, deit.head.taught)))
    assert torch.equal(out.cls_logits, own) and torch.equal(out.distillation_logits, taught)
    assert torch.allclose(out.logits, (own + taught) / 2) and not torch.equal(own, taught)


def test_a_body_of_a_distilled_file_carries_its_classifiers(tmp_path):
    mirada.save(mirada.build("deit:tiny", seed=0), tmp_path / "whole")
    body = mirada.load(tmp_path / "whole", architecture="DeiTModel")
    assert sorted(body.origin.carried) == [f"{of}_classifier.{p}" for of in ("cls", "distillation")
                                           for p in ("bias", "weight")]
    out = body(pixel_values=torch.randn(1, 3, 32, 32))
    assert list(out) == ["last_hidden_state"] and out.last_hidden_state.shape == (1, 18, 64)
