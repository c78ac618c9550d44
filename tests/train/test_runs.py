"""What `mirada runs` tells of a folder's runs, their curves, and their logs for TensorBoard."""

import json
import struct

import pytest

from mirada.cli import main
from mirada.errors import MiradaError
from mirada.train import tensorboard
from mirada.train.log import Folder
from mirada.train.loop import fit
from mirada.train.runs import runs
from train.test_loop import PLAN, RECIPE, Words, small


def ran(folder, steps=6, upto=None, loss=3.0, model="gpt2:tiny"):
    """A run's folder, as one that did so many of its steps leaves it."""
    one = Folder(folder)
    one.describe({"plan": {"steps": steps}})
    for step in range(1, (upto or steps) + 1):
        one.log({"step": step, "loss": loss / step, "rate": 0.1, "norm": 1.0, "seconds": 2.0})
    (folder / "train.json").write_text(json.dumps({"run": {"model": model}}))
    return one


@pytest.fixture
def shelf(tmp_path):
    for name, more in (("a", {}), ("b", {"upto": 4}), ("c", {"upto": 3})):
        one = ran(tmp_path / "runs" / name, **more)
        if name == "c":
            one.event({"what": "not a number", "step": 3})
        one.close()
    (tmp_path / "runs/empty").mkdir()
    (tmp_path / "runs/file").write_text("")
    return tmp_path / "runs"


def test_each_run_and_how_it_stands(shelf):
    held = ran(shelf / "d", steps=9, upto=2)
    found = {r.name: r for r in runs(shelf)}
    assert {n: r.state for n, r in found.items()} == {
        "a": "done", "b": "stopped", "c": "failed", "d": "running"}
    held.close()
    assert runs(shelf / "d")[0].state == "stopped"
    assert (found["b"].step, found["b"].steps, found["b"].seconds) == (4, 6, 8.0)
    assert found["a"].loss == pytest.approx(3.0 * sum(1 / n for n in range(1, 7)) / 6)
    assert found["c"].events == 1 and found["a"].model == "gpt2:tiny"
    told = str(runs(shelf)).splitlines()
    assert len(told) == 5 and "4/6" in told[2] and "00:00:08" in told[2]


def test_broken_files_hide_no_other_run(shelf):
    (shelf / "a/train.json").write_text("{")
    (shelf / "b/run.json").write_text("[]")
    with (shelf / "c/log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    (shelf / "c/events.jsonl").write_text("no\n")
    found = {r.name: r for r in runs(shelf)}
    assert found["a"].model is None and found["b"].steps == 0 and found["c"].step == 3


def test_a_true_run_is_listed(tmp_path, capsys):
    fit(small(), Words(), PLAN, RECIPE, out=str(tmp_path / "x"))
    assert main(["runs", str(tmp_path), "--json"]) == 0
    one, = json.loads(capsys.readouterr().out)
    assert (one["name"], one["state"], one["step"]) == ("x", "done", 21)


def test_curves(shelf, tmp_path, capsys):
    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        out = tmp_path / f"c{ending}"
        assert main(["runs", str(shelf), "--out", str(out), "--smooth", "2"]) == 0
        assert out.read_bytes().startswith(magic)
    from mirada.commands.runs import _curves
    axes, = _curves(runs(shelf), "loss", 2).axes
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert drawn["b"] == pytest.approx([3.0, 2.25, 1.25, 0.875])
    assert len(drawn["a"]) == 6


def refused(capsys, *words):
    assert main(["runs", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_what_a_user_may_do_wrong(shelf, tmp_path, capsys):
    assert "holds no run" in refused(capsys, tmp_path / "nowhere")
    assert "holds no run" in refused(capsys, shelf / "empty")
    assert "a picture is a file ending in" in refused(capsys, shelf, "--out", tmp_path / "c.txt")
    out = tmp_path / "c.png"
    assert "no step has a number 'los'; there are loss" in refused(
        capsys, shelf, "--out", out, "--of", "los")
    assert "--smooth is 0" in refused(capsys, shelf, "--out", out, "--smooth", 0)
    assert not out.exists()


def test_crc32c_is_castagnolis():
    assert tensorboard.crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4, and others
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA


def records(file):
    """The messages of a file of records, their checksums checked."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        size, = struct.unpack_from("<Q", content, at)
        message = content[at + 12 : at + 12 + size]
        for part, place in ((content[at : at + 8], at + 8), (message, at + 12 + size)):
            crc = tensorboard.crc32c(part)
            turned = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack_from("<I", content, place)[0] == turned
        yield message
        at += 12 + size + 4


def test_logs_for_tensorboard(shelf, tmp_path, capsys):
    """Read with Google's own protobuf, by the schema of TensorFlow's event.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t")
    for name, fields in (
            ("Value", [("tag", 1, kinds.TYPE_STRING, None), ("simple", 2, kinds.TYPE_FLOAT, None)]),
            ("Summary", [("value", 1, kinds.TYPE_MESSAGE, ".t.Value")]),
            ("Event", [("wall_time", 1, kinds.TYPE_DOUBLE, None),
                       ("step", 2, kinds.TYPE_INT64, None),
                       ("file_version", 3, kinds.TYPE_STRING, None),
                       ("summary", 5, kinds.TYPE_MESSAGE, ".t.Summary")])):
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            message.field.add(name=field, number=number, type=kind, type_name=of,
                              label=3 if name == "Summary" else 1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    event = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))
    assert main(["runs", str(shelf), "--tensorboard", str(tmp_path / "tb")]) == 0
    found = [event.FromString(m) for m in records(tmp_path / "tb/b" / tensorboard.NAME)]
    assert found[0].file_version == "brain.Event:2"
    assert [e.step for e in found[1:]] == [1, 2, 3, 4]
    assert {v.tag: v.simple for v in found[2].summary.value} == pytest.approx(
        {"loss": 1.5, "rate": 0.1, "norm": 1.0, "seconds": 2.0})
    assert found[4].wall_time == 8.0
    with pytest.raises(MiradaError, match="holds no step"):
        tensorboard.export(shelf / "empty", tmp_path / "no")
