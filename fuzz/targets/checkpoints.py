"""Checkpoints: safetensors, and what PyTorch pickles."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

from mutation import mutated, mutated_json
from seeds import Seeds

from .target import written


class SafeCheckpoints:
    """Damage to the file, to its head, or to the description in it."""

    inputs = 600

    def __init__(self, seeds: Seeds) -> None:
        self._good = seeds.checkpoint.read_bytes()
        length = int.from_bytes(self._good[:8], "little")
        self._head, self._tensors = json.loads(self._good[8 : 8 + length]), self._good[8 + length :]

    def make(self, generator: random.Random, folder: Path) -> Path:
        target = folder / "net.safetensors"
        how = generator.randrange(3)
        if how == 0:
            return written(target, mutated(self._good, generator))
        if how == 1:
            head = mutated_json(self._head, generator)
        else:
            metadata = self._head["__metadata__"]
            changed = {
                key: mutated_json(json.loads(value), generator).decode("utf-8", "replace")
                for key, value in metadata.items()
            }
            head = json.dumps({**self._head, "__metadata__": changed}).encode()
        return written(target, len(head).to_bytes(8, "little") + head + self._tensors)

    def open(self, path: Path) -> object:
        from msmamba.model.networks.checkpoint import load_checkpoint

        return load_checkpoint(path)


class PickledCheckpoints:
    """Damage to the archive, or to the pickle in it; and archives of odd objects."""

    inputs = 600

    def __init__(self, seeds: Seeds) -> None:
        self._good = seeds.pickled.read_bytes()

    def make(self, generator: random.Random, folder: Path) -> Path:
        target = folder / "net.pth"
        if generator.random() < 0.4:
            return written(target, mutated(self._good, generator))
        if generator.random() < 0.3:
            import torch

            torch.save(generator.choice(_ODD), target)
            return target
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self._good)) as good, zipfile.ZipFile(file, "w") as bad:
            for name in good.namelist():
                content = good.read(name)
                if name.endswith("data.pkl") or generator.random() < 0.02:
                    content = mutated(content, generator)
                bad.writestr(name, content)
        return written(target, file.getvalue())

    def open(self, path: Path) -> object:
        from msmamba.model.networks.checkpoint import load_checkpoint

        return load_checkpoint(path)


_ODD: list[Any] = [
    *({}, [], None, 1, "x", {"model": None}, {"state_dict": {}}, {"model": {"a": 1}}, {1: 2}),
    *({"state_dict": {"head.weight": [1.0]}}, {"model": {"model": {"model": {}}}}),
]
