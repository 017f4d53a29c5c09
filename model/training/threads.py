"""CPU threads: PyTorch has a pool of its own, and so has the compiled scan."""

from __future__ import annotations

from ...machine import threads_to_use


def set_threads(count: int) -> None:
    """Limits PyTorch's operators, the scan among them, to ``count`` threads.

    Raises:
        InputError: ``count`` is no number of threads.
    """
    import torch

    from ...plugins.selective_scan import cpu

    count = threads_to_use(count)
    torch.set_num_threads(count)
    if cpu.why_unavailable() is None:
        cpu.set_threads(count)
