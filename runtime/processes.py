"""Sessions and forked processes: a fork inherits a network's memory and none of the threads that work on it.

ONNX Runtime hangs or crashes in a forked child that frees what its parent has loaded, and a CUDA context does
not survive a fork at all. So a session answers in the process that opened it and says so elsewhere, and a
child never frees what it has inherited: the memory is its parent's, shared until one of them writes to it.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from functools import cache
from typing import Any

from ..errors import BackendError

_loaded: weakref.WeakSet[Any] = weakref.WeakSet()


class Home:
    """The process in which a network was loaded."""

    def __init__(self, network: object, name: str) -> None:
        """Sees to it that no fork of this process frees ``network``, which messages call ``name``."""
        self._process, self._name = os.getpid(), name
        _watch_forks()
        _loaded.add(network)

    @property
    def is_here(self) -> bool:
        """Whether this process is the one."""
        return os.getpid() == self._process

    def require(self) -> None:
        """Refuses work in a fork.

        Raises:
            BackendError: this is another process.
        """
        if not self.is_here:
            raise BackendError(
                f"'{self._name}' was opened in process {self._process}, and process {os.getpid()} is a fork "
                "of it, which has none of the session's threads: open it in each process, after the fork"
            )


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_never_free)


def _never_free() -> None:
    """One reference more than there are, to each network and with it to all that it holds."""
    for network in list(_loaded):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(network))
