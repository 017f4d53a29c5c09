"""What libraries write onto a disk that is full: one line, and what was there stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import no_file_larger_than

from msmamba.data.published.tissuemnist import write_index
from msmamba.errors import TargetError
from msmamba.model.training.run import STATE, RunFolder, State


def state(size: int) -> State:
    weights = {"a": torch.zeros(size), "b": torch.ones(size)}
    return State(history=(), network=weights, best=weights, optimiser={}, scaler={})


# torch.save's writer fails in another place with each.
@pytest.mark.parametrize("limit", [10, 5_000, 400_000])
def test_a_state_that_finds_no_room_leaves_the_last_one(tmp_path: Path, limit: int) -> None:
    folder = RunFolder(tmp_path)
    folder.write_state(state(10))
    before = (tmp_path / STATE).read_bytes()
    with no_file_larger_than(limit), pytest.raises(TargetError, match=r"cannot write '.*last\.pt': "):
        folder.write_state(state(100_000))
    assert (tmp_path / STATE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [STATE]
    assert folder.read_state() is not None


def test_an_index_that_finds_no_room_is_one_line(tmp_path: Path) -> None:
    with no_file_larger_than(5_000), pytest.raises(TargetError, match=r"cannot write '.*': the file system"):
        write_index(tmp_path, np.zeros((100, 1000), np.uint8))
