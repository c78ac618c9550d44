"""Engines that mirada is timed beside: each that is installed makes its file and answers.

They run in child processes, which find them in the folders of MIRADA_PEERS.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.peer

ROOT = Path(__file__).parents[2]
CHILD = """
import sys, tempfile
from mirada.bench.measure import Child, installed, ready
from mirada.errors import MiradaError
name, path = sys.argv[1:]
try:
    installed(name)
except MiradaError as error:
    sys.exit(f"skip: {error}")
with tempfile.TemporaryDirectory() as folder:
    child = Child(name, ready(name, path, folder), 1)
    for rows, context, new in ((1, 16, 3), (3, 40, 2)):
        seconds = child.ask(rows=rows, context=context, new=new)["seconds"]
        assert len(seconds) == new + 1 and min(seconds) > 0, seconds
    child.close()
"""


def run(*words: str) -> subprocess.CompletedProcess:
    folders = os.pathsep.join([os.environ.get("MIRADA_PEERS", ""), str(ROOT / "benchmarks")])
    return subprocess.run([sys.executable, *words], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("small") / "m.gguf")
    done = run("-c", """
import sys, engines, mirada
model = mirada.build("llama", "tiny", seed=0)
model.tokenizer = engines.letters(1024)
mirada.save(model, sys.argv[1], type="Q8_0")
""", path)
    assert not done.returncode, done.stderr[-2000:]
    return path


@pytest.mark.parametrize("name", ["llama.cpp", "openvino", "ctranslate2", "onnxruntime"])
def test_each_engine_answers(name, small):
    done = run("-c", CHILD, name, small)
    if done.stderr.startswith("skip: "):
        pytest.skip(done.stderr.strip())
    assert not done.returncode, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["openvino:bfloat16", "onnxruntime:float32", "ctranslate2:int8"])
def test_each_encoder_gives_our_vectors(name, real):
    """All of them pool the same states of the same ids."""
    code = """
import sys
from encoders import ENCODERS
name, dtype = sys.argv[1].split(":")
ours = ENCODERS["mirada"](sys.argv[2], 1, "float32")
theirs = ENCODERS[name](sys.argv[2], 1, dtype)
for encoder in (ours, theirs):
    encoder.write(rows=3, length=12, times=1)
apart = (ours.last.numpy() * theirs.last).sum(1).min()
assert apart > 0.99, apart
"""
    done = run("-c", code, name, str(real("minilm")))
    if "No module named" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert not done.returncode, done.stderr[-2000:]
