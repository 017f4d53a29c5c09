"""Processes that have PyTorch and the exporter loaded when they begin, which costs others three seconds.

For tests in which a process of its own is what is tested: one that is killed, several that train together,
the README's commands. Run as a script, this is the *server*: it imports what is heavy, starts no thread,
and forks at a word; what it forks has its own arguments, environment, folder and streams, and runs as
``python`` would run it. Its end is that of `multiprocessing`'s forks: threads are joined, exit functions run
and streams flushed, but the interpreter is not taken apart, which takes as long as the imports.

What is imported when, and what a bare process knows, cannot be tested so. Nor has ``OMP_NUM_THREADS`` an
effect in an environment given later: it is 1 in all of them.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

HEAVY = (
    *("torch.distributed", "torch.nn.parallel", "torch.onnx", "onnx", "onnxscript"),
    *("sklearn.metrics", "matplotlib.figure", "matplotlib.backends.backend_agg", "safetensors.torch"),
    *("msmamba.cli", "msmamba.export.bundle", "msmamba.model.training.loop"),
)


class Preloaded:
    """The server; a context manager that ends it, and whatever it forked."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()  # the end of its input is its end

    def ask(self, **question: Any) -> int:
        """One line to the server, one number back."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server of preloaded processes is gone: see its standard error"
        return int(answer)

    def start(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Fork:
        """Starts what ``python *command`` would run: a script, or ``-c CODE`` or ``-m MODULE``.

        Args:
            command: what follows ``python`` on a command line.
            env: changes to this process's environment.
            cwd: the folder to start in; by default this process's.
        """
        streams = [tempfile.NamedTemporaryFile(prefix="stream-") for _ in range(2)]  # noqa: SIM115  Fork closes
        pid = self.ask(
            command=[str(word) for word in command],
            env={**os.environ, **(env or {})},
            cwd=str(cwd or Path.cwd()),
            streams=[stream.name for stream in streams],
        )
        return Fork(self, pid, [*map(str, command)], streams)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """`start`, and the end waited for."""
        return self.start(command, env=env, cwd=cwd).wait(timeout)


class Fork:
    """A process that was started, and the files that its streams go to."""

    def __init__(self, server: Preloaded, pid: int, command: list[str], streams: Sequence[Any]) -> None:
        self.server, self.pid, self.command, self.streams = server, pid, command, streams

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """The end of the process; it is killed if it takes longer than ``timeout`` seconds.

        Raises:
            TimeoutExpired: it was.
        """
        status = self.server.ask(wait=self.pid, timeout=timeout)
        said = [Path(stream.name).read_text(encoding="utf-8") for stream in self.streams]
        for stream in self.streams:
            stream.close()
        if status == TIMED_OUT:
            raise subprocess.TimeoutExpired(self.command, timeout, *said)
        return subprocess.CompletedProcess(self.command, status, *said)


TIMED_OUT = 1000
"""In place of an exit status."""


def serve() -> dict[str, Any]:
    """Answers questions until there are no more; comes back in forks only, with what to run."""
    running: set[int] = set()
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            print(ended(question["wait"], question["timeout"]), flush=True)
            running.discard(question["wait"])
            continue
        pid = os.fork()
        if not pid:
            return dict(question)
        running.add(pid)
        print(pid, flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    sys.exit()


def ended(pid: int, timeout: float) -> int:
    """The exit status of a fork, negative if a signal ended it."""
    deadline = time.monotonic() + timeout
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return TIMED_OUT
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(found[1])


def become(question: dict[str, Any]) -> None:
    """Turns this fork into the process that was asked for, and runs its program."""
    for descriptor, name in enumerate([os.devnull, *question["streams"]]):
        opened = os.open(name, os.O_WRONLY if descriptor else os.O_RDONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(question["env"])
    os.chdir(question["cwd"])
    how, *arguments = question["command"]
    if how in ("-c", "-m"):
        program, *arguments = arguments
        sys.path[0] = ""
    sys.argv = [how, *arguments]
    if how == "-c":
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(how, run_name="__main__")


def end(stop: BaseException | None) -> None:
    """Ends this fork, with the status and the words that Python has for what stopped its program."""
    status = 0
    if isinstance(stop, SystemExit):
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    elif stop is not None:
        traceback.print_exception(stop)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  as in multiprocessing
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    for module in HEAVY:
        __import__(module)
    threads = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 1
    assert threads == 1, f"{threads} threads run where one was expected: forks would lack the others"
    gc.freeze()  # forks share these objects' memory until they write to it, and collecting writes
    asked = serve()
    try:
        become(asked)
    except BaseException as error:  # as Python catches at its outermost
        end(error)
    end(None)
