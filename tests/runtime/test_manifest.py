"""A manifest survives the way to disk and back, and says everything that is wrong with it at once."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from msmamba.errors import ArtefactError
from msmamba.images import Transform
from msmamba.runtime.manifest import FORMAT_VERSION, METADATA_KEY, EngineFacts, Manifest

ENGINE = {
    "library": "tensorrt",
    "version": "10.3.0.30",
    "plugin_version": "1",
    "batches": [1, 1, 16],
    "version_compatible": False,
    "hardware_compatibility": "none",
}
MANIFEST = Manifest(
    labels=("Eosinophil", "Lymphozyt, groß", "RBC"),
    image_size=224,
    mean=(0.5, 0.25, 1 / 3),
    std=(0.1, 0.2, 0.3),
    architecture={"size": "t", "depths": [2, 2, 4, 2], "mifa": True},
    precision_asked="fp16",
    checkpoint_sha256="0f" * 32,
    precision_proven={"label_flips": 0},
    files={"model.onnx": "ab" * 32},
    versions={"torch": "2.13.0"},
    compute_capabilities=("8.7",),
    engine=ENGINE,
)


def as_json(**changes: Any) -> str:
    data = json.loads(MANIFEST.to_json())
    for name, value in changes.items():
        if value is ...:
            del data[name]
        else:
            data[name] = value
    return json.dumps(data)


def test_json_gives_the_same_manifest_back() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(MANIFEST.to_json().encode()) == MANIFEST


def test_metadata_is_one_key_and_gives_the_same_manifest_back() -> None:
    metadata = MANIFEST.to_metadata()
    assert list(metadata) == [METADATA_KEY]
    assert Manifest.from_metadata({"other": "x", **metadata}) == MANIFEST


def test_json_is_reproducible_and_readable() -> None:
    other = dataclasses.replace(MANIFEST, architecture=dict(reversed(MANIFEST.architecture.items())))
    assert other.to_json() == MANIFEST.to_json()
    assert "groß" in MANIFEST.to_json()


def test_the_transform_is_the_manifests() -> None:
    assert MANIFEST.transform == Transform(224, MANIFEST.mean, MANIFEST.std)


def test_resize_rule_and_probe_of_manifests_from_before() -> None:
    manifest = Manifest.from_json(as_json(resize="bilinear-antialias-square", probe=...))
    assert manifest.probe == {}
    assert ["of a version that it does not say" in note for note in manifest.notes] == [True]
    assert MANIFEST.notes == ()


def test_the_engines_facts_are_read_back() -> None:
    assert EngineFacts.of(MANIFEST) == EngineFacts("tensorrt", "10.3.0.30", "1", (1, 1, 16))


def test_a_bundle_from_before_engines_had_facts_is_read() -> None:
    manifest = Manifest.from_json(as_json(engine=...))
    assert manifest == dataclasses.replace(MANIFEST, engine={})
    assert EngineFacts.of(manifest) is None


def test_unknown_keys_are_ignored() -> None:
    assert Manifest.from_json(as_json(colour="blue")) == MANIFEST


def test_a_newer_format_says_upgrade_and_nothing_else() -> None:
    text = as_json(format_version=FORMAT_VERSION + 1, labels=...)
    with pytest.raises(ArtefactError, match=r"newer msmamba.*upgrade") as caught:
        Manifest.from_json(text, "'b/manifest.json'")
    assert "labels" not in str(caught.value)
    assert "'b/manifest.json'" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", ...),
        ("labels", []),
        ("labels", ["a", "a"]),
        ("labels", ["a", 1]),
        ("labels", "ab"),
        ("labels", ["a", "\ud800"]),
        ("image_size", 0),
        ("image_size", 1_000_000_000),
        ("resize", ["bilinear-antialias-square"]),
        ("probe", {"probe_1.jpg": {"pixels": "ab" * 32}}),
        ("probe", {"probe_1.jpg": {"pixels": "ab" * 32, "tensor": 1}}),
        ("image_size", 224.0),
        ("image_size", True),
        ("mean", [0.5, 0.5]),
        ("std", [0.1, 0, 0.1]),
        ("mean", ["0.5"] * 3),
        ("mean", [10**400, 0.5, 0.5]),
        ("std", [float("inf"), 0.5, 0.5]),
        ("resize", "bicubic"),
        ("engine", {"library": "tensorrt"}),
        ("engine", {**ENGINE, "batches": [1, 1]}),
        ("engine", {**ENGINE, "version": 10}),
        ("precision_asked", "fp8"),
        ("architecture", []),
        ("files", {"notes.txt": "ab" * 32, "../model.onnx": "ab" * 32}),
        ("files", {"notes.txt": "ab" * 32, "..": "ab" * 32}),
        ("files", {"/etc/passwd": "ab" * 32, "notes.txt": "ab" * 32}),
        ("files", {"C:model.onnx": "ab" * 32, "notes.txt": "ab" * 32}),
        ("files", {"notes.txt": "ab" * 32, "model\n.onnx": "ab" * 32}),
        ("files", {"notes.txt": "ab" * 32, "model.onnx": "ab"}),
        ("checkpoint_sha256", "xyz"),
        ("versions", {"torch": 2}),
        ("compute_capabilities", "8.7"),
        ("compute_capabilities", ["sm_87"]),
        ("format_version", "1"),
        ("format_version", 0),
    ],
    ids=lambda value: "missing" if value is ... else str(value)[:20],
)
def test_each_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(ArtefactError, match=f"'{field}' is"):
        Manifest.from_json(as_json(**{field: value}))


def test_all_mismatches_are_named_at_once() -> None:
    with pytest.raises(ArtefactError) as caught:
        Manifest.from_json(as_json(labels=[], image_size="big", std=...))
    for field in ("labels", "image_size", "std"):
        assert f"'{field}' is" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


NO_OBJECT = {
    "empty": "",
    "cut": "{",
    "list": "[]",
    "number": "3",
    "bytes": b"\xff\xfe",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", NO_OBJECT.values(), ids=NO_OBJECT.keys())
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(ArtefactError, match="manifest"):
        Manifest.from_json(text)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ArtefactError, match="'mean' is"):
        Manifest.from_json(as_json(mean=[0.5, 0.5, float("nan")]))


def test_metadata_without_a_manifest_says_what_is_missing_and_what_to_do() -> None:
    with pytest.raises(ArtefactError, match=r"labels, mean and std.*export"):
        Manifest.from_metadata({"other": "x"}, "'m.onnx'")


def test_a_manifest_built_wrong_is_refused_at_once() -> None:
    with pytest.raises(ArtefactError, match="'labels' is"):
        dataclasses.replace(MANIFEST, labels=())
