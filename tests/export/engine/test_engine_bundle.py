"""Engines from bundles, as a device builds them: without PyTorch, Triton or the checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from msmamba.cli import mmdeploy
from msmamba.errors import ArtefactError, BackendError, TargetError
from msmamba.export.engine import kernels
from msmamba.export.engine.build import EngineOptions
from msmamba.export.engine.engine_bundle import engine_bundle
from msmamba.export.engine.kernels import block_kernel_file, compiler_from, kernel_file, kernels_for
from msmamba.files import sha256_of
from msmamba.plugins.hybrid_block.gpu_kernels import CONSTANTS
from msmamba.plugins.selective_scan.gpu_launch import BLOCK_SHAPES
from msmamba.plugins.selective_scan.gpu_package import BLOCK_STATES, KERNELS_SUFFIX, MAGIC, KernelPackage
from msmamba.plugins.tensorrt_library import link_parser_library
from msmamba.runtime.artefact import Kind, open_bundle, recognise
from msmamba.runtime.manifest import EngineFacts

RTX_89 = EngineOptions((89,), batches=(1, 1, 2))
GUARD = {
    **dict.fromkeys(("max_error", "confidence", "candidate_bound"), 0.5),
    "network_sha256": "ab" * 32,
    **dict.fromkeys(("temperature", "threshold"), 1.5),
    **dict.fromkeys(("images", "answered", "errors"), 10),
}


@pytest.fixture(scope="module", autouse=True)
def _parser_library() -> None:
    link_parser_library()


# A device has onnx, numpy, cuda-bindings and TensorRT; what only the exporting machine has does not import.
ON_A_DEVICE = """
import sys
for name in ("torch", "triton", "onnxscript", "onnx_ir", "safetensors", "sklearn", "scipy", "matplotlib"):
    sys.modules[name] = None
from msmamba.cli import main
main()
"""


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "HALF"), ("fp32", "FLOAT")])
def test_a_device_builds_from_a_bundle_without_pytorch_and_triton(
    bundles: dict[str, Path], precision: str, kind: str, tmp_path: Path
) -> None:
    arguments = [
        "export",
        bundles[precision],
        "--target",
        "tensorrt-rtx",
        "--sm",
        "8.6",
        "-o",
        tmp_path / "rtx",
    ]
    run = subprocess.run(
        [sys.executable, "-c", ON_A_DEVICE, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "4 plugin layers" in run.stdout

    built, source = open_bundle(tmp_path / "rtx"), open_bundle(bundles[precision])
    for name in source.manifest.files:
        assert built.read(name) == source.read(name)
    plan = built.read("model.engine")
    assert b"logits" in plan
    assert b"features" in plan
    package = KernelPackage.from_bytes(plan[plan.index(MAGIC) :])
    compiled = KernelPackage.from_bytes(source.read(kernel_file(package.element_type)))
    assert package == compiled.only([86])
    proof = built.manifest.precision_proven["engine"]
    assert {tuple(plugin["outputs"]) for plugin in proof["plugins"]} == {(kind,)}
    assert built.manifest.precision_proven["nodes"] == source.manifest.precision_proven["nodes"]
    assert built.manifest.compute_capabilities == ("8.6",)
    assert EngineFacts.of(built.manifest) == EngineFacts(
        "tensorrt_rtx", built.manifest.versions["tensorrt-rtx"], "1", (1, 1, 16)
    )
    assert recognise(tmp_path / "rtx" / "model.engine") is Kind.ENGINE


def test_another_engine_takes_the_place_of_the_first(bundles: dict[str, Path], tmp_path: Path) -> None:
    first = engine_bundle(_with_files(bundles["fp16"], tmp_path), tmp_path / "first", RTX_89)
    assert {"calibration.json", "seen.json"} < set(first.manifest.files)  # what belongs to the model comes
    assert first.manifest.guard == GUARD
    assert "parity.json" not in first.manifest.files  # it is of what ran then
    assert "parity" not in first.manifest.precision_proven
    second = engine_bundle(first.path, tmp_path / "second", EngineOptions((80,), batches=(1, 2, 2)))
    assert second.manifest.compute_capabilities == ("8.0",)
    assert second.manifest.engine["batches"] == [1, 2, 2]
    assert set(second.manifest.files) == set(first.manifest.files)
    assert second.manifest.files["model.onnx"] == first.manifest.files["model.onnx"]


def _with_files(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle with three files more, and a guard."""
    copy = folder / "with files"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("calibration.json", "seen.json", "parity.json"):
        (copy / name).write_text("{}")
        manifest["files"][name] = sha256_of(copy / name)
    manifest["precision_proven"]["parity"] = {"passed": True}
    manifest["guard"] = GUARD
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_a_bare_file_is_built_with_triton(bundles: dict[str, Path], tmp_path: Path) -> None:
    result = engine_bundle(bundles["fp16"] / "model.onnx", tmp_path / "rtx", RTX_89)
    assert result.manifest.labels == ("basophil", "eosinophil", "lymphocyte")
    assert set(result.manifest.files) == {"build.log", "model.engine", "model.onnx"}


