"""What a masked autoencoder paints, drawn beside what it saw."""

import pytest
import torch

import mirada
from mirada import look
from mirada.errors import MiradaError
from mirada.models.patches import cut


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 34, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def noise():
    return torch.rand(2, 64, generator=torch.Generator().manual_seed(1))


def mae(**changes):
    return mirada.build("vit_mae:tiny", image=(34, 32), seed=0, **changes)


@pytest.mark.scope("1.8.6")
def test_what_is_seen_hidden_and_painted(pixels, noise, tmp_path):
    model = mae()
    out = model(pixel_values=pixels, noise=noise)
    found = look.reconstructed(model, pixels, noise, norm=(0.5, 0.25))
    assert found.hidden.shape == (2, 32, 32) and found.hidden.float().mean() == 0.75
    hidden = found.hidden[:, None].expand(-1, 3, -1, -1)
    original = (pixels[:, :, :32] * 0.25 + 0.5).clamp(0, 1)  # two rows fill no patch
    assert torch.allclose(found.original, original)
    assert torch.equal(found.seen[~hidden], found.original[~hidden])
    assert (found.seen[hidden] == 0.5).all()
    assert torch.equal(found.filled[hidden], found.painted[hidden])
    assert torch.equal(found.filled[~hidden], found.original[~hidden])
    painted = cut(found.painted, (4, 4))
    assert torch.allclose(painted, (out.logits * 0.25 + 0.5).clamp(0, 1), atol=1e-6)
    assert torch.allclose(found.wrong.mean(), out.loss, rtol=1e-4)  # as many hidden in each
    assert "75% of each hidden" in str(found) and len(found.data()["wrong"]) == 2
    path = tmp_path / "painted.png"
    found.save(path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    axes = found.figure().axes
    assert [a.get_title(loc="left") for a in axes[:4]] == [
        "Original", "Seen", "Painted", "Painted where hidden"] and len(axes) == 8


def test_normed_patches_get_their_own_light_back(pixels, noise):
    """A model that paints every normed patch as zeros paints the patch's mean."""
    model = mae(normed=True)
    model.head.pixels.weight.data.zero_()
    model.head.pixels.bias.data.zero_()
    found = look.reconstructed(model, pixels, noise, norm=(0.5, 0.1))
    means = cut(pixels, (4, 4)).mean(-1, keepdim=True) * 0.1 + 0.5
    assert torch.allclose(cut(found.painted, (4, 4)), means.expand(-1, -1, 48), atol=1e-5)


def test_without_norm_the_darkest_is_black(pixels, noise):
    found = look.reconstructed(mae(), pixels, noise)
    assert found.original.min() == 0 and found.original.max() == 1
    plain = look.reconstructed(mae(), torch.ones_like(pixels), noise)
    assert torch.isfinite(plain.painted).all()
    grey = mirada.build("vit_mae:tiny", channels=1, seed=0)
    assert look.reconstructed(grey, torch.randn(1, 1, 32, 32)).figure()


def test_what_cannot_be_painted_is_said(pixels):
    with pytest.raises(MiradaError, match="ViTModel paints no hidden patches"):
        look.reconstructed(mirada.build("vit:tiny", architecture="ViTModel"), pixels)
    with pytest.raises(MiradaError, match="1 or 3 channels"):
        look.reconstructed(mirada.build("vit_mae:tiny", channels=2), torch.zeros(1, 2, 32, 32))
