"""How the GPU kernels of the selective scan are cut into programs: pure arithmetic, no GPU library.

One plan serves everyone who launches the kernels: Triton's own launcher and interpreter, the
TensorRT plugin through the CUDA driver, and the PTX emulator of the tests. Dims as in the package:
batch, H W map, L = H*W, D channels, N states, K = 4 directions.

A scan direction walks *lines* (rows or columns) of positions. A **program** is one warp that owns one
direction of one image and ``BlockShape.channels`` channels, and walks its lines in tiles of
``BlockShape.steps`` positions with all states in registers. Where that leaves a GPU idle, the lines are
split in *chunks* and three launches follow one another on the stream:

1. ``chunk_state``: every chunk but the last, from a zero state: its final state (D, N) and the sum of
   its step sizes (D), which is all that its decay product needs: ``exp(A * sum)``;
2. ``scan``: every chunk combines what came before it and scans; writes its direction's output in
   float32 (batch, K, H, W, D), each position written by exactly one program;
3. ``sum_directions``: adds the four directions in a fixed order and rounds once.

Without a split the first launch does not happen. No atomics: the result is deterministic.

The gradients take two launches, never split, since training has images enough to fill a GPU: ``tile_states``
walks forwards and keeps the state before every tile, N / steps numbers a position, channel and direction;
``scan_backward`` walks back, computes each tile's states again in registers, and writes what every
direction, block of channels and image contributes. Whoever launches adds those up, in a fixed order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import BackendError
from . import DIRECTIONS, ScanShape

WARP = 32
FLOAT32_BYTES = 4
POINTER_ALIGNMENT = 16  # bytes; what the compiled kernels assume of every tensor and of the workspace
SUM_ELEMENTS = 1024  # elements of one program of `sum_directions`
SUM_WARPS = 4
OLDEST_TRITON = "3.5"
"""The first that compiles kernels where there is no GPU: 3.4 ends the process at compute capability 11.0.
PyTorch has brought it since 2.9."""
MAX_GRID_YZ = 65535
MAX_CHUNKS = 32  # a later chunk combines the states of all before it, so their number is bounded


KERNEL_POINTERS: dict[str, tuple[str, ...]] = {
    "chunk_state": ("x", "delta", "A", "B", "delta_bias", "state", "decay"),
    "scan": ("x", "delta", "A", "B", "C", "D", "delta_bias", "state", "decay", "partial"),
    "sum_directions": ("partial", "y"),
    "tile_states": ("x", "delta", "A", "B", "delta_bias", "states"),
    "scan_backward": (
        *("x", "delta", "A", "B", "C", "D", "delta_bias", "grad", "states"),
        *("x_partial", "delta_gradient", "A_partial", "B_partial", "C_partial", "D_partial", "bias_partial"),
    ),
}
"""The pointer arguments of each kernel, in order: the operator's tensors and the workspace's arrays."""


@dataclass(frozen=True)
class BlockShape:
    """What one program (one warp) of the scan owns."""

    channels: int  # channels side by side; a power of two
    steps: int  # positions loaded and unrolled together: 2, 4 or 8


BLOCK_SHAPES: dict[int, BlockShape] = {
    # compute capability -> shape. Chosen from the compiled code: see docs/gpu.md.
    75: BlockShape(channels=8, steps=8),
    80: BlockShape(channels=8, steps=8),
    86: BlockShape(channels=8, steps=8),
    87: BlockShape(channels=8, steps=8),
    89: BlockShape(channels=8, steps=8),
    90: BlockShape(channels=8, steps=8),
    100: BlockShape(channels=8, steps=8),
    110: BlockShape(channels=8, steps=8),
    120: BlockShape(channels=8, steps=8),
    121: BlockShape(channels=8, steps=8),
}


BACKWARD_BLOCK = BlockShape(channels=8, steps=4)
"""What one program of the gradients owns, on every GPU."""


def is_too_old(triton_version: str) -> bool:
    """Whether that Triton is older than `OLDEST_TRITON`."""
    found, oldest = (
        tuple(map(int, re.findall(r"\d+", each)[:2])) for each in (triton_version, OLDEST_TRITON)
    )
    return found < oldest


def dotted(compute_capabilities: Iterable[int]) -> str:
    """Compute capabilities as people write them: 87 and 89 as ``8.7, 8.9``."""
    return ", ".join(f"{sm / 10:.1f}" for sm in compute_capabilities)


def block_shape(compute_capability: int) -> BlockShape:
    """The block shape for a compute capability written as ``10 * major + minor``.

    Raises:
        BackendError: No kernel is built for that compute capability.
    """
    try:
        return BLOCK_SHAPES[compute_capability]
    except KeyError:
        known = dotted(BLOCK_SHAPES)
        raise BackendError(
            f"compute capability {compute_capability / 10:.1f} has no scan kernel; choose from {known}"
        ) from None


@dataclass(frozen=True)
class Launch:
    """One kernel launch: which kernel, its grid, and its scalar arguments in order."""

    kernel: str
    grid: tuple[int, int, int]
    scalars: tuple[int, ...]


@dataclass(frozen=True)
class LaunchPlan:
    """The launches of one scan, in stream order, and the workspace that they share.

    The workspace is cut into three float32 arrays: the directions' outputs (batch, K, H, W, D), the
    chunks' final states (batch, K, chunks, D, N) and their summed step sizes (batch, K, chunks, D).
    """

    launches: tuple[Launch, ...]
    chunks: int
    partial_bytes: int
    state_bytes: int
    decay_bytes: int

    @property
    def workspace_bytes(self) -> int:
        return self.partial_bytes + self.state_bytes + self.decay_bytes

    def workspace_addresses(self, base: int) -> dict[str, int]:
        """Where the workspace's arrays lie when it starts at ``base``."""
        state = base + self.partial_bytes
        return {"partial": base, "state": state, "decay": state + self.state_bytes}


