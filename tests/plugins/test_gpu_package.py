"""Packages of compiled kernels: equal ones are known as such, and others are refused in one line."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import pytest

from msmamba.errors import BackendError
from msmamba.plugins.selective_scan.gpu_package import MAGIC, CompiledKernel, KernelPackage

SCAN = CompiledKernel("scan", b"machine code", threads=32, shared_bytes=0, hidden_pointers=2)


def package(*kernels: CompiledKernel) -> KernelPackage:
    return KernelPackage("float16", 16, {89: {kernel.name: kernel for kernel in kernels}})


def packed(document: object) -> bytes:
    return MAGIC + zlib.compress(json.dumps(document).encode())


def test_a_package_comes_back_as_it_was() -> None:
    whole = package(SCAN)
    again = KernelPackage.from_bytes(whole.to_bytes() + b"what follows in a plan")
    assert again == whole
    assert again.digest == whole.digest


@pytest.mark.parametrize(
    "other",
    [
        package(replace(SCAN, cubin=b"other code")),
        package(replace(SCAN, threads=64)),
        package(SCAN, replace(SCAN, name="chunk_state")),
        KernelPackage("float16", 16, {86: {"scan": SCAN}}),
    ],
    ids=["code", "launch", "kernels", "gpu"],
)
def test_the_digest_tells_packages_apart(other: KernelPackage) -> None:
    assert other.digest != package(SCAN).digest


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(package(SCAN).to_bytes()[:-9], id="cut-off"),
        pytest.param(MAGIC + b"no stream", id="no-stream"),
        pytest.param(MAGIC + zlib.compress(bytes(80 << 20)), id="bomb"),
        pytest.param(MAGIC + zlib.compress(b"[" * 100_000), id="nested"),
        pytest.param(packed({"kernels": [1]}), id="list"),
        pytest.param(packed([]), id="no-object"),
        pytest.param(packed({"element_type": "float16", "states": 16, "kernels": {"89": 3}}), id="number"),
    ],
)
def test_what_is_no_package_is_refused(content: bytes) -> None:
    with pytest.raises(BackendError, match="damaged") as caught:
        KernelPackage.from_bytes(content)
    assert len(str(caught.value)) < 300


def test_another_version_says_to_rebuild() -> None:
    with pytest.raises(BackendError, match="rebuild it"):
        KernelPackage.from_bytes(b"msmamba-kernels-2\nxx")
