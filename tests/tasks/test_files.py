"""Tasks on files: every record answered in order, bad ones named, interrupted runs gone on with."""

import json
import signal
import subprocess
import sys
import time
import tracemalloc

import pytest

import mirada
from mirada import cli
from mirada.errors import MiradaError, WorkFailed
from mirada.tasks import files
from mirada.text import records
from tasks import tiny

LABELS = {"id2label": {0: "NEG", 1: "POS"}, "label2id": {"NEG": 0, "POS": 1}}
TEXTS = ["the cat sat on a mat", "attention is all you need", "Köln año 2024", "hello", "a " * 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("files") / "model", "ForSequenceClassification",
                     **LABELS)


@pytest.fixture(scope="module")
def pipe(folder):
    return mirada.pipeline("text-classification", folder, batch_size=2)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, text: str | bytes):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(("name", "text"), [
    ("a.txt", "\n".join(TEXTS)),
    ("a.csv", "n,text\r\n" + "".join(f'{n},"{t}"\r\n' for n, t in enumerate(TEXTS))),
    ("a.tsv", "text\tn\n" + "".join(f"{t}\t{n}\n" for n, t in enumerate(TEXTS))),
    ("a.jsonl", "".join(json.dumps({"text": t, "n": 1}) + "\n" for t in TEXTS)),
    ("b.jsonl", "\ufeff" + "".join(json.dumps({"text": t}) + "\r\n" for t in TEXTS)),
])
def test_every_form_of_file(pipe, tmp_path, name, text):
    out = tmp_path / "out.jsonl"
    done = files.run(pipe, write(tmp_path / name, text), out)
    wanted = [{"row": n, "result": one} for n, one in enumerate(pipe(TEXTS), 1)]
    tiny.near(read(out), wanted)
    assert (done.rows, done.errors, done.kept) == (5, 0, 0)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [name, "out.jsonl"]


def test_a_named_column_a_pair_and_another_delimiter(pipe, tmp_path):
    source = write(tmp_path / "a.csv", "body;claim\nthe cat;a mat\n")
    files.run(pipe, source, tmp_path / "1.jsonl", columns=["body"], delimiter=";")
    tiny.near(read(tmp_path / "1.jsonl")[0]["result"], pipe(["the cat"])[0])
    files.run(pipe, source, tmp_path / "2.jsonl", columns=["text=body", "text_pair=claim"],
              delimiter=";")
    tiny.near(read(tmp_path / "2.jsonl")[0]["result"],
              pipe([{"text": "the cat", "text_pair": "a mat"}])[0])


def test_questions_and_chats(tmp_path):
    pipe = mirada.pipeline("question-answering", tiny.bert(tmp_path / "qa",
                                                           "ForQuestionAnswering"))
    source = write(tmp_path / "q.csv", "context,pregunta\nthe cat sat,what?\nno question,\n")
    files.run(pipe, source, tmp_path / "q.jsonl", columns=["question=pregunta"])
    found = read(tmp_path / "q.jsonl")
    tiny.near(found[0]["result"], pipe(question="what?", context="the cat sat"))
    assert found[1] == {"row": 2, "error": "'pregunta' is empty"}
    chat = mirada.pipeline("text-generation", tiny.gpt2(tmp_path / "gpt2"), do_sample=False,
                           max_new_tokens=3)
    messages = [{"role": "user", "content": "hello"}]
    source = write(tmp_path / "c.jsonl", json.dumps({"messages": messages}) + "\n")
    files.run(chat, source, tmp_path / "c.out", columns=["messages"])
    assert read(tmp_path / "c.out")[0]["result"] == chat(messages)
    files.run(pipe_of_text(tmp_path), source, tmp_path / "d.out", columns=["messages"])
    assert "reads a text" in read(tmp_path / "d.out")[0]["error"]


