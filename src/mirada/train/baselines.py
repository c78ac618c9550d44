"""What stood before the Transformer, in the same loop: RNN, LSTM (Hochreiter and Schmidhuber 1997),
GRU (1406.1078), an MLP over places and a causal convolution (1803.01271).

Each reads input_ids (B, T) and gives .logits (B, T, V) of the next token, so that NextToken and the
like train it as they train a Transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.errors import MiradaError
from mirada.model import Output

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True)
class Config:
    """kind: a name of KINDS. context: tokens that a row may have (an MLP has a weight for each)."""

    kind: str
    vocab: int
    d: int = 64
    layers: int = 1
    context: int = 128
    width: int = 3  # places that a convolution sees


class Recurrent(nn.Module):
    """One state after another: what is far must go through every step between."""

    def __init__(self, c: Config):
        super().__init__()
        self.cells = CELLS[c.kind](c.d, c.d, c.layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[0]


class Places(nn.Module):
    """An MLP on the row up to each place: every pair of places has weights of its own, so that what
    is learned at one is not known at another."""

    def __init__(self, c: Config):
        super().__init__()
        self.context, self.d = c.context, c.d
        self.up = nn.Parameter(torch.empty(c.context, c.d, c.context, c.d))
        self.down = nn.Linear(c.d, c.d)
        nn.init.normal_(self.up, std=(c.context * c.d) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        if T > self.context:
            raise MiradaError(f"this MLP has weights for {self.context} places, and the row has "
                              f"{T}: it cannot read more than it was made for")
        causal = torch.ones(T, T, device=x.device, dtype=x.dtype).tril()  # (T, S)
        weights = self.up[:T, :, :T] * causal[:, None, :, None]
        return x + self.down(torch.relu(torch.einsum("tdse,bse->btd", weights, x)))


class Convolutions(nn.Module):
    """Each layer sees `width` places, twice as far apart as the layer below saw them."""

    def __init__(self, c: Config):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(c.d, c.d, c.width, dilation=2**n) for n in range(c.layers))
        self.reach = 1 + (c.width - 1) * (2**c.layers - 1)  # places that the last one sees

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)  # (B, D, T)
        for layer in self.layers:
            back = (layer.kernel_size[0] - 1) * layer.dilation[0]
            x = x + torch.relu(layer(F.pad(x, (back, 0))))
        return x.transpose(1, 2)


KINDS: dict[str, type[nn.Module]] = {**dict.fromkeys(CELLS, Recurrent), "mlp": Places,
                                     "cnn": Convolutions}


class Baseline(nn.Module):
    """A token table, one of KINDS, and logits. What a Model's callers read of it is here."""

    generates, encoder_decoder, tokenizer, head = False, False, None, None

    def __init__(self, config: Config):
        super().__init__()
        if config.kind not in KINDS:
            raise MiradaError(f"no baseline is called {config.kind!r}; there are "
                              f"{', '.join(KINDS)}")
        self.config, self.architecture = config, config.kind
        self.token = nn.Embedding(config.vocab, config.d)
        self.body = KINDS[config.kind](config)
        self.out = nn.Linear(config.d, config.vocab)

    device = property(lambda self: self.out.weight.device)
    dtype = property(lambda self: self.out.weight.dtype)
    context = property(lambda self: self.config.context)

    def forward(self, input_ids: Tensor | None = None, attention_mask=None, *, inputs_embeds=None,
                segment_ids=None, position_ids=None) -> Output:
        """logits (B, T, V). inputs_embeds (B, T, D), in place of ids. Pads may stand on the right,
        where nothing sees them; packed documents are read through, as one."""
        x = self.token(input_ids) if inputs_embeds is None else inputs_embeds
        return Output(logits=self.out(self.body(x)))


def build(kind: str, seed: int = 0, **changes) -> Baseline:
    """A baseline with random weights, as torch's own layers begin."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Baseline(Config(kind, **changes))


def reach(model, ids: Tensor) -> Tensor:
    """(T,) how much each token's vector moves what is told at the last place: the norm of the
    gradient of a logit there, a mean over rows of ids (B, T). Training can only use what arrives.
    """
    table = model.token if isinstance(model, Baseline) else model.body.embed.token
    x = table(ids).detach().requires_grad_()
    logits = model(inputs_embeds=x).logits[:, -1]  # (B, V)
    return torch.autograd.grad(logits[:, 0].sum(), x)[0].norm(dim=-1).mean(0)
