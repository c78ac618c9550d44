"""DeiT: a student of pictures learns from labels and from a CNN beside them."""

import copy

import pytest
import torch
import torch.nn.functional as F

import mirada
from mirada.cli import main
from mirada.errors import MiradaError
from mirada.parts import conv
from mirada.train import convnets, distill, loop, optim, pictures
from mirada.train.loop import Plan
from train import toys

SMALL = dict(image=16, patch=4, channels=1, d=32, heads=2, hidden=64, layers=2, labels=4)


def student(seed=0, **changes):
    model = mirada.build("deit:tiny", seed=seed, **SMALL | changes)
    torch.manual_seed(seed)
    for p in model.body.embed.parameters(recurse=False):  # as the authors drew them
        torch.nn.init.trunc_normal_(p, std=0.02)
    return model


def wrong(labels, share=0.6, seed=0):
    """Of the labels, so many are another's."""
    draw = torch.Generator().manual_seed(seed)
    other = (labels + torch.randint(1, 4, labels.shape, generator=draw)) % 4
    return torch.where(torch.rand(labels.shape, generator=draw) < share, other, labels)


@pytest.fixture(scope="module")
def teacher():
    """A CNN that knows the shapes."""
    model = conv.build("cnn", widths=(16, 32), labels=4)
    loop.fit(model, pictures.Pictures(pictures.of(*toys.shapes(400))),
             Plan(steps=100, batch=16, dtype="float32"), optim.Recipe(rate=1e-2, warmup=10))
    return model.eval()


@pytest.mark.scope("1.12.10")
@pytest.mark.parametrize("hard, share", [(True, None), (False, None), (True, 0.2), (False, 1.0)])
def test_the_loss_by_hand(teacher, hard, share):
    """2012.12877, eq. 2 and 3; the class token answers the label, the other the teacher."""
    model, data = student(), pictures.of(*toys.shapes(6, seed=5))
    taught = distill.Taught(data, teacher, hard=hard, share=share)
    batch = taught.batch([taught.sample(n, None) for n in range(6)])
    teacher.zero_grad()
    loss, numbers = taught.loss(model, batch)
    pixels = batch["pixel_values"]
    out, theirs = model(pixel_values=pixels), teacher(pixels)["logits"]
    gap = (out.cls_logits - out.distillation_logits).abs().max()
    assert gap > 1e-3 and torch.allclose(out.logits, (out.cls_logits + out.distillation_logits) / 2)
    label = F.cross_entropy(out.cls_logits, batch["labels"], reduction="sum")
    if hard:
        share = 0.5 if share is None else share
        copied = F.cross_entropy(out.distillation_logits, theirs.argmax(-1), reduction="sum")
    else:
        share = 0.1 if share is None else share
        p, q = (x.div(3).softmax(-1) for x in (theirs, out.distillation_logits))
        copied = 9 * (p * (p / q).log()).sum()
    assert loss.item() == pytest.approx(((1 - share) * label + share * copied).item(), rel=1e-5)
    assert numbers["copied"] == pytest.approx(copied.item() / 6, rel=1e-5)
    loss.backward()
    own, told = model.head.own.weight.grad, model.head.taught.weight.grad
    assert told.abs().max() > 0 and (own.abs().max() > 0) == (share < 1)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.scope("1.8.3", "1.12.10")
def test_a_teacher_makes_up_for_wrong_labels(teacher):
    """Of the labels 60 % are wrong; the teacher sees the pictures alone."""
    pixels, labels = toys.shapes(600)
    data = pictures.of(pixels, wrong(labels))
    held = pictures.Pictures(pictures.of(*toys.shapes(200, seed=1)))
    before = copy.deepcopy(teacher.state_dict())
    found = {}
    for name, objective in (("alone", pictures.Pictures(data)),
                            ("taught", distill.Taught(data, teacher, share=0.9))):
        model = student()
        loop.fit(model, objective, Plan(steps=300, batch=16, dtype="float32"),
                 optim.Recipe(rate=4e-3, warmup=20))
        found[name] = pictures.accuracy(model, held)
    assert pictures.accuracy(teacher, held) > 0.95
    assert found["taught"] > 0.7 and found["taught"] > found["alone"] + 0.15, found
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())


def test_from_the_command_line(tmp_path, capsys):
    """A ResNet in a folder is a teacher; one of other labels is refused."""
    import numpy as np
    pixels, labels = toys.shapes(12)
    np.savez(tmp_path / "set.npz", images=((pixels[:, 0] + 1) * 127.5).round().byte().numpy(),
             labels=labels.numpy(), names=list("abcd"))
    wise = conv.build("resnet:tiny", stem=4, widths=(8,), depths=(1,), labels=4)
    convnets.save(wise, tmp_path / "wise", names=list("abcd"))
    changes = "".join(f"{name} = {value}\n" for name, value in SMALL.items() if name != "labels")
    (tmp_path / "run.toml").write_text(
        'model = "deit:tiny"\ndata = "set.npz"\nobjective = "taught"\n[options]\nhard = false\n'
        f'teacher = "{tmp_path}/wise"\n[plan]\nsteps = 2\nbatch = 4\n[changes]\n{changes}')
    assert main(["train", str(tmp_path / "run.toml"), "--out", str(tmp_path / "x")]) == 0
    model = mirada.load(tmp_path / "x" / "model")
    assert model.architecture == "DeiTForImageClassificationWithTeacher"
    assert pictures.label_names(model) == list("abcd")
    convnets.save(wise, tmp_path / "other", names=list("abdc"))
    said = (tmp_path / "run.toml").read_text().replace("/wise", "/other")
    (tmp_path / "run.toml").write_text(said)
    capsys.readouterr()
    assert main(["train", str(tmp_path / "run.toml"), "--out", str(tmp_path / "y")]) == 2
    assert "a teacher's labels are the data's" in capsys.readouterr().err
    mirada.save(mirada.build("vit:tiny", architecture="ViTModel"), tmp_path / "blind")
    (tmp_path / "run.toml").write_text(said.replace("/other", "/blind"))
    assert main(["train", str(tmp_path / "run.toml"), "--out", str(tmp_path / "y")]) == 2
    assert "tells no labels of pictures apart" in capsys.readouterr().err


def test_what_cannot_teach(teacher):
    data = pictures.of(*toys.shapes(4))
    with pytest.raises(MiradaError, match="share is 1.5"):
        distill.Taught(data, teacher, share=1.5)
    taught = distill.Taught(data, conv.build("cnn", labels=7))
    with pytest.raises(MiradaError, match="tells 7 labels apart and the student 4"):
        taught.loss(student(), taught.batch([taught.sample(0, None)]))