def pipe_of_text(tmp_path):
    return mirada.pipeline("text-classification", tiny.bert(tmp_path / "cls",
                                                            "ForSequenceClassification"))


BAD = [  # a file, its bad row, and what is said of it
    ("a.txt", b"good\n\nfine\n", 2, "'text' is empty"),
    ("a.txt", b"good\n   \nfine\n", 2, "'text' is empty"),
    ("a.txt", b"good\n\xff\xfe bad\nfine\n", 2, "not valid UTF-8"),
    ("a.txt", b"good\nlong " + b"x" * 300 + b"\nfine\n", 2, "longer than 200 characters"),
    ("a.txt", b"good\n" + b"the cat sat on " * 13 + b"\nfine\n", 2, "tokens, and the context"),
    ("a.csv", b"text,n\ngood,1\n,2\nfine,3\n", 2, "'text' is empty"),
    ("a.csv", b"text,n\ngood,1\n\nfine,3\n", 2, "'text' is empty"),
    ("a.csv", b"text,n\ngood,1\nbad\nfine,3\n", 2, "has 1 cells, and the header has 2"),
    ("a.csv", b"text,n\ngood,1\n\xff\xfe,2\nfine,3\n", 2, "not valid UTF-8"),
    ("a.csv", b'text,n\ngood,1\n"bad"x,2\nfine,3\n', 2, "is not CSV"),
    ("a.csv", b'text,n\ngood,1\nfine,2\n"never closed,3\n', 3, "is not CSV"),
    ("a.jsonl", b'{"text": "good"}\n\n{"text": "fine"}\n', 2, "the line is empty"),
    ("a.jsonl", b'{"text": "good"}\n{"text": \n{"text": "fine"}\n', 2, "is not JSON"),
    ("a.jsonl", b'{"text": "good"}\n["text"]\n{"text": "fine"}\n', 2, "not an object"),
    ("a.jsonl", b'{"text": "good"}\n{"body": "x"}\n{"text": "fine"}\n', 2, "has no 'text'"),
    ("a.jsonl", b'{"text": "good"}\n{"text": 7}\n{"text": "fine"}\n', 2, "is 7, which is no text"),
    ("a.jsonl", b'{"text": "good"}\n{"text": "\\ud800"}\n{"text": "fine"}\n', 2, "not valid UTF-8"),
    ("a.jsonl", b'{"text": "good"}\n' + b"[" * 150 + b'\n{"text": "fine"}\n', 2, "is not JSON"),
]


@pytest.mark.parametrize(("name", "text", "row", "said"), BAD)
def test_a_bad_row_is_named_and_the_rest_is_kept(pipe, tmp_path, capsys, monkeypatch, name, text,
                                                 row, said):
    monkeypatch.setattr(records, "LIMIT", 200)
    done = files.run(pipe, write(tmp_path / name, text), tmp_path / "out")
    found = read(tmp_path / "out")
    assert [line["row"] for line in found] == [1, 2, 3] and done.failed == [row]
    assert said in found[row - 1]["error"] and sum("result" in line for line in found) == 2
    assert f"{tmp_path / name}, row {row}: " in capsys.readouterr().err


