"""The Triton scan in Triton's interpreter, against the reference in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_cases import ARGUMENTS, ScanCase, gradient_truth, truth
from numpy.typing import NDArray

from msmamba.plugins.selective_scan import reference

SHIPPED = None  # the block shape that the product uses; larger ones save the interpreter programs


@pytest.fixture(scope="session")
def interpreter() -> Iterator[subprocess.Popen[str]]:
    """The worker process; started once."""
    worker = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "triton_interpreter.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    with worker:
        yield worker
        assert worker.stdin is not None
        worker.stdin.close()


Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture
def interpreted_job(interpreter: subprocess.Popen[str], tmp_path: Path) -> Callable[..., Arrays]:
    """Runs one scan, or its gradients, in the worker."""

    def run(inputs: Arrays, block: tuple[int, int] | None, chunks: int = 1) -> Arrays:
        np.savez(tmp_path / "inputs.npz", **inputs)  # type: ignore[arg-type]  # its keywords are typed as flags
        job = {
            "inputs": str(tmp_path / "inputs.npz"),
            "output": str(tmp_path / "answer.npz"),
            "chunks": chunks,
            "block": block,
        }
        assert interpreter.stdin is not None
        assert interpreter.stdout is not None
        interpreter.stdin.write(json.dumps(job) + "\n")
        interpreter.stdin.flush()
        assert interpreter.stdout.readline() == "done\n", "the interpreter failed: see its standard error"
        with np.load(tmp_path / "answer.npz") as answer:
            return dict(answer)

    return run


@pytest.fixture
def interpreted(interpreted_job: Callable[..., Arrays]) -> Callable[..., NDArray[np.generic]]:
    """Runs one scan in the worker."""

    def run(inputs: Arrays, chunks: int, block: tuple[int, int] | None) -> NDArray[np.generic]:
        return interpreted_job(inputs, block, chunks)["y"]

    return run


# The interpreter's time grows with the programs and their tiles of up to eight positions, hardly with the
# channels: 784 and 3136 positions are walked once each here, and again by the emulator of the compiled code.
@pytest.mark.parametrize("element_type", ["float32", "float16"])
@pytest.mark.parametrize(
    ("case", "block"),
    [
        pytest.param(ScanCase(3, 1, 1, 7), SHIPPED, id="one-token-odd-channels"),
        pytest.param(ScanCase(1, 7, 7, 13), SHIPPED, id="odd-channels"),
        pytest.param(ScanCase(1, 3, 5, 24, chunks=2), SHIPPED, id="oblong-two-chunks"),
        pytest.param(ScanCase(1, 5, 3, 24, chunks=4), SHIPPED, id="oblong-fewer-columns-than-chunks"),
        pytest.param(ScanCase(1, 7, 7, 192), (256, 8), id="last-stage-49x192"),
        pytest.param(ScanCase(3, 7, 7, 48), (64, 4), id="batch-3"),
        pytest.param(ScanCase(1, 14, 14, 96, chunks=4), (128, 8), id="third-stage-196x96"),
    ],
)
def test_agrees_with_the_reference(
    interpreted: Callable[..., NDArray[np.generic]],
    case: ScanCase,
    block: tuple[int, int] | None,
    element_type: str,
) -> None:
    inputs = ScanCase(case.batch, case.height, case.width, case.channels, element_type).inputs()
    truth(inputs).check(interpreted(inputs, case.chunks, block))


@pytest.mark.parametrize(
    ("case", "block"),
    [
        pytest.param(ScanCase(1, 28, 28, 48, "float32"), (64, 8), id="second-stage-784x48"),
        pytest.param(ScanCase(1, 56, 56, 24, "float16"), (32, 8), id="first-stage-3136x24"),
    ],
)
def test_long_walks_agree_with_the_reference(
    interpreted: Callable[..., NDArray[np.generic]], case: ScanCase, block: tuple[int, int]
) -> None:
    inputs = case.inputs()
    truth(inputs).check(interpreted(inputs, 1, block))


@pytest.mark.parametrize("element_type", ["float32", "float16"])
def test_each_direction_is_scanned_in_its_own_order(
    interpreted: Callable[..., NDArray[np.generic]], element_type: str
) -> None:
    """Only the named direction hears the input: the other three have C and D zero."""
    for direction in range(4):
        inputs = ScanCase(1, 5, 4, 3, element_type).inputs(seed=direction)
        silent = [k for k in range(4) if k != direction]
        inputs["C"][:, :, :, silent] = 0
        inputs["D"][silent] = 0
        truth(inputs).check(interpreted(inputs, 1, SHIPPED))


# Not bfloat16: the interpreter cuts numbers off to it, where GPUs, and the emulator of the compiled code,
# round.
@pytest.mark.parametrize("element_type", ["float32", "float16"])
@pytest.mark.parametrize(
    ("case", "block"),
    [
        pytest.param(ScanCase(3, 1, 1, 7), SHIPPED, id="one-token-odd-channels"),
        pytest.param(ScanCase(1, 3, 9, 13), SHIPPED, id="oblong-two-blocks"),
        pytest.param(ScanCase(2, 5, 3, 24), (32, 4), id="batch-2-other-block"),
    ],
)
def test_gradients_agree_with_float64(
    interpreted_job: Callable[..., Arrays],
    case: ScanCase,
    block: tuple[int, int] | None,
    element_type: str,
) -> None:
    """Of all seven inputs; one line of nine positions ends in a tile of one."""
    own = ScanCase(case.batch, case.height, case.width, case.channels, element_type)
    inputs, grad = own.inputs(), own.output_gradient()
    found = interpreted_job({**inputs, "grad": grad}, block)
    gradient_truth(inputs, grad).check(found)


def test_gradients_of_a_stage_agree_with_float64(interpreted_job: Callable[..., Arrays]) -> None:
    """The third stage's, 196 positions of 96 channels."""
    case = ScanCase(1, 14, 14, 96)
    inputs, grad = case.inputs(), case.output_gradient()
    found = interpreted_job({**inputs, "grad": grad}, (128, 8))
    gradient_truth(inputs, grad).check(found)


def test_gradients_are_the_slopes_of_the_scan(interpreted_job: Callable[..., Arrays]) -> None:
    """Of <grad, y> along a random direction of each input, by differences of the scan in float64."""
    case = ScanCase(1, 3, 4, 5)
    inputs, grad = case.inputs(), case.output_gradient()
    found = interpreted_job({**inputs, "grad": grad}, SHIPPED)
    exact = {name: torch.from_numpy(array).double() for name, array in inputs.items()}
    weights = torch.from_numpy(grad).double()
    generator = torch.Generator().manual_seed(2)
    for name in ARGUMENTS:
        direction = torch.randn(exact[name].shape, generator=generator, dtype=torch.float64)
        either = [
            reference.selective_scan_2d(**{**exact, name: exact[name] + side * direction})
            for side in (1e-4, -1e-4)
        ]
        slope = float((weights * (either[0] - either[1])).sum() / 2e-4)
        ours = float((torch.from_numpy(found[name]).double() * direction).sum())
        assert ours == pytest.approx(slope, rel=1e-4), name
