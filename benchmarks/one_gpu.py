"""Empties the machine code of a library of CUDA's for all GPUs but one, so that it packs small.

    python benchmarks/one_gpu.py LIBRARY --keep 9.0 -o OUT

The library keeps its size and all its addresses: machine code of other compute capabilities becomes zeros,
which a packer takes away, and so does PTX where there is machine code for the one to keep. For a machine that
takes files in parts (docs/gpu.md).

A fat binary, as nvcc embeds it: a header of 16 bytes (magic, version, its own size, the size of what comes),
then entries, each a header (kind, version, its own size, the size of its content, and at byte 28 the compute
capability) and a content.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
from pathlib import Path

MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
PTX, MACHINE_CODE = 1, 2
_ENTRY = struct.Struct("<HHIQ")  # kind, version, size of the header, size of the content
_CAPABILITY_AT = 28


def entries(library: bytes | bytearray, start: int) -> list[tuple[int, int, int, int]]:
    """The entries of a fat binary: kind, compute capability, and where the content begins and ends."""
    (size,) = struct.unpack_from("<Q", library, start + len(MAGIC))
    at, end, found = start + 16, start + 16 + size, []
    while at < end:
        kind, _, header, content = _ENTRY.unpack_from(library, at)
        (capability,) = struct.unpack_from("<I", library, at + _CAPABILITY_AT)
        if kind not in (PTX, MACHINE_CODE) or header < _CAPABILITY_AT + 4 or at + header + content > end:
            raise ValueError(f"the fat binary at {start} is not such as this script knows")
        found.append((kind, capability, at + header, at + header + content))
        at += header + content
    return found


def emptied(library: bytes, keep: int) -> tuple[bytearray, int, int]:
    """The library for one compute capability, the bytes of code that it had, and those that are left."""
    changed, before, left = bytearray(library), 0, 0
    for found in re.finditer(re.escape(MAGIC), library):
        held = entries(library, found.start())
        has_own = any((kind, capability) == (MACHINE_CODE, keep) for kind, capability, _, _ in held)
        for kind, capability, start, stop in held:
            before += stop - start
            if (kind, capability) == (MACHINE_CODE, keep) or (kind == PTX and not has_own):
                left += stop - start
            else:
                changed[start:stop] = bytes(stop - start)
    return changed, before, left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--keep", required=True, help="the compute capability to keep, such as 9.0")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    changed, before, left = emptied(arguments.library.read_bytes(), round(10 * float(arguments.keep)))
    if not left:
        parser.error(f"{arguments.library} has no code for {arguments.keep}")
    arguments.output.write_bytes(changed)
    print(f"{left / 1e6:.0f} of {before / 1e6:.0f} MB of code are left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
