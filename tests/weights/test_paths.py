"""Names from data stay in their folder."""

import os

import pytest

from mirada.errors import UntrustedInputError
from mirada.weights.paths import inside, open_regular


def test_a_plain_file(tmp_path):
    (tmp_path / "a b.ñ").write_bytes(b"x")
    assert inside(tmp_path, "a b.ñ", "index") == (tmp_path / "a b.ñ").resolve()


def test_a_link_that_stays_inside(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"x")
    (tmp_path / "l").symlink_to("sub/a")
    assert inside(tmp_path, "l", "index") == (tmp_path / "sub" / "a").resolve()


def test_a_root_that_is_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"x")
    (tmp_path / "root").symlink_to("real")
    assert inside(tmp_path / "root", "a", "index").is_file()


@pytest.mark.parametrize("name", ["", ".", "..", "/a", "a/b", "a\\b", "C:a", "a\0", "\n", 3, None,
                                  "x" * 256, "a/../a"])
def test_names_that_are_no_plain_name(tmp_path, name):
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(UntrustedInputError, match="index.json.*plain file name"):
        inside(tmp_path, name, "index.json")


def test_a_neighbour_with_the_same_prefix(tmp_path):
    """/x/model2 is not inside /x/model."""
    for name in ("model", "model2"):
        (tmp_path / name).mkdir()
    (tmp_path / "model2" / "a").write_bytes(b"x")
    (tmp_path / "model" / "a").symlink_to(tmp_path / "model2" / "a")
    with pytest.raises(UntrustedInputError, match="outside"):
        inside(tmp_path / "model", "a", "index.json")


def test_only_regular_files_open(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UntrustedInputError, match="regular file"):
            open_regular(path)
    for path in (tmp_path / "absent", "a\0b"):
        with pytest.raises(UntrustedInputError):
            open_regular(path)
