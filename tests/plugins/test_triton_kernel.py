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
from gpu_cases import ScanCase, truth
from numpy.typing import NDArray

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


@pytest.fixture
def interpreted(interpreter: subprocess.Popen[str], tmp_path: Path) -> Callable[..., NDArray[np.generic]]:
    """Runs one scan in the worker."""

    def run(
        inputs: dict[str, NDArray[np.generic]], chunks: int, block: tuple[int, int] | None
    ) -> NDArray[np.generic]:
        np.savez(tmp_path / "inputs.npz", **inputs)  # type: ignore[arg-type]  # its keywords are typed as flags
        job = {
            "inputs": str(tmp_path / "inputs.npz"),
            "output": str(tmp_path / "y.npy"),
            "chunks": chunks,
            "block": block,
        }
        assert interpreter.stdin is not None
        assert interpreter.stdout is not None
        interpreter.stdin.write(json.dumps(job) + "\n")
        interpreter.stdin.flush()
        assert interpreter.stdout.readline() == "done\n", "the interpreter failed: see its standard error"
        output: NDArray[np.generic] = np.load(tmp_path / "y.npy")
        return output

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
