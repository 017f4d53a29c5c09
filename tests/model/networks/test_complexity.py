"""Parameters and multiply-adds against the paper's columns."""

from __future__ import annotations

import pytest

from msmamba.model.networks.complexity import complexity
from msmamba.model.networks.microscopic_mamba import Architecture


@pytest.mark.parametrize(
    ("size", "gmacs"), [pytest.param("t", 0.64, id="tiny"), pytest.param("s", 0.76, id="small")]
)
def test_the_papers_count_is_reproduced(size: str, gmacs: float) -> None:
    assert complexity(Architecture.of_size(size)).paper_macs / 1e9 == pytest.approx(gmacs, abs=0.01)


def test_the_full_count_adds_projections_and_the_scan() -> None:
    count = complexity(Architecture.of_size("t"))
    assert count.macs == count.layer_macs + count.projection_macs + 3 * count.state_updates
    # 4 groups x 4 directions x 24 channels x 16 states x 3,136 positions in each block of the first stage.
    first_stage = 4 * 4 * 24 * 16 * 3136
    assert count.state_updates == first_stage * 2 + first_stage + first_stage + first_stage // 4


def test_cost_grows_with_the_pixels() -> None:
    small, large = (complexity(Architecture.of_size("t"), size) for size in (224, 448))
    assert large.macs / small.macs == pytest.approx(4, rel=0.01)
    assert large.parameters == small.parameters


def test_unused_weights_are_told_apart() -> None:
    count = complexity(Architecture.of_size("t", num_classes=4))
    assert count.parameters - count.used_parameters == 525_408
    without = complexity(Architecture.of_size("t", num_classes=4, psffn=False))
    assert without.parameters > without.used_parameters
