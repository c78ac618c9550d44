"""trl: its preference losses, taken from its source as they stand, on fixed log-probabilities.

The file is looked for in the folders of MIRADA_PEERS; nothing of it is imported.
"""

import ast
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from mirada.train.preference import LOSSES

pytestmark = pytest.mark.peer


def branches() -> dict[str, ast.Module]:
    """loss_type -> the statements under it."""
    folders = os.environ.get("MIRADA_PEERS", "").split(os.pathsep)
    files = [Path(f, "trl/trainer/dpo_trainer.py") for f in folders]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        pytest.skip("trl is not in MIRADA_PEERS")
    found = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and ast.unparse(
                node.test.left) == "loss_type" and isinstance(node.test.comparators[0],
                                                              ast.Constant):
            found[node.test.comparators[0].value] = ast.Module(node.body, [])
    return found


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_the_losses_are_trl_s(kind, beta):
    torch.manual_seed(0)
    now, then = torch.randn(2, 32, dtype=torch.float64) * 9
    chosen, rejected = (now - then).chunk(2)
    lengths = torch.randint(1, 9, (32,))
    mask = (torch.arange(9) < lengths[:, None]).long()
    told = SimpleNamespace(beta=beta, label_smoothing=0.0)
    names = {"self": told, "torch": torch, "F": F, "completion_mask": mask,
             "chosen_scores": chosen, "rejected_scores": rejected,
             "delta_score": chosen - rejected}
    exec(compile(branches()[kind], "trl", "exec"), names)
    ours = chosen / lengths[:16] - rejected / lengths[16:] if kind == "ipo" else chosen - rejected
    assert torch.allclose(LOSSES[kind](ours, beta), names["per_sequence_loss"], atol=1e-12)