@dataclass(frozen=True)
class BackwardPlan:
    """The launches of one scan's gradients, in stream order, and the float32 arrays that they fill.

    Attributes:
        launches: what is launched.
        arrays: the shape of each array: ``states`` (batch, K, tiles, D, N) before every tile, and the
            contributions, ``x_partial`` (batch, K, H, W, D) of the directions, ``B_partial`` and
            ``C_partial`` (blocks, batch, H, W, K, N) of the blocks of channels, ``A_partial`` (batch, K, D,
            N),
            ``D_partial`` and ``bias_partial`` (batch, K, D) of the images. The first axis that the gradient
            itself has not is the one to add up.
    """

    launches: tuple[Launch, ...]
    arrays: dict[str, tuple[int, ...]]


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _aligned(size: int) -> int:
    return _ceil_div(size, POINTER_ALIGNMENT) * POINTER_ALIGNMENT


def chosen_chunks(shape: ScanShape, block: BlockShape, multiprocessors: int) -> int:
    """Chunks per direction that keep ``multiprocessors`` busy, and one where splitting cannot pay.

    A split walks (almost) every chunk twice and adds a launch, so it must at least quarter the length
    of the walk to win; it aims at two warps for each of a multiprocessor's four schedulers.
    """
    warps = shape.batch * DIRECTIONS * _ceil_div(shape.channels, block.channels)
    wanted = _ceil_div(multiprocessors * 8, warps)
    lines = max(shape.height, shape.width)
    tiles_per_line = _ceil_div(min(shape.height, shape.width), block.steps)
    # A chunk shorter than eight tiles costs more in launch and combination than it saves.
    longest_useful = lines * tiles_per_line // 8
    chunks = min(wanted, longest_useful, lines, MAX_CHUNKS)
    return chunks if chunks >= 4 else 1


