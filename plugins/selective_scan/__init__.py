"""The 2D selective scan (SS2D): one contract, several implementations side by side.

The operator takes a map and, for each of four scan directions, the step sizes and the input and
output projections of every position. It runs the state-space recurrence along the four orders and
sums the four outputs, each at its own position (arXiv 2409.07896, section II-B; VMamba's SS2D is the
same operator)::

    delta' = softplus(delta + delta_bias[k])                        (batch, L, D)
    h_t    = exp(delta'_t * A[k]) * h_{t-1} + delta'_t * x_t * B_t  (D, N) states, h_0 = 0
    y_t    = <h_t, C_t> + D[k] * x_t

Dims: ``batch``; ``H``, ``W`` the map, ``L = H * W`` positions; ``D`` channels; ``N`` states per channel;
``K = 4`` directions.

=============  ====================  ===========================================================
argument       shape                 meaning
=============  ====================  ===========================================================
``x``          (batch, H, W, D)      the map, channels last
``delta``      (batch, H, W, K, D)   raw step sizes, before the bias and softplus
``A``          (K, D, N)             state matrix, already negative (``-exp(A_logs)``), float32
``B``, ``C``   (batch, H, W, K, N)   input and output projections
``D``          (K, D)                skip weights, float32
``delta_bias`` (K, D)                added to ``delta`` before softplus, float32
result         (batch, H, W, D)      the four outputs summed, in ``x``'s type
=============  ====================  ===========================================================

``x``, ``delta``, ``B`` and ``C`` share one type (float16, bfloat16, float32; float64 in the reference);
accumulation is in float32 whatever that type is. ``delta``, ``B`` and ``C`` stand in **raster order for every
direction**: their projections act on one position at a time, so only the recurrence follows the
direction, and no map is ever copied or reversed. Direction ``k``: 0 rows left to right, top to
bottom; 1 columns top to bottom, left to right; 2 and 3 the reverses of 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

DIRECTIONS = 4
"""Number of scan directions ``K``: rows, columns, rows reversed, columns reversed."""


@dataclass(frozen=True)
class ScanShape:
    """The sizes of one scan: ``batch`` maps of ``height`` x ``width`` positions, ``channels``, ``states``."""

    batch: int
    height: int
    width: int
    channels: int
    states: int

    @property
    def length(self) -> int:
        """Positions of a map, L."""
        return self.height * self.width


__all__ = ["DIRECTIONS", "ScanShape"]
