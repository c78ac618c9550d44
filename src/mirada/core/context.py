"""What travels beside the residual stream: `Inputs` to the embedding, `Ctx` to every sublayer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .mask import Mask


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an embedding may read, under the reference's argument names."""

    input_ids: Tensor | None = None  # (B, T)
    inputs_embeds: Tensor | None = None  # (B, T, D), in place of ids
    token_type_ids: Tensor | None = None  # (B, T)
    pixel_values: Tensor | None = None  # (B, C, Y, X)
    bool_masked_pos: Tensor | None = None  # (B, N) True where a patch is hidden
    interpolate_pos_encoding: bool = False  # stretch the learned grid to this picture's
    global_attention_mask: Tensor | None = None  # (B, T) 1 where no window hides a token
    noise: Tensor | None = None  # (B, N) the patches with the least are seen, the others hidden


@dataclass(frozen=True, eq=False)
class Ctx:
    """What a sublayer may read besides the stream. A new side input is one typed field here."""

    positions: Tensor | None = None  # (B or 1, T)
    mask: Mask = field(default_factory=Mask)
    memory: Tensor | None = None  # (B, S, D), what cross-attention looks at
    memory_mask: Mask = field(default_factory=Mask)
    grid: tuple[int, int] | None = None  # rows and columns of a picture's patches
