"""Files out of a source archive: only those that are named, flat, and no link or path leads out."""

import io
import re
import tarfile

from tools import archives


def test_unpack(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in ("p-1/models/one.gguf", "p-1/models/../../../two.gguf", "p-1/src/three.gguf"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("p-1/models/link.gguf")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    out = tmp_path / "x" / "y"
    out.mkdir(parents=True)
    assert archives.unpack(tmp_path / "a.tar.gz", "*/models/*.gguf", out) == 2
    assert sorted(path.name for path in out.iterdir()) == ["one.gguf", "two.gguf"]
    assert (out / "one.gguf").read_text() == "p-1/models/one.gguf"
    assert not (tmp_path / "two.gguf").exists()


def test_the_list_is_pinned():
    """Each archive has one version, one hash, and a pattern of what is kept."""
    rows = [line for line in archives.LIST.read_text().splitlines() if not line.startswith("#")]
    assert rows and all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", r) for r in rows)
    assert {row.split("==")[0] for row in rows} == archives.KEPT.keys()
