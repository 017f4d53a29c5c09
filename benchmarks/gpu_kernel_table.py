"""What the GPU kernels cost: the scan's cost model, and what the compiled code says. Needs no GPU.

    python benchmarks/gpu_kernel_table.py [--sm 87,89] [--size t] [--batch 1]

Prints Markdown tables: the machine code of the scan, of its gradients and of the hybrid block's steps
(registers, shared memory, spills, instructions in the inner loop), the work of each stage with its floor on
two GPUs, and the compiled instructions against that floor. Nothing here was timed on a device: floors are
arithmetic on data-sheet figures. Dims: G images that the network's four channel groups make of one, L
positions, D channels, N = 16 states, K = 4 directions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton

from msmamba.plugins.hybrid_block import triton_block
from msmamba.plugins.selective_scan import DIRECTIONS, ScanShape
from msmamba.plugins.selective_scan.gpu_launch import (
    BACKWARD_BLOCK,
    BLOCK_SHAPES,
    FLOAT32_BYTES,
    WARP,
    block_shape,
    chosen_chunks,
    launch_plan,
)
from msmamba.plugins.selective_scan.triton_scan import BACKWARD_KERNELS, KERNELS, compile_kernel

STATES = 16
GROUPS = 4
SIZES = {"t": 96, "s": 96, "b": 128}  # channels of the first stage's hybrid block
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([^;]*);"  # without what guards it
FLOAT32_PIPE = {"FADD", "FMUL", "FFMA", "FFMA2", "FADD2", "FMUL2", "HADD2", "HFMA2"}


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet."""

    name: str
    compute_capability: int
    multiprocessors: int
    clock_ghz: float  # boost
    bandwidth_gb_s: float
    special_per_clock: int = 16  # results of the special-function units, per multiprocessor
    float32_per_clock: int = 128
    issues_per_clock: int = 4  # warp instructions


ORIN_NANO = Gpu("Jetson Orin Nano 8 GB (Super mode)", 87, 8, 1.02, 102.0)
RTX_4090 = Gpu("GeForce RTX 4090", 89, 128, 2.52, 1008.0)


@dataclass(frozen=True)
class MachineCode:
    """One compiled kernel."""

    registers: int
    shared_bytes: int
    spill_bytes: int  # local memory and stack
    cubin: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.cubin)

    @cached_property
    def _assembly(self) -> str:
        return _output("nvdisasm", self.cubin, "-c")

    @property
    def loop(self) -> Counter[str]:
        """Instructions of the innermost, hottest loop by name; disassembled when it is asked for."""
        return _longest_loop(self._assembly)

    @property
    def instructions(self) -> int:
        """All that do something, each once."""
        found = re.findall(_INSTRUCTION, self._assembly)
        return sum(not instruction.startswith("NOP") for instruction in found)

    @property
    def special(self) -> int:
        """Special-function instructions of one turn of the loop."""
        return self.loop["MUFU"]

    @property
    def float32(self) -> int:
        """Floating-point instructions of one turn of the loop."""
        return sum(count for name, count in self.loop.items() if name in FLOAT32_PIPE)


