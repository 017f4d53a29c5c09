"""The machine this process runs on: the cores it may use, the processor, its clock, its memory.

Read from the operating system without any dependency; what a system does not tell is None.
"""

from __future__ import annotations

import importlib
import math
import operator
import os
import platform
import re
import sys
from pathlib import Path

from .errors import BackendError, InputError

MAX_THREADS = 1024
"""Most threads that may be asked for; far above what a process gains by."""

_CPUINFO = Path("/proc/cpuinfo")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")

# Instruction sets that matter to inference, as Linux names them.
_X86_FEATURES = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile")
_ARM_FEATURES = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16")


def check_installed(module: str, need: str, package: str) -> None:
    """Says what is missing: to be asked before the work that needs it in the end.

    Args:
        module: what is to be imported.
        need: what needs it, such as "pictures need Matplotlib".
        package: what to install.

    Raises:
        BackendError: it is not installed.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise BackendError(f"{need}: pip install {package}") from error


def python_command(code: str, *words: str) -> list[str]:
    """The command of a Python process that imports from where this one does, and from nowhere else.

    By itself Python looks in the current folder first, for ``-c`` and ``-m``: a ``numpy.py`` that came with
    somebody's images would be executed.

    Args:
        code: what it executes.
        words: its ``sys.argv[1:]``.
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = {list(map(str, sys.path))!r}; {code}", *words]


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, less where a container's quota is below."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_line(_CGROUP_QUOTA)
    if quota is None or quota.startswith("max"):
        return allowed
    granted, period = map(int, quota.split())
    return max(1, min(allowed, math.ceil(granted / period)))


def threads_to_use(asked: int | None) -> int:
    """The number of threads that was asked for, or every core that this process may use.

    Raises:
        InputError: it is no whole number of at least 1, or is absurd.
    """
    if asked is None:
        return usable_cores()
    try:
        count = operator.index(asked)
    except TypeError:
        count = 0
    if isinstance(asked, bool) or not 1 <= count <= MAX_THREADS:
        raise InputError(
            f"the number of threads is {asked!r}: expected a whole number from 1 to {MAX_THREADS}, or none "
            "for all cores"
        )
    return count


def processor() -> str:
    """The processor's name."""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _text(_CPUINFO), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def processor_features() -> tuple[str, ...]:
    """The processor's instruction sets that matter to inference."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _text(_CPUINFO), re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    return tuple(name for name in _X86_FEATURES + _ARM_FEATURES if name in flags)


def clock_state() -> dict[str, str]:
    """What is known of the clock: governor, limits and present frequency; virtual machines tell little."""
    state = {}
    for key, name in (
        ("governor", "scaling_governor"),
        ("min_khz", "scaling_min_freq"),
        ("max_khz", "scaling_max_freq"),
        ("now_khz", "scaling_cur_freq"),
    ):
        value = _first_line(_FREQUENCY / name)
        if value is not None:
            state[key] = value
    now = re.search(r"^cpu MHz\s*:\s*(.+)$", _text(_CPUINFO), re.MULTILINE)
    if now:
        state["cpuinfo_mhz"] = now.group(1)
    return state or {"unknown": "this system does not tell"}


def load_average() -> float | None:
    """Processes that wanted a core, averaged over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def memory_bytes() -> int | None:
    """Main memory of the machine."""
    found = re.search(r"^MemTotal:\s*(\d+) kB$", _text(Path("/proc/meminfo")), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def peak_memory_bytes() -> int | None:
    """Most memory that this process has held so far (resident set, high-water mark)."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", _text(Path("/proc/self/status")), re.MULTILINE)
    if found:  # rather than ru_maxrss, which on Linux starts at what the parent process held
        return int(found.group(1)) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not on this system
        return ""


def _first_line(path: Path) -> str | None:
    lines = _text(path).splitlines()
    return lines[0].strip() if lines else None