def _check_elements(shape: ScanShape) -> None:
    """Refuses images in which 32 bits do not count the elements of a tensor.

    Raises:
        BackendError: The scan is too large.
    """
    if shape.length * max(shape.channels, shape.states) * DIRECTIONS >= 2**31:
        raise BackendError(
            f"a map of {shape.height}x{shape.width} with {shape.channels} channels and {shape.states} states "
            f"has too many elements for the scan kernel: at most {2**31 // DIRECTIONS} in an image"
        )


def launch_plan(shape: ScanShape, block: BlockShape, chunks: int) -> LaunchPlan:
    """The launches of one scan with its lines split into (at most) ``chunks`` chunks.

    Raises:
        BackendError: The scan is larger than a launch grid.
    """
    lines = max(shape.height, shape.width)
    lines_per_chunk = _ceil_div(lines, chunks)
    chunks = _ceil_div(lines, lines_per_chunk)
    blocks = _ceil_div(shape.channels, block.channels)
    planes = shape.batch * DIRECTIONS
    elements = shape.length * shape.channels  # elements of one image
    _check_elements(shape)
    if planes > MAX_GRID_YZ or blocks > MAX_GRID_YZ:
        raise BackendError(
            f"a scan of batch {shape.batch} and {shape.channels} channels exceeds the launch grid: "
            f"at most batch {MAX_GRID_YZ // DIRECTIONS} and {MAX_GRID_YZ * block.channels} channels"
        )
    scalars = (shape.height, shape.width, shape.channels, lines_per_chunk)
    scan = Launch("scan", (chunks, blocks, planes), scalars)
    total = Launch("sum_directions", (_ceil_div(elements, SUM_ELEMENTS), shape.batch, 1), (elements,))
    before = (Launch("chunk_state", (chunks - 1, blocks, planes), scalars),) if chunks > 1 else ()
    states = planes * chunks * shape.channels if chunks > 1 else 0
    return LaunchPlan(
        launches=(*before, scan, total),
        chunks=chunks,
        partial_bytes=_aligned(planes * elements * FLOAT32_BYTES),
        state_bytes=_aligned(states * shape.states * FLOAT32_BYTES),
        decay_bytes=_aligned(states * FLOAT32_BYTES),
    )


def backward_plan(shape: ScanShape, block: BlockShape = BACKWARD_BLOCK) -> BackwardPlan:
    """The launches of one scan's gradients.

    Raises:
        BackendError: The scan is larger than a launch grid.
    """
    _check_elements(shape)
    blocks = _ceil_div(shape.channels, block.channels)
    planes = shape.batch * DIRECTIONS
    if planes >= 2**31 or blocks > MAX_GRID_YZ:
        raise BackendError(
            f"the gradients of a scan of batch {shape.batch} and {shape.channels} channels exceed the launch "
            f"grid: at most {MAX_GRID_YZ * block.channels} channels"
        )
    by_rows = shape.height * _ceil_div(shape.width, block.steps)
    by_columns = shape.width * _ceil_div(shape.height, block.steps)
    positions = (shape.height, shape.width)
    scalars = (shape.height, shape.width, shape.channels)
    grid = (planes, blocks, 1)
    projection = (blocks, shape.batch, *positions, DIRECTIONS, shape.states)
    return BackwardPlan(
        launches=(Launch("tile_states", grid, scalars), Launch("scan_backward", grid, scalars)),
        arrays={
            "states": (shape.batch, DIRECTIONS, max(by_rows, by_columns), shape.channels, shape.states),
            "x_partial": (shape.batch, DIRECTIONS, *positions, shape.channels),
            "A_partial": (shape.batch, DIRECTIONS, shape.channels, shape.states),
            "B_partial": projection,
            "C_partial": projection,
            "D_partial": (shape.batch, DIRECTIONS, shape.channels),
            "bias_partial": (shape.batch, DIRECTIONS, shape.channels),
        },
    )
