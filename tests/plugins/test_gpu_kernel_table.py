"""The compiled kernels' resources, read from their machine code for every GPU they are compiled for."""

from __future__ import annotations

from types import ModuleType

import pytest
from benchmark_scripts import script_as_module

from msmamba.plugins.hybrid_block.gpu_kernels import CONSTANTS
from msmamba.plugins.selective_scan.gpu_launch import BLOCK_SHAPES, MAX_CHUNKS, ScanShape


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The benchmark script as a module."""
    return script_as_module("gpu_kernel_table")


@pytest.mark.parametrize("element_type", ["float16", "float32"])
@pytest.mark.parametrize("compute_capability", BLOCK_SHAPES)
def test_no_kernel_spills(table: ModuleType, compute_capability: int, element_type: str) -> None:
    for kernel in ("chunk_state", "scan", "sum_directions"):
        code = table.machine_code(kernel, element_type, compute_capability)
        assert code.spill_bytes == 0, kernel
        assert code.registers <= 128, kernel  # sixteen warps fit a multiprocessor
        assert code.shared_bytes <= 2048, kernel


@pytest.mark.parametrize("element_type", ["float16", "float32"])
@pytest.mark.parametrize("compute_capability", BLOCK_SHAPES)
def test_no_kernel_of_the_block_spills(table: ModuleType, compute_capability: int, element_type: str) -> None:
    for kernel in CONSTANTS:
        code = table.machine_code(kernel, element_type, compute_capability)
        assert code.spill_bytes == 0, kernel
        assert code.registers <= 72, kernel  # seven blocks of four warps fit a multiprocessor
        assert code.shared_bytes <= 1024, kernel


@pytest.mark.parametrize("element_type", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("compute_capability", BLOCK_SHAPES)
def test_no_kernel_of_the_gradients_spills(
    table: ModuleType, compute_capability: int, element_type: str
) -> None:
    for kernel in ("tile_states", "scan_backward"):
        code = table.machine_code(kernel, element_type, compute_capability)
        assert code.spill_bytes == 0, kernel
        assert code.registers <= 204, kernel  # ten warps fit a multiprocessor
        assert code.shared_bytes <= 2048, kernel


def test_the_loop_needs_the_exponentials_of_the_cost_model_and_no_more(table: ModuleType) -> None:
    """32 updates a lane and tile, and two softplus of two operations each."""
    assert table.machine_code("scan", "float16", 87).special == 32 + 4


@pytest.mark.parametrize("element_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("kernel", ["chunk_state", "scan", "tile_states", "scan_backward"])
def test_narrower_values_are_widened_once(table: ModuleType, kernel: str, element_type: str) -> None:
    """As they were loaded, and not by every lane that they are dealt out to."""
    narrow, wide = (table.machine_code(kernel, each, 90).loop for each in (element_type, "float32"))
    assert narrow.total() < 1.1 * wide.total()


def test_the_gradients_loop_needs_one_exponential_an_update(table: ModuleType) -> None:
    """16 updates a lane and tile, one softplus of two operations, and its slope by the same exponential."""
    assert table.machine_code("scan_backward", "float32", 87).special == 16 + 3


def test_the_cost_model_of_the_gradients_counts_what_the_kernels_move(table: ModuleType) -> None:
    stage = table.Stage(1, ScanShape(batch=4, height=56, width=56, channels=24, states=16))
    positions = 4 * 3136
    read_twice = 24 + 4 * (24 + 16)  # x, delta and B by both walks
    once = 24 + 4 * 16 + 24 + 4 * (24 + 32)  # the output's gradient and C; dx, ddelta, dB and dC
    kept, directions, blocks = 4 * 24 * 16 // 4, 4 * 24, 3 * 4 * 32
    expected = positions * ((2 * read_twice + once) * 2 + 2 * 4 * (kept + directions + blocks))
    assert stage.backward_moved_bytes(2) == expected


def test_the_cost_model_counts_what_the_definition_says(table: ModuleType) -> None:
    stage = table.Stage(1, ScanShape(batch=4, height=56, width=56, channels=24, states=16))
    assert stage.updates == 4 * 4 * 3136 * 24 * 16
    maps = 4 * 3136 * (24 + 24 + 4 * (24 + 16 + 16)) * 2  # x, y; delta, B, C of each direction
    between = 2 * 4 * 4 * 3136 * 24 * 4
    assert stage.moved_bytes(2) == maps + between + 4 * 24 * 18 * 4


def test_stages_are_those_of_the_network(table: ModuleType) -> None:
    shapes = [(s.shape.height, s.shape.channels) for s in table.stages("t", batch=1)]
    assert shapes == [(56, 24), (28, 48), (14, 96), (7, 192)]


@pytest.mark.parametrize("gpu", ["ORIN_NANO", "RTX_4090"])
def test_lines_are_split_only_where_a_gpu_is_left_idle(table: ModuleType, gpu: str) -> None:
    chunks = [table.issue_us(stage, getattr(table, gpu), "float16")[0] for stage in table.stages("t", 1)]
    assert max(chunks) <= MAX_CHUNKS
    assert chunks[2:] == [1, 1]
    assert (chunks[0] > 1) == (gpu == "RTX_4090")
