"""Distance buckets are the reference's, and a table that cannot be is refused."""

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from mirada.core.bias import Buckets
from mirada.core.mask import Mask
from mirada.errors import MiradaError
from parity.harness import wide


@pytest.mark.scope("1.2.6")
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("buckets, farthest", [(32, 128), (8, 20), (13, 9), (64, 1000), (320, 800)])
def test_each_distance_falls_in_the_reference_bucket(buckets, farthest, both_ways):
    distance = torch.arange(-2000, 2001)
    got = Buckets(2, buckets, farthest, both_ways).bucket(distance)
    wanted = T5Attention._relative_position_bucket(distance, both_ways, buckets, farthest)
    assert torch.equal(got, wanted)
    assert got.min() == 0 and len(got.unique()) > buckets // 4


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("buckets, farthest", [(32, 128), (8, 6), (13, 9)])
def test_no_logarithm_rounds_over_an_edge_in_float64(buckets, farthest, both_ways):
    """The parity rows raise the reference to float64, and ours takes logarithms in float32."""
    distance = torch.arange(-2000, 2001)
    with wide():
        wanted = T5Attention._relative_position_bucket(distance, both_ways, buckets, farthest)
    assert torch.equal(Buckets(2, buckets, farthest, both_ways).bucket(distance), wanted)


def test_a_block_of_rows_is_that_part_of_the_whole():
    bias = Buckets(3, 8, 20)
    torch.nn.init.normal_(bias.table.weight)
    value, q, k = bias(None, Mask(start=4)), torch.zeros(1, 3, 5, 2), torch.zeros(1, 3, 9, 2)
    whole = value.dense(q, k)
    assert whole.shape == (1, 3, 5, 9)
    assert torch.equal(value.rows(q, k, 2, 4), whole[:, :, 2:4])
    assert torch.equal(whole[0, :, 0, 4], bias.table.weight[0])  # query 0 stands at key 4


@pytest.mark.parametrize("buckets, farthest, both_ways", [(3, 128, True), (1, 9, False),
                                                          (32, 8, True), (32, 16, False)])
def test_impossible_buckets_are_refused(buckets, farthest, both_ways):
    with pytest.raises(MiradaError, match="buckets"):
        Buckets(2, buckets, farthest, both_ways)