def machine_code(kernel: str, element_type: str, compute_capability: int) -> MachineCode:
    """Compiles a kernel, of the scan or of the block, and reads what its machine code uses."""
    if kernel in triton_block.KERNELS:
        compiled = triton_block.compile_kernel(kernel, element_type, compute_capability)
    else:
        compiled = compile_kernel(kernel, element_type, STATES, compute_capability)
    usage = _output("cuobjdump", compiled.asm["cubin"], "-res-usage")
    used = {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return MachineCode(
        registers=used["REG"],
        shared_bytes=compiled.metadata.shared,
        spill_bytes=used["STACK"] + used["LOCAL"],
        cubin=compiled.asm["cubin"],
    )


def _output(tool: str, cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / tool), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _longest_loop(assembly: str) -> Counter[str]:
    """Instruction names between a label and the farthest branch back to it."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        if found := re.search(_INSTRUCTION, line):
            instructions.append(found[1])
    longest = range(0)
    for position, instruction in enumerate(instructions):
        branch = re.match(r"BRA\b.*`\((\.L_\w+)\)", instruction)
        if branch and labels[branch[1]] < position:
            longest = max(longest, range(labels[branch[1]], position + 1), key=len)
    return Counter(re.split(r"[\s.]", instructions[i])[0] for i in longest)


@dataclass(frozen=True)
class Stage:
    """One scan of the network."""

    number: int
    shape: ScanShape

    @property
    def steps(self) -> int:
        """Channel steps: one channel, one position, one direction."""
        return self.shape.batch * DIRECTIONS * self.shape.length * self.shape.channels

    @property
    def updates(self) -> int:
        """State updates: h = a h + b."""
        return self.steps * self.shape.states

    @property
    def special(self) -> int:
        """Special-function operations: one exponential an update; one and a reciprocal per softplus."""
        return self.updates + 2 * self.steps

    @property
    def float32(self) -> int:
        """Multiply-adds: four an update (exponent, input, state, output); ten per softplus and skip term."""
        return 4 * self.updates + 10 * self.steps

    def moved_bytes(self, element_bytes: int) -> int:
        """Each input read once, the output written once, the directions' outputs written and read once."""
        shape = self.shape
        positions = shape.batch * shape.length
        tensors = positions * (2 * shape.channels + DIRECTIONS * (shape.channels + 2 * shape.states))
        weights = DIRECTIONS * shape.channels * (shape.states + 2) * 4
        between = 2 * positions * DIRECTIONS * shape.channels * 4
        return tensors * element_bytes + weights + between

    def floor_us(self, gpu: Gpu, element_bytes: int) -> dict[str, float]:
        """Time that each resource needs at least, microseconds."""
        clocks_per_us = gpu.clock_ghz * 1e3 * gpu.multiprocessors
        return {
            "memory": self.moved_bytes(element_bytes) / gpu.bandwidth_gb_s / 1e3,
            "special": self.special / gpu.special_per_clock / clocks_per_us,
            "float32": self.float32 / gpu.float32_per_clock / clocks_per_us,
        }

    def backward_moved_bytes(self, element_bytes: int) -> int:
        """Of the gradients: inputs read by both walks; states and contributions written and read; they."""
        shape = self.shape
        positions = shape.batch * shape.length
        per_direction = positions * DIRECTIONS
        forwards = positions * shape.channels + per_direction * (shape.channels + shape.states)
        backwards = 2 * positions * shape.channels + per_direction * (shape.channels + 2 * shape.states)
        written = positions * shape.channels + per_direction * (shape.channels + 2 * shape.states)
        blocks = -(-shape.channels // BACKWARD_BLOCK.channels)
        kept = per_direction * shape.channels * shape.states // BACKWARD_BLOCK.steps
        between = kept + per_direction * (shape.channels + 2 * blocks * shape.states)
        return (forwards + backwards + written) * element_bytes + 2 * between * FLOAT32_BYTES

    def backward_floor_us(self, gpu: Gpu, element_bytes: int) -> dict[str, float]:
        """As `floor_us`, of the gradients: two exponentials and 18 multiply-adds an update.

        Three of those walk forwards, three more do so again, and twelve go back: the state's gradient (2),
        what passes the decay (1), and the sums for B, C, delta's two paths and A (9).
        """
        clocks_per_us = gpu.clock_ghz * 1e3 * gpu.multiprocessors
        special = 2 * self.updates + 6 * self.steps
        return {
            "memory": self.backward_moved_bytes(element_bytes) / gpu.bandwidth_gb_s / 1e3,
            "special": special / gpu.special_per_clock / clocks_per_us,
            "float32": (18 * self.updates + 30 * self.steps) / gpu.float32_per_clock / clocks_per_us,
        }


def stages(size: str, batch: int, image: int = 224) -> list[Stage]:
    """The scans of the network's four stages."""
    first = SIZES[size] // 2 // GROUPS * 2
    return [
        Stage(i + 1, ScanShape(batch * GROUPS, image >> 2 + i, image >> 2 + i, first << i, STATES))
        for i in range(4)
    ]


def issue_us(stage: Stage, gpu: Gpu, element_type: str) -> tuple[int, float]:
    """Chunks chosen for a GPU, and the time its schedulers need to issue the loops' instructions.

    No stalls are counted, and no imbalance but the last: a scheduler cannot issue less than a whole warp.
    """
    block = block_shape(gpu.compute_capability)
    chunks = chosen_chunks(stage.shape, block, gpu.multiprocessors)
    plan = launch_plan(stage.shape, block, chunks)
    lines = plan.launches[0].scalars[3] if plan.chunks > 1 else stage.shape.height
    tiles = lines * -(-stage.shape.width // block.steps)
    schedulers = gpu.multiprocessors * gpu.issues_per_clock
    clocks = 0
    for launch in plan.launches:
        if launch.kernel == "sum_directions":
            continue
        warps = launch.grid[0] * launch.grid[1] * launch.grid[2]
        loop = machine_code(launch.kernel, element_type, gpu.compute_capability).loop
        clocks += -(-warps // schedulers) * tiles * loop.total()
    return plan.chunks, clocks / gpu.clock_ghz / 1e3


def print_machine_code(compute_capabilities: list[int]) -> None:
    columns = ["SM", "type", "kernel", "registers", "shared, B", "spills, B", "cubin, B"]
    print("|", " | ".join([*columns, "loop", "MUFU", "FP32", "per update"]), "|")
    print("|---" * 11 + "|")
    forward = [(element_type, KERNELS) for element_type in ("float16", "float32")]
    backward = [(element_type, BACKWARD_KERNELS) for element_type in ("float16", "bfloat16", "float32")]
    for sm in compute_capabilities:
        for element_type, kernels in (*forward, *backward):
            for kernel in kernels:
                block = BACKWARD_BLOCK if kernel in BACKWARD_KERNELS else block_shape(sm)
                updates = STATES * block.channels * block.steps // WARP
                code = machine_code(kernel, element_type, sm)
                row = [sm / 10, element_type, kernel, code.registers, code.shared_bytes, code.spill_bytes]
                loop = [code.loop.total(), code.special, code.float32, f"{code.loop.total() / updates:.1f}"]
                looped = loop if code.special else ["–"] * 4
                print("|", " | ".join(str(cell) for cell in (*row, code.size_bytes, *looped)), "|")


def print_block_code(compute_capabilities: list[int]) -> None:
    print(
        "| SM | kernel | registers, float16, float32 | instructions | in the longest loop "
        "| shared, B | spills, B | cubins, B |"
    )
    print("|---" * 8 + "|")
    for sm in compute_capabilities:
        for kernel in triton_block.KERNELS:
            codes = [machine_code(kernel, element_type, sm) for element_type in ("float16", "float32")]
            figures = [
                [code.registers for code in codes],
                [code.instructions for code in codes],
                [sum(code.loop.values()) for code in codes],
                [max(code.shared_bytes for code in codes)],
                [max(code.spill_bytes for code in codes)],
                [code.size_bytes for code in codes],
            ]
            cells = (", ".join(map(str, values)) for values in figures)
            print("|", " | ".join([str(sm / 10), kernel, *cells]), "|")


def print_cost_model(size: str, batch: int, element_type: str) -> None:
    bytes_each = 2 if element_type == "float16" else 4
    print("| stage | G x L x D | MB moved | SFU, M | FP32, M | GPU | memory | SFU | FP32 | chunks | issue |")
    print("|---" * 11 + "|")
    for stage in stages(size, batch):
        shape = stage.shape
        work = [
            f"{shape.batch} x {shape.length} x {shape.channels}",
            f"{stage.moved_bytes(bytes_each) / 1e6:.2f}",
            f"{stage.special / 1e6:.1f}",
            f"{stage.float32 / 1e6:.1f}",
        ]
        for gpu in (ORIN_NANO, RTX_4090):
            floor = stage.floor_us(gpu, bytes_each)
            chunks, issue = issue_us(stage, gpu, element_type)
            times = [f"**{t:.1f}**" if t == max(floor.values()) else f"{t:.1f}" for t in floor.values()]
            cells = (stage.number, *work, gpu.name, *times, chunks, f"{issue:.1f}")
            print("|", " | ".join(str(cell) for cell in cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sm", default=",".join(str(sm) for sm in BLOCK_SHAPES), help="e.g. 87,89")
    parser.add_argument("--size", default="t", choices=SIZES)
    parser.add_argument("--batch", default=1, type=int)
    arguments = parser.parse_args()
    asked = [int(sm) for sm in arguments.sm.split(",")]
    print_machine_code(asked)
    print("\nThe hybrid block's steps:\n")
    print_block_code(asked)
    for element_type in ("float16", "float32"):
        print(f"\n{arguments.size}, batch {arguments.batch}, {element_type}; times in microseconds:\n")
        print_cost_model(arguments.size, arguments.batch, element_type)


if __name__ == "__main__":
    main()
