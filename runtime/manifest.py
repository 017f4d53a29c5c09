"""The manifest: what an artefact is, in one JSON object.

It stands as ``manifest.json`` in a bundle and, as compact JSON under one key of ``metadata_props``, in every
ONNX file, so that a bare ``.onnx`` is usable too. It holds no time and no path: exporting the same checkpoint
twice with the same versions gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

from ..data.coverage import COVERAGE, Coverage
from ..data.labels import are_labels
from ..errors import ArtefactError
from ..images import FULL_WHITE, LEAST_WHITE, MAX_SIZE, Transform, are_deviations, are_means, is_image_size
from ..resize import RULE, RULES
from ..schema import (
    LABELS,
    OBJECT,
    SHA256,
    TEXT,
    TRUTH,
    Kind,
    by_name,
    listed,
    one_of,
    parsed,
    record,
    whole,
)
from .guard import GUARD, is_of_format_2

FORMAT_VERSION = 2
"""The newest version of a manifest's format. Each has the oldest that is read as it is meant: who reads
version 1 alone applies a part of some guards, without a word, which makes these 2 (`is_of_format_2`)."""

METADATA_KEY = "msmamba.manifest"
"""Key of the manifest in an ONNX file's ``metadata_props``."""

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class EngineFacts:
    """What an engine was built with, and so what runs it.

    Attributes:
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: the library's version.
        plugin_version: the scan plugin's version; empty where the scan was built from standard operators.
        batches: least, most usual and largest batch.
        version_compatible: later versions of the library run it too.
        hardware_compatibility: ``none``, ``ampere-plus`` or ``same-compute-capability``.
    """

    library: str
    version: str
    plugin_version: str
    batches: tuple[int, int, int]
    version_compatible: bool = False
    hardware_compatibility: str = "none"

    @classmethod
    def of(cls, manifest: Manifest) -> EngineFacts | None:
        """The facts that a manifest states, None where it has no engine."""
        facts = dict(manifest.engine)
        return cls(**{**facts, "batches": tuple(facts["batches"])}) if facts else None


@dataclass(frozen=True)
class Manifest:
    """What an artefact is, what it was made from, and how its input is prepared.

    Attributes:
        labels: the classes' names, in the order of the logits.
        image_size: side of the square input, in pixels.
        mean: means of the channels R, G, B, scaled to [0, 1].
        std: their standard deviations.
        architecture: depths, dims, switches and what else shapes the network, as the exporter knows them.
        network: its name, as in ``mmdeploy train --network``; empty in artefacts of earlier versions.
        precision_asked: ``fp32``, ``fp16`` or ``int8``.
        checkpoint_sha256: the checkpoint file's checksum; empty when the model did not come from a file.
        precision_proven: what was proven: ``nodes`` (types in the graph), ``int8``, ``engine``, and
            ``parity`` (the answers, as verification measured them).
        files: name to SHA-256 of every other file of the bundle; empty in a bare ``.onnx``.
        versions: package name to version, of what made the artefact.
        compute_capabilities: GPUs that the engine is for (``"8.7"``); empty without an engine.
        engine: what a machine must have to run the engine, as `EngineFacts` names it; empty without one.
        resize: the rule by which pictures were resized for the training, one of `msmamba.resize.RULES`.
        probe: what some pictures were decoded and transformed to where it was exported, for `runtime.probe`
            to compare; empty in artefacts from before there were probes.
        white_level: the value of white in 16-bit images; artefacts of earlier versions take all 16 bits.
        covers: pixels and microns of the training images' sides, as `data.coverage.Coverage` names them;
            empty where nobody has said, as in artefacts of earlier versions.
        guard: when an answer is to be trusted, as `msmamba.runtime.guard.Guard` names it; empty without one.
        weights_of: which of the checkpoint's weights it has, ``model`` or ``ema``, their moving average;
            empty in artefacts of earlier versions.
    """

    labels: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    architecture: Mapping[str, Any]
    precision_asked: str
    checkpoint_sha256: str = ""
    precision_proven: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    engine: Mapping[str, Any] = field(default_factory=dict)
    resize: str = RULE
    probe: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    network: str = ""
    white_level: int = FULL_WHITE
    covers: Mapping[str, Any] = field(default_factory=dict)
    guard: Mapping[str, Any] = field(default_factory=dict)
    weights_of: str = ""

    def __post_init__(self) -> None:
        problems = _MANIFEST.problems(self._values())
        if problems:
            raise ArtefactError(f"the manifest is not valid: {'; '.join(problems)}")

    @property
    def format_version(self) -> int:
        """The version of the format, which those who are older refuse."""
        return 2 if is_of_format_2(self.guard) else 1

    def _values(self) -> dict[str, Any]:
        return {**asdict(self), "format_version": self.format_version}

    @property
    def transform(self) -> Transform:
        """The transform from pixels to this artefact's input."""
        return Transform(self.image_size, self.mean, self.std, self.white_level)

    @property
    def coverage(self) -> Coverage | None:
        """What the training images covered; None where nobody has said."""
        return Coverage.from_dict(self.covers)

    @property
    def mpp(self) -> float | None:
        """Microns that a pixel of the input covers; None where nobody has said."""
        covers = self.coverage
        return None if covers is None else covers.mpp(self.image_size)

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever uses the artefact should know of its transform; mostly empty."""
        note = RULES[self.resize]
        return (note,) if note else ()

    def to_json(self) -> str:
        """The manifest as indented JSON with sorted keys, for ``manifest.json``."""
        text = json.dumps(self._values(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return text + "\n"

    def to_metadata(self) -> dict[str, str]:
        """The manifest as one entry of an ONNX file's ``metadata_props``."""
        compact = json.dumps(self._values(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return {METADATA_KEY: compact}

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "the manifest") -> Manifest:
        """Reads a manifest.

        Args:
            text: JSON; unknown keys are ignored.
            source: what the text was read from, for messages.

        Raises:
            ArtefactError: it was made by a newer msmamba, or it is not valid; every mismatch is named.
        """
        try:
            data = parsed(text)
        except ValueError as error:
            raise ArtefactError(f"{source} cannot be read: {error}: export the bundle again") from error
        if not isinstance(data, dict):
            raise ArtefactError(f"{source} holds no JSON object: export the bundle again")
        version = data.get("format_version")
        if type(version) is int and version > FORMAT_VERSION:
            raise ArtefactError(
                f"{source} has format version {version}, made by a newer msmamba; "
                f"this one reads up to {FORMAT_VERSION}: upgrade msmamba"
            )
        problems = _MANIFEST.problems(data)
        if problems:
            raise ArtefactError(f"{source} is not valid: {'; '.join(problems)}: export it again")
        known = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        for name in ("labels", "compute_capabilities"):
            known[name] = tuple(known[name])
        for name in ("mean", "std"):
            known[name] = tuple(float(value) for value in known[name])
        return cls(**known)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str = "the ONNX file") -> Manifest:
        """Reads the manifest from an ONNX file's ``metadata_props``.

        Raises:
            ArtefactError: there is none, or it is not valid.
        """
        if METADATA_KEY not in metadata:
            raise ArtefactError(
                f"{source} carries no '{METADATA_KEY}' metadata, so its labels, mean and std are unknown: "
                "export it with 'mmdeploy export', or open it with labels, mean and std given"
            )
        return cls.from_json(metadata[METADATA_KEY], f"the manifest in {source}")


