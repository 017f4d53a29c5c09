"""Standard streams that can be written to, whatever the process was started with.

A service, a windowed program or ``2>&-`` leaves a process without standard error, and the next file that it
opens then takes the number 2, into which libraries print. Streams may be in latin-1 or ASCII, and file names
may be no text at all; neither may cost a row of results or the line that says what went wrong.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

_ESCAPE = "msmamba.escape"


def prepare_streams() -> None:
    """Makes standard error writable and every text printable; to be called before anything is opened.

    Without standard output `sys.stdout` stays None: what a command prints there is lost, and one whose work
    is lost with it looks for it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # standard input, output and error
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # for the process's life
    codecs.register_error(_ESCAPE, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPE)


def drop_what_is_lost(stream: TextIO | None) -> None:
    """Drops what a stream could not take; Python would try again in the end, complain, and exit with 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes of file names go out as they came in, what the encoding lacks as ``\\uXXXX``, as JSON has it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return b"".join(map(_escaped, error.object[error.start : error.end])), error.end


def _escaped(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":  # a byte that Python could not decode
        return bytes([ord(character) - 0xDC00])
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4)).encode()
