"""Every objective from a file: a run that ends with a model that loads, and what is refused."""

import json

import pytest

import mirada
from mirada.cli import main
from mirada.errors import MiradaError
from mirada.train import config, objectives
from mirada.train.log import history
from train import toys

SHORT = {"bert": "d = 16\nheads = 2\nlayers = 2\nhidden = 32", "t5": "layers = 1\nd = 16",
         "bart": "d = 16\nheads = 2\ndecoder_heads = 2", "gpt2": "d = 16\nheads = 2\nlayers = 1",
         "pegasus": "d = 16\nheads = 2\ndecoder_heads = 2", "albert": "d = 16\nheads = 2",
         "electra": "d = 16\nheads = 4\nhidden = 32\nembedding = 16", "transformer": "d = 16"}
SHORT["distilbert"] = SHORT["bert"].replace("layers = 2", "layers = 1")
MODELS = {"causal": "gpt2", "middle": "gpt2", "masked": "bert", "distill": "distilbert",
          "replaced": "electra", "next": "bert", "order": "albert", "together": "bert",
          "span": "t5", "mixture": "t5", "denoise": "bart", "gaps": "pegasus",
          "translate": "transformer", "instructions": "t5"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    stories = toys.stories(40)
    (folder / "stories.jsonl").write_text("".join(
        json.dumps({"text": text}) + "\n" for text in stories))
    (folder / "pairs.csv").write_text("text,target\n" + "".join(
        f"{text},{' '.join(reversed(text.split()))}\n" for text in stories))
    return folder


def said(folder, name, **more):
    """A run.toml."""
    reads = objectives.OBJECTIVES[name].reads
    data = "stories.jsonl" if reads == "texts" else "pairs.csv"
    lines = [f'model = "{MODELS[name]}:tiny"', f'data = "{data}"', f'objective = "{name}"',
             "length = 48", "tokens = 500", "[plan]", "steps = 2", "batch = 4", "[changes]",
             SHORT[MODELS[name]]]
    if more:
        lines += ["[options]", *(f"{key} = {json.dumps(value)}" for key, value in more.items())]
    file = folder / f"{name}.toml"
    file.write_text("\n".join(lines))
    return str(file)


OPTIONS = {"instructions": {"templates": [["Al revés: {text}", "{target}"]], "most": 9},
           "denoise": {"noises": ["rotate", "mask"]}, "middle": {"spm": 1.0}}


def test_every_objective_has_a_model_here():
    chats = {"answers", "preferences"}  # want a chat template, which no model from nothing has
    seen = {name for name, kind in objectives.OBJECTIVES.items() if kind.reads == "pictures"}
    assert MODELS.keys() | chats | seen == objectives.OBJECTIVES.keys()


@pytest.mark.parametrize("name", [n for n in MODELS if n != "distill"])
def test_from_a_file_to_a_model(files, tmp_path, name):
    run, out = said(files, name, **OPTIONS.get(name, {})), tmp_path / "x"
    assert main(["train", run, "--out", str(out)]) == 0
    assert len(history(out)) == 2
    model = mirada.load(out / "model")
    assert model.family == MODELS[name] and model.tokenizer.size == model.config.vocab
    _, again, objective = config.open_run(out)  # as --resume does
    assert objective.count >= 4 and again.tokenizer.size == model.tokenizer.size
    if name == "instructions":
        assert objective.count == 9
    if model.encoder_decoder:
        first = model.shifted(objective.batch([objective.sample(0, _draw())])["labels"])[0, 0]
        end = min(model.tokenizer.eos_ids, default=model.tokenizer.sep_id)
        assert int(first) == (end if name == "denoise" else model.tokenizer.pad_id)


def _draw():
    import random
    return random.Random(0)


def test_a_student_from_a_file(files, tmp_path):
    assert main(["train", said(files, "masked"), "--out", str(tmp_path / "wise")]) == 0
    run = said(files, "distill", teacher=str(tmp_path / "wise/model"))
    assert main(["train", run, "--out", str(tmp_path / "x")]) == 0
    assert {"kl", "hidden", "cosine"} < history(tmp_path / "x")[0].keys()
    student, teacher = mirada.load(tmp_path / "x/model"), mirada.load(tmp_path / "wise/model")
    assert len(student.body.blocks) == 1 and len(teacher.body.blocks) == 2
    assert student.tokenizer.encode("el gato").ids == teacher.tokenizer.encode("el gato").ids


def refused(capsys, run, out) -> str:
    assert main(["train", run, "--out", str(out)]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def test_what_a_file_may_say_wrong(files, tmp_path, capsys):
    x = tmp_path / "x"
    assert "argument 'densty'" in refused(capsys, said(files, "span", densty=0.2), x)
    assert "teacher" in refused(capsys, said(files, "distill"), x)
    asks = {"templates": [["{question}", "{target}"]]}
    assert "a template asks for 'question'" in refused(capsys, said(
        files, "instructions", **asks), x)
    (files / "empty.csv").write_text("text,target\nhola,adiós\nbien,\n")
    run = files / "empty.toml"
    run.write_text('model = "t5:tiny"\nobjective = "translate"\ndata = "empty.csv"\ntokens = 40\n')
    assert "text 4 of the data is empty" in refused(capsys, str(run), x)
    with pytest.raises(MiradaError, match="no objective is called 'guess'"):
        config.Run("gpt2:tiny", ("x.txt",), objective="guess")

