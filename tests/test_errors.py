"""How errors are told."""

from __future__ import annotations

import errno
import os

import pytest

from msmamba.errors import reason_of


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "slide.tif"), "no space left on device"),
        (OSError("cannot identify image file"), "cannot identify image file"),  # as Pillow: no strerror
        (OSError(), "OSError"),
        (ValueError("bad marker\n  at byte 7"), "bad marker"),
        (ValueError("\nbad marker"), "bad marker"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_reason_is_one_line_in_words(error: BaseException, said: str) -> None:
    assert reason_of(error) == said