@pytest.mark.parametrize(("name", "text", "columns", "said"), [
    ("a.csv", "title,body\nx,y\n", [], "has no column 'text'; it has 'title', 'body'"),
    ("a.csv", "text;n\nx;1\n", [], "looks like ';' stands between columns"),
    ("a.csv", "text,text\nx,y\n", [], "several columns 'text'"),
    ("a.csv", "", [], "is empty: its first line must name the columns"),
    ("a.csv", "text\nx\n", ["text", "n", "m"], "the column 'm' is for nothing"),
    ("a.csv", "text\nx\n", ["words=text"], "is for nothing: text-classification reads text, "),
    ("a.txt", "x\n", ["a", "b"], "has a text a line"),
    ("a.xlsx", "x", [], "does not end in one of .txt"),
])
def test_a_file_that_cannot_be_read_at_all(pipe, tmp_path, name, text, columns, said):
    with pytest.raises(MiradaError, match=said):
        files.run(pipe, write(tmp_path / name, text), tmp_path / "out", columns=columns)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_a_folder(pipe, tmp_path):
    for name in ("gone.txt", "folder.txt"):
        (tmp_path / "folder.txt").mkdir(exist_ok=True)
        with pytest.raises(MiradaError, match=name):
            files.run(pipe, tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_option_that_cannot_be_is_one_error_and_not_one_a_row(folder, tmp_path):
    pipe = mirada.pipeline("text-classification", folder, top_k=0)
    with pytest.raises(MiradaError, match="every row is refused: top_k is 0"):
        files.run(pipe, write(tmp_path / "a.txt", "x\ny\n"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("long", ["refuse", "truncate", "stride"])
def test_a_text_longer_than_the_context_is_never_cut_unseen(folder, tmp_path, long):
    pipe = mirada.pipeline("text-classification", folder, long=long)
    source = write(tmp_path / "a.txt", "short\n" + "the cat sat on a mat " * 30 + "\nshort\n")
    files.run(pipe, source, tmp_path / "out")
    first, second, third = read(tmp_path / "out")
    tiny.near(third["result"], first["result"])
    assert {*first} == {"row", "result"}
    if long == "refuse":
        assert "the context of this model is 64" in second["error"]
    elif long == "truncate":
        assert "tokens was cut to 64" in second["warning"] and "result" in second
    else:
        assert {*second} == {"row", "result"}


# Interruptions


def interrupted(monkeypatch, pipe, source, out, chunks: int = 1):
    """Stop the run behind so many chunks, as Ctrl-C does."""
    append, count = files._append, []

    def stop(*args):
        if len(count) == chunks:
            raise KeyboardInterrupt
        count.append(append(*args))

    with monkeypatch.context() as patched:
        patched.setattr(files, "_append", stop)
        with pytest.raises(KeyboardInterrupt):
            files.run(pipe, source, out)


@pytest.fixture
def many(tmp_path):
    return write(tmp_path / "many.txt", "".join(f"{TEXTS[n % 4]} {n}\n" if n % 11 else "\n"
                                                for n in range(60)))


def test_an_interrupted_run_goes_on(pipe, many, tmp_path, monkeypatch):
    files.run(pipe, many, tmp_path / "whole")
    out = tmp_path / "out"
    interrupted(monkeypatch, pipe, many, out, 2)
    held = out.read_bytes()
    assert held.endswith(b"\n") and len(held.splitlines()) == 32
    assert (tmp_path / "out.run.json").exists()
    with out.open("ab") as file:
        file.write(b'{"row": 33, "resu')  # as a full disk or a lost machine may leave it
    done = files.run(pipe, many, out)
    assert (done.kept, done.rows, done.errors) == (32, 60, 6)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "out.run.json").exists()


def test_what_does_not_fit_is_refused(pipe, folder, many, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupted(monkeypatch, pipe, many, out)
    held = out.read_bytes()
    other = mirada.pipeline("text-classification", folder, batch_size=2, top_k=2)
    for task, source, more in (
            (other, many, None), (pipe, many, {"model": "another"}),
            (pipe, write(tmp_path / "other.txt", many.read_text() + "one more\n"), None)):
        with pytest.raises(MiradaError, match="exists, and is not what an interrupted run"):
            files.run(task, source, out, more=more)
    assert out.read_bytes() == held
    files.run(pipe, many, out)
    with pytest.raises(MiradaError, match="exists"):  # finished: never overwritten
        files.run(pipe, many, out)
    with pytest.raises(MiradaError, match="exists"):
        files.run(pipe, many, many)


def test_an_interruption_before_the_first_line_leaves_nothing(pipe, many, tmp_path, monkeypatch):
    interrupted(monkeypatch, pipe, many, tmp_path / "out", 0)
    assert [p.name for p in tmp_path.iterdir()] == ["many.txt"]


def test_two_runs_do_not_write_one_file(pipe, many, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupted(monkeypatch, pipe, many, out)
    with out.open("ab") as other:
        files.fcntl.flock(other, files.fcntl.LOCK_EX)
        with pytest.raises(MiradaError, match="another run is writing"):
            files.run(pipe, many, out)
    assert files.run(pipe, many, out).rows == 60


def test_a_full_disk_keeps_whole_lines(tmp_path):
    class Full:
        size = 100

        def seek(self, *where):
            return 100

        def write(self, data):
            if self.size > 100:
                raise OSError(28, "No space left on device")
            self.size += 3
            return 3

        def truncate(self, size):
            self.size = size

    file = Full()
    with pytest.raises(WorkFailed, match="No space left on device; the rows before are kept"):
        files._append(file, tmp_path / "out", [{"row": 1, "error": "x"}])
    assert file.size == 100


def test_a_killed_command_goes_on_where_it_stopped(folder, tmp_path):
    source = write(tmp_path / "in.csv", "text\n" + "".join(f"{TEXTS[n % 4]} {n}\n"
                                                           for n in range(3000)))
    words = [sys.executable, "-m", "mirada.cli", "task", "text-classification", folder, "--in",
             source, "--column", "text", "--batch-size", "4", "--out"]
    out = tmp_path / "out.jsonl"
    with subprocess.Popen([*words, out], stderr=subprocess.DEVNULL) as process:
        while not (out.exists() and out.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    held = out.read_bytes()
    rows = [json.loads(line)["row"] for line in held.splitlines()]
    assert held.endswith(b"\n") and rows == list(range(1, len(rows) + 1)) and 0 < len(rows) < 3000
    again = subprocess.run([*words, out], capture_output=True, text=True, check=True)
    assert f"3,000 of 3,000 rows answered, {len(rows):,} of them by an earlier run" in again.stderr
    assert [line["row"] for line in read(out)] == list(range(1, 3001))
    assert out.read_bytes().startswith(held)


def test_a_large_file_is_not_held(tmp_path):
    row = b"x" * 190 + b",1\n"
    source = write(tmp_path / "large.csv", b"text,n\n" + row * 40_000)
    tracemalloc.start()
    count = sum(1 for _ in files.records(source, {"text": "text"}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 40_000 and peak < 1 << 20 < source.stat().st_size


# The command


def test_the_command_reports_rows_and_fails_at_the_end(folder, tmp_path, capsys):
    source = write(tmp_path / "a.csv", "text\ngood\n\nfine\n")
    out = tmp_path / "out.jsonl"
    words = ["task", "text-classification", folder, "--in", str(source), "--out", str(out)]
    assert cli.main(words) == 1
    said = capsys.readouterr()
    assert said.out == "" and "row 2: 'text' is empty" in said.err
    assert f"mirada: 1 of 3 rows of {source} are bad: 2; {out} says why" in said.err
    assert sum("result" in line for line in read(out)) == 2
    assert cli.main(words) == 2 and "exists" in capsys.readouterr().err
    assert cli.main([*words[:-1], str(tmp_path / "2"), "--column", "body"]) == 2
    assert "has no column 'body'; it has 'text'" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "said"), [
    (["--in", "x.csv"], "--in and --out go together"),
    (["text", "--out", "x"], "--in and --out go together"),
    (["--in", "x.csv", "--out", "y", "text"], "leave out 'text'"),
])
def test_the_commands_words_agree(folder, capsys, more, said):
    assert cli.main(["task", "text-classification", folder, *more]) == 2
    assert said in capsys.readouterr().err


def test_no_text_and_no_file_is_refused(folder, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["task", "text-classification", folder])
    assert left.value.code == 2 and "INPUT" in capsys.readouterr().err
