"""CPU threads: PyTorch has a pool of its own, and so has the compiled scan."""

from __future__ import annotations


def set_threads(count: int) -> None:
    """Limits PyTorch's operators, the scan among them, to ``count`` threads.

    Raises:
        ValueError: ``count`` is not positive.
    """
    import torch

    from ...plugins.selective_scan import cpu

    if count < 1:
        raise ValueError(f"the number of threads is {count}, expected at least 1")
    torch.set_num_threads(count)
    if cpu.why_unavailable() is None:
        cpu.set_threads(count)
