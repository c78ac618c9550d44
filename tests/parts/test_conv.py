"""Convolutional networks: ResNet against the reference, by hand, and what convolution is for."""

import json

import pytest
import torch
import transformers

from mirada.errors import MiradaError
from mirada.parts import conv
from mirada.train import convnets

BAR = 1e-10
TINY = dict(num_channels=2, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], num_labels=5)


def reference(folder, **changes):
    """A ResNet of the reference's, its norms moved off one and zero, as its file."""
    torch.manual_seed(0)
    theirs = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(**TINY | changes)).double().eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if "normalization" in name and tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand_like(tensor))
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.scope("1.8.7")
@pytest.mark.parametrize("changes", [
    {"layer_type": "basic", "hidden_act": "gelu", "downsample_in_first_stage": True},
    {"layer_type": "bottleneck"}, {"layer_type": "bottleneck", "downsample_in_bottleneck": True,
                                   "hidden_act": "gelu"}])
def test_resnet_is_the_reference(tmp_path, changes):
    theirs = reference(tmp_path / "theirs", **changes)
    ours = convnets.load(tmp_path / "theirs")
    assert ours.dtype == torch.float64 and ours.names == [f"LABEL_{n}" for n in range(5)]
    pixels = torch.randn(2, 2, 37, 50, dtype=torch.float64)
    with torch.no_grad():
        wanted = theirs(pixels, output_hidden_states=True)
        told = ours(pixels)["logits"]
        assert (ours.features(pixels) - wanted.hidden_states[-1]).abs().max() < BAR
        assert (told - wanted.logits).abs().max() < BAR
        assert 0.01 < wanted.logits.abs().max() < 1e3
        for broken in ("stem.norm.running_mean", "stages.1.0.way.conv.weight",
                       "stages.0.1.f.0.norm.running_var", "score.bias"):
            tensor = ours.state_dict()[broken]
            whole = tensor.clone()
            tensor += 0.1
            assert (ours(pixels)["logits"] - wanted.logits).abs().max() > 1e-6, broken
            tensor.copy_(whole)
        ours.train(), theirs.train()  # of the batch's own mean, which moves the running one
        assert (ours(pixels)["logits"] - theirs(pixels).logits).abs().max() < BAR
    again = convnets.save(ours, tmp_path / "ours", names=list("abcde"))
    back = transformers.ResNetForImageClassification.from_pretrained(again, dtype=torch.float64)
    assert back.config.id2label[4] == "e" == convnets.load(again).names[4]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


def test_a_folder_that_is_not_as_it_says(tmp_path):
    folder = tmp_path / "x"
    reference(folder, layer_type="basic")
    raw = json.loads((folder / "config.json").read_text())
    assert convnets.is_one(folder) and not convnets.is_one(tmp_path)
    for changes, said in (({"depths": [3, 1]}, "tensor 'resnet.encoder.stages.0.layers.2"),
                          ({"depths": [2048, 1]}, "asks for 2049 layers"),
                          ({"num_channels": 3}, "tensor 'resnet.embedder"),
                          ({"groups": 2}, "this key"), ({"layer_type": "wide"}, "not one of"),
                          ({"architectures": ["ResNetModel"]}, "only ResNetForImage"),
                          ({"id2label": {"1": "a"}}, "name each label from 0"),
                          ({"hidden_sizes": [8]}, "a width and a depth")):
        (folder / "config.json").write_text(json.dumps(raw | changes))
        with pytest.raises(MiradaError, match=said):
            convnets.load(folder)
    with pytest.raises(MiradaError, match="10 labels apart, and 2 are named"):
        convnets.save(conv.build("resnet:tiny"), tmp_path / "y", names=["a", "b"])


@pytest.mark.parametrize("size, weights", [("18", 11_689_512), ("34", 21_797_672),
                                           ("50", 25_557_032), ("101", 44_549_160),
                                           ("152", 60_192_808)])
def test_as_large_as_published(size, weights):
    with torch.device("meta"):
        model = conv.ResNet(conv.SIZES[size])
    assert sum(p.numel() for p in model.parameters()) == weights


def test_a_layer_by_hand():
    """relu(norm(conv(relu(norm(conv(x))))) + norm(conv(x))), 1512.03385, eq. 2."""
    layer = conv.Layer(2, 4, 2, conv.Config(bottleneck=False)).double().eval()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)

    def part(convolution, x, stride):
        w = convolution.conv.weight
        side = w.shape[-1]
        x = torch.nn.functional.pad(x, [side // 2] * 4)
        windows = x.unfold(2, side, stride).unfold(3, side, stride)  # (B, C, Y, X, side, side)
        return torch.einsum("bcyxij,dcij->bdyx", windows, w) / (1 + 1e-5) ** 0.5

    inner = part(layer.f[1], part(layer.f[0], x, 2).relu(), 1)
    assert torch.allclose(layer(x), (inner + part(layer.way, x, 2)).relu(), atol=1e-12)


@pytest.mark.scope("1.8.7")
def test_a_shift_of_the_picture_shifts_what_is_seen():
    """The weights of one place are those of all: what a convolution knows before it learns."""
    model = conv.build("cnn", widths=(6, 8), seed=3).double().eval()
    picture = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    picture[..., 8:16, 8:16] = torch.rand(8, 8)
    moved = picture.roll((4, 8), (2, 3))  # by the product of its strides
    a, b = model.features(picture), model.features(moved)
    assert torch.allclose(a[..., 1:6, 1:5], b[..., 2:7, 3:7], atol=1e-12)  # the edge sees zeros
    assert (a - b).abs().max() > 1e-3
    assert torch.allclose(model(picture)["logits"], model(moved)["logits"], atol=1e-12)


def test_what_cannot_be_built_or_seen():
    with pytest.raises(MiradaError, match="called 'resnet'; there are cnn, resnet:18"):
        conv.build("resnet")
    with pytest.raises(MiradaError, match="a width and a depth"):
        conv.build("resnet:tiny", depths=(1,))
    with pytest.raises(MiradaError, match="1 channels, height, width"):
        conv.build("cnn")(torch.zeros(1, 3, 8, 8))
