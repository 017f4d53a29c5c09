"""`benchmarks/one_gpu.py`: of a library's fat binaries, the code for one GPU is left, and nothing moves."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "one_gpu.py"
PTX, MACHINE_CODE = 1, 2


def fat_binary(*entries: tuple[int, int, bytes]) -> bytes:
    """Kind, compute capability and content of each entry, as nvcc lays them out."""
    body = b"".join(
        struct.pack("<HHIQ12xI32x", kind, 0x101, 64, len(content), capability) + content
        for kind, capability, content in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_the_code_for_one_gpu_is_left(tmp_path: Path) -> None:
    whole = b"ELF".join(
        [
            b"before",
            fat_binary(
                (MACHINE_CODE, 80, b"eight" * 8), (MACHINE_CODE, 90, b"nine" * 8), (PTX, 90, b"text" * 8)
            ),
            fat_binary(
                (MACHINE_CODE, 80, b"old" * 8), (PTX, 80, b"words" * 8)
            ),  # compiled by the driver on 9.0
            b"after",
        ]
    )
    library, output = tmp_path / "library.so", tmp_path / "smaller.so"
    library.write_bytes(whole)
    command = [sys.executable, SCRIPT, library, "-o", output, "--keep"]
    done = subprocess.run([*command, "9.0"], capture_output=True, text=True, timeout=60, check=True)
    assert "of 0 MB of code are left" in done.stdout
    expected = whole
    for gone in (b"eight" * 8, b"text" * 8, b"old" * 8):
        expected = expected.replace(gone, bytes(len(gone)))
    assert output.read_bytes() == expected

    damaged = whole.replace(struct.pack("<HHI", MACHINE_CODE, 0x101, 64), struct.pack("<HHI", 7, 0x101, 64))
    library.write_bytes(damaged)
    done = subprocess.run([*command, "9.0"], capture_output=True, text=True, timeout=60, check=False)
    assert "is not such as this script knows" in done.stderr