def test_without_kernels_and_triton_the_error_says_what_to_do(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    arguments = [
        bundles["fp16"] / "model.onnx",
        "--target",
        "tensorrt-rtx",
        "--sm",
        "8.6",
        "-o",
        tmp_path / "x",
    ]
    run = subprocess.run(
        [sys.executable, "-c", ON_A_DEVICE, "export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "holds no 'scan.float16.kernels': export it again, where Triton is installed" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_kernels_for_another_gpu_are_not_enough(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundles["fp16"], bundle)
    name = kernel_file("float16")
    (bundle / name).write_bytes(
        KernelPackage.from_bytes((bundle / name).read_bytes()).only([75, 120]).to_bytes()
    )
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = sha256_of(bundle / name)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"kernels are for compute capability 7\.5, 12\.0, not for 8\.9"):
        engine_bundle(bundle, tmp_path / "rtx", RTX_89)


def test_changed_kernels_are_not_used(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundles["fp16"], bundle)
    (bundle / kernel_file("float16")).write_bytes(b"changed")
    with pytest.raises(ArtefactError, match="was changed after export"):
        engine_bundle(bundle, tmp_path / "rtx", RTX_89)
    assert not (tmp_path / "rtx").exists()


def test_an_existing_bundle_is_not_replaced_unasked(bundles: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rtx").mkdir()
    with pytest.raises(TargetError, match="exists already"):
        engine_bundle(bundles["fp16"], tmp_path / "rtx", RTX_89)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        pytest.param(
            ["--target", "tensorrt-rtx", "--fp16"], 2, "settled --fp16: leave it out", id="precision"
        ),
        pytest.param(
            ["--target", "tensorrt-rtx", "--size", "64", "--labels", "a,b"],
            2,
            "settled --image-size, --labels: leave it out",
            id="size-and-labels",
        ),
        pytest.param([], 2, "say which engine to build with --target", id="no-target"),
        pytest.param(["--target", "tensorrt-rtx"], 1, "give one with --sm", id="no-gpu-named"),
        pytest.param(
            ["--target", "tensorrt"], 1, "mmdeploy export BUNDLE --target tensorrt -o OUT", id="no-tensorrt"
        ),
    ],
)
def test_what_a_bundle_cannot_become_is_said(
    bundles: dict[str, Path],
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    command = ["export", str(bundles["fp16"]), *arguments, "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(mmdeploy, command)
    assert result.exit_code == status
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_not_fit_together_is_one_line(bundles: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(bundles["fp32"] / "model.onnx")
    model.graph.node[5].input[0] = "what no node gives"
    onnx.save(model, tmp_path / "patched.onnx")
    with pytest.raises(ArtefactError, match=r"patched\.onnx' does not fit together \(.+…\): copy or export"):
        engine_bundle(tmp_path / "patched.onnx", tmp_path / "out", RTX_89)


def test_an_engine_is_not_built_from_an_engine(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"vtrt" + bytes(100))
    with pytest.raises(ArtefactError, match="is an engine already"):
        engine_bundle(tmp_path / "plan", tmp_path / "out", RTX_89)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_bundle_holds_the_kernels_of_every_gpu(bundles: dict[str, Path], precision: str) -> None:
    element_type = {"fp16": "float16", "fp32": "float32"}[precision]
    packages = {}
    for name, states in ((kernel_file(element_type), 16), (block_kernel_file(element_type), BLOCK_STATES)):
        packages[name] = KernelPackage.from_bytes((bundles[precision] / name).read_bytes())
        assert packages[name].compute_capabilities == tuple(BLOCK_SHAPES)
        assert (packages[name].element_type, packages[name].states) == (element_type, states)
    assert set(packages[name].kernels[90]) == set(CONSTANTS)
    assert not name.endswith(KERNELS_SUFFIX)  # version 0.2 takes those for the scan's
    model = onnx.load(bundles[precision] / "model.onnx")
    notes: list[str] = []
    assert kernels_for(model, notes.append) == {name: each.to_bytes() for name, each in packages.items()}
    assert notes == []


@pytest.mark.parametrize(("whose", "refused"), [("scan", ".entry"), ("block", ".entry gated_norm")])
def test_compute_capabilities_that_triton_does_not_know_are_left_out_and_named(
    whose: str,
    refused: str,
    bundles: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As Triton 3.6, which PyTorch 2.11 brings, and whose `ptxas` refuses 11.0 and has all of PTX printed."""
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.errors import PTXASError

    make = CUDABackend.make_cubin

    def refusing(self: Any, source: Any, metadata: Any, options: Any, capability: int) -> Any:
        if capability == 110 and refused in source:
            print("all of the PTX")
            refusal = "ptxas fatal   : Value 'sm_110a' is not defined for option 'gpu-name'"
            raise PTXASError(f"Internal Triton PTX codegen error\n`ptxas` stderr:\n{refusal}\n\nRepro: no\n")
        return make(self, source, metadata, options, capability)

    monkeypatch.setattr(CUDABackend, "make_cubin", refusing)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernels, "BLOCK_SHAPES", {sm: BLOCK_SHAPES[sm] for sm in (90, 110)})
    notes: list[str] = []
    files = kernels.kernels_for(onnx.load(bundles["fp16"] / "model.onnx"), notes.append)
    scan, block = (
        KernelPackage.from_bytes(files[name])
        for name in (kernel_file("float16"), block_kernel_file("float16"))
    )
    assert scan.compute_capabilities == ((90,) if whose == "scan" else (90, 110))
    assert block.compute_capabilities == (90,)
    (note,) = notes
    assert note.startswith(f"the bundle has no {whose} kernels for compute capability 11.0: Triton 3.")
    assert note.endswith("(ptxas fatal : Value 'sm_110a' is not defined for option 'gpu-name')")
    assert capsys.readouterr().out == ""


def test_a_triton_that_is_too_old_leaves_kernels_out(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 3.4, which PyTorch 2.8 brings, and which ends the process at compute capability 11.0."""
    import triton

    monkeypatch.setattr(triton, "__version__", "3.4.0")
    notes: list[str] = []
    assert kernels_for(onnx.load(bundles["fp16"] / "model.onnx"), notes.append) == {}
    (note,) = notes
    assert note.startswith("the bundle has no scan kernels for compute capability 7.5, 8.0,")
    assert note.endswith("Triton 3.4.0 is too old: 3.5 and later compile the kernels")


def test_kernels_of_another_scan_are_refused(bundles: dict[str, Path]) -> None:
    files = {kernel_file("float16"): (bundles["fp16"] / kernel_file("float16")).read_bytes()}
    compiler = compiler_from(files, "'x'")
    with pytest.raises(BackendError, match="is for 16 states; the scan has 8"):
        compiler("float16", 8, (89,))
    with pytest.raises(BackendError, match=r"'x' holds no 'scan\.float32\.kernels'"):
        compiler("float32", 16, (89,))