def _are_files(value: Any) -> bool:
    """Plain names only: a manifest must not lead a reader out of its folder."""
    if not isinstance(value, dict):
        return False
    plain = all(name not in ("", ".", "..") and PurePosixPath(name).name == name for name in value)
    tame = all(name.isprintable() and not {"\\", ":"} & set(name) for name in value)  # of Windows' paths
    return plain and tame and all(map(SHA256.holds, value.values()))


_ENGINE_FACTS = record(
    {
        **dict.fromkeys(("library", "version", "plugin_version", "hardware_compatibility"), TEXT),
        "version_compatible": TRUTH,
        "batches": listed(whole(1, 2**31 - 1), 3, 3),
    }
)


def _are_engine_facts(value: Any) -> bool:
    return _ENGINE_FACTS.holds(value) and set(value) == {item.name for item in fields(EngineFacts)}


def _is_capability(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{1,3}\.\d", value) is not None


_MANIFEST = record(
    {
        "format_version": whole(1, FORMAT_VERSION),
        "labels": Kind(LABELS.words, are_labels),
        "image_size": Kind(f"1 to {MAX_SIZE} pixels", is_image_size),
        "mean": Kind("three finite numbers", are_means),
        "std": Kind("three numbers above zero", are_deviations),
        "resize": one_of(*RULES),
        "architecture": OBJECT,
        "precision_asked": one_of(*PRECISIONS),
        "precision_proven": OBJECT,
        "files": Kind("plain file names with their SHA-256", _are_files),
        "checkpoint_sha256": Kind("a SHA-256 or nothing", lambda value: value == "" or SHA256.holds(value)),
        "versions": Kind("package names with versions", by_name(TEXT).holds),
        "compute_capabilities": Kind(
            "a list such as ['8.7']", listed(Kind("a compute capability", _is_capability)).holds
        ),
    },
    # What bundles made before they existed lack.
    optional={
        "network": Kind("a name", TEXT.holds),
        "white_level": whole(LEAST_WHITE, FULL_WHITE),
        "weights_of": one_of("", "model", "ema"),
        "probe": Kind(
            "names of pictures with the SHA-256 of their pixels and tensor",
            by_name(record({"pixels": SHA256, "tensor": SHA256})).holds,
        ),
        "covers": Kind(
            "nothing, or the least, median and most pixels and microns of training images",
            lambda value: value == {} or COVERAGE.holds(value),
        ),
        "guard": Kind("nothing, or a guard's figures", lambda value: value == {} or GUARD.holds(value)),
        "engine": Kind(
            "nothing, or the facts of an engine", lambda value: value == {} or _are_engine_facts(value)
        ),
    },
)
