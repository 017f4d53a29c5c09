"""What a plan says of itself, read off real ones, and which machines refuse it before it is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from msmamba.errors import ArtefactError, BackendError
from msmamba.export.engine.build import EngineOptions
from msmamba.export.engine.engine_bundle import engine_bundle
from msmamba.plugins.cuda_driver import Device
from msmamba.plugins.selective_scan.gpu_package import CompiledKernel, KernelPackage
from msmamba.plugins.tensorrt_library import LIBRARIES, import_tensorrt, link_parser_library
from msmamba.runtime.artefact import ENGINE_MAGICS
from msmamba.runtime.engine_plan import Plan, check_fit
from msmamba.runtime.manifest import Manifest

from .conftest import manifest

ADA, AMPERE, ORIN = Device(0, "Ada", 89, 128), Device(0, "Ampere", 86, 82), Device(0, "Orin", 87, 16)


@pytest.fixture(scope="module")
def rtx() -> Any:
    link_parser_library()
    return import_tensorrt("tensorrt_rtx")


@pytest.fixture(scope="module")
def built(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, rtx: Any) -> Path:
    """A bundle with a real engine for 8.6 and 12.0."""
    path = tmp_path_factory.mktemp("built") / "small.rtx"
    return engine_bundle(bundles["fp16"], path, EngineOptions((86, 120), batches=(1, 1, 2))).path


@pytest.fixture(scope="module")
def plan(built: Path) -> bytes:
    return (built / "model.engine").read_bytes()


def test_a_real_plan_says_library_version_gpus_and_plugin(plan: bytes, rtx: Any) -> None:
    read = Plan.of(plan, "plan")
    assert read.library == "tensorrt_rtx"
    assert read.version is not None
    assert ".".join(map(str, read.version)) == rtx.__version__
    assert read.compute_capabilities == (86, 120)
    assert read.has_plugin
    assert read.kernels == "msmamba-kernels-1"


def bare_plan(trt: Any, targets: tuple[int, ...]) -> bytes:
    """The smallest network there is, built for some GPUs."""
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network = builder.create_network(0)
    image = network.add_input("image", trt.float32, (1, 4))
    network.mark_output(network.add_activation(image, trt.ActivationType.RELU).get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for i, sm in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), i)
    return bytes(builder.build_serialized_network(network, config))


@pytest.mark.parametrize("targets", [(75,), (80,), (86,), (89,), (120,), (121,), (75, 86, 121)], ids=str)
def test_every_gpu_that_rtx_builds_for_is_read_off_its_bit(rtx: Any, targets: tuple[int, ...]) -> None:
    read = Plan.of(bare_plan(rtx, targets), "plan")
    assert read.compute_capabilities == targets
    assert not read.has_plugin


def test_the_version_lies_where_tensorrt_rtx_itself_reads_it(plan: bytes, rtx: Any) -> None:
    """Its own check finds another version when those bytes are changed, and when no others are."""
    said: list[str] = []

    class Logger(rtx.ILogger):
        def __init__(self) -> None:
            rtx.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            said.append(message)

    logger = Logger()
    runtime = rtx.Runtime(logger)
    assert runtime.engine_header_size == 64

    def differs(offset: int) -> bool:
        header = bytearray(plan[:64])
        header[offset] ^= 1
        said.clear()
        runtime.get_engine_validity(bytes(header))
        return any("has been created with TensorRT-RTX version" in message for message in said)

    assert [offset for offset in range(4, 64) if differs(offset)] == [24, 25, 26]  # not the build, 27


@pytest.mark.parametrize("kept", [4, 20, 63, 64, 1000, -1], ids=lambda kept: f"{kept}-bytes")
def test_a_truncated_plan_is_called_that(plan: bytes, kept: int) -> None:
    with pytest.raises(ArtefactError, match=r"'orin' is a truncated engine: \d+ of \d+ bytes: copy or build"):
        Plan.of(plan[:kept], "orin")


def test_what_is_no_plan_is_called_that() -> None:
    with pytest.raises(ArtefactError, match="is no TensorRT engine"):
        Plan.of(b"\x08\x0a onnx" * 30, "model")


def check(
    plan: bytes, device: Device, version: str, said: Manifest | None = None, name: str = "x.engine"
) -> None:
    check_fit(Plan.of(plan, name), said, name=name, library_version=version, device=device)


def facts(library: str = "tensorrt", version: str = "10.3.0.30", **changes: Any) -> Manifest:
    values = {
        "library": library,
        "version": version,
        "plugin_version": "1",
        "batches": [1, 1, 16],
        "version_compatible": False,
        "hardware_compatibility": "none",
    }
    return manifest(engine={**values, **changes}, compute_capabilities=("8.7",))


def test_an_engine_that_fits_is_not_refused(plan: bytes, built: Path, rtx: Any) -> None:
    check(plan, AMPERE, rtx.__version__)
    check(plan, AMPERE, rtx.__version__, Manifest.from_json((built / "manifest.json").read_bytes()))
    check(plan, AMPERE, "1.7.1.999")  # another build of the same version


def test_every_mismatch_and_the_exact_command_are_named(plan: bytes, built: Path) -> None:
    said = Manifest.from_json((built / "manifest.json").read_bytes())
    with pytest.raises(BackendError) as caught:
        check(plan, ADA, "1.8.0.5", said, str(built))
    assert str(caught.value) == (
        f"'{built}' does not run here: it was built by TensorRT-RTX 1.7.1.116 and this machine has 1.8.0.5; "
        "it is for compute capability 8.6, 12.0 and this GPU, Ada, has 8.9: build it again: "
        f"mmdeploy export {built} --target tensorrt-rtx --sm 8.9 -o NEW"
    )


def test_a_bare_engine_leaves_the_bundle_to_the_reader(plan: bytes, rtx: Any) -> None:
    with pytest.raises(BackendError, match=r"mmdeploy export BUNDLE --target tensorrt-rtx --sm 8\.9 -o NEW"):
        check(plan, ADA, rtx.__version__)


def test_the_command_keeps_to_an_engine_without_the_plugin(rtx: Any) -> None:
    with pytest.raises(BackendError, match=r"--sm 8\.9 --no-plugin -o NEW"):
        check(bare_plan(rtx, (75,)), ADA, rtx.__version__)


def full_tensorrt(content: bytes = b"") -> bytes:
    """A plan of TensorRT as far as it is known: its name, and what is not the size where RTX has that."""
    return b"ftrt" + bytes(12) + b"\xff" * 8 + bytes(40) + content


def kernels(*compute_capabilities: int) -> bytes:
    kernel = CompiledKernel("scan", b"\x7fELF", threads=32, shared_bytes=0, hidden_pointers=2)
    return KernelPackage("float16", 16, {sm: {"scan": kernel} for sm in compute_capabilities}).to_bytes()


@pytest.mark.parametrize(
    ("content", "device", "version", "said", "message"),
    [
        pytest.param(
            full_tensorrt(kernels(87)),
            ORIN,
            "10.7.0.23",
            facts(),
            r"by TensorRT 10\.3\.0\.30 and this machine has 10\.7\.0\.23: .*--target tensorrt -o NEW",
            id="another-tensorrt",
        ),
        pytest.param(
            full_tensorrt(kernels(87)),
            ADA,
            "10.3.0.30",
            None,
            r"for compute capability 8\.7 and this GPU, Ada, has 8\.9",
            id="bare-plan-by-its-kernels",
        ),
        pytest.param(
            full_tensorrt(),
            ADA,
            "10.3.0.30",
            facts(plugin_version=""),
            r"for compute capability 8\.7 and this GPU, Ada, has 8\.9: .*--no-plugin",
            id="by-its-manifest",
        ),
        pytest.param(
            full_tensorrt(b"msmamba-kernels-7\n whatever"),
            ORIN,
            "10.3.0.30",
            facts(),
            "its scan kernels are 'msmamba-kernels-7' and this msmamba runs 'msmamba-kernels-1'",
            id="another-format-of-kernels",
        ),
        pytest.param(
            full_tensorrt(kernels(87)),
            ORIN,
            "10.3.0.30",
            facts(plugin_version="2"),
            "its scan plugin has version 2 and this msmamba has 1",
            id="another-plugin",
        ),
        pytest.param(
            full_tensorrt(kernels(87)),
            ORIN,
            "10.1.0.1",
            facts(version_compatible=True),
            r"built by TensorRT 10\.3\.0\.30 and this machine has 10\.1\.0\.1",
            id="compatible-with-later-ones-only",
        ),
    ],
)
def test_an_engine_of_tensorrt_is_refused_where_it_does_not_run(
    content: bytes, device: Device, version: str, said: Manifest | None, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        check(content, device, version, said)


@pytest.mark.parametrize(
    ("content", "device", "version", "said"),
    [
        pytest.param(full_tensorrt(kernels(87)), ORIN, "10.3.0.30", facts(), id="the-same"),
        pytest.param(
            full_tensorrt(kernels(87)), ORIN, "10.7.0.23", facts(version_compatible=True), id="later-tensorrt"
        ),
        pytest.param(
            full_tensorrt(kernels(80, 86, 87, 89)),
            ADA,
            "10.3.0.30",
            facts(hardware_compatibility="ampere-plus"),
            id="other-gpu",
        ),
        pytest.param(full_tensorrt(), ADA, "10.3.0.30", None, id="bare-plan-that-says-nothing"),
    ],
)
def test_an_engine_of_tensorrt_is_not_refused_where_it_runs(
    content: bytes, device: Device, version: str, said: Manifest | None
) -> None:
    check(content, device, version, said)


# What TensorRT-RTX itself does with a plan on a machine without a GPU, in a process of its own.
DESERIALISE = """
import sys
from pathlib import Path
import tensorrt_rtx as trt
from msmamba.plugins.selective_scan import tensorrt_plugin
tensorrt_plugin.register(trt)
runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
print(runtime.deserialize_cuda_engine(Path(sys.argv[1]).read_bytes()))
"""


@pytest.mark.parametrize("damage", ["none", "truncated", "overwritten", "another-version"])
def test_tensorrt_rtx_returns_nothing_and_does_not_abort_without_a_gpu(
    no_gpu: None, plan: bytes, damage: str, tmp_path: Path
) -> None:
    content = bytearray(plan)
    if damage == "truncated":
        del content[len(content) // 2 :]
    if damage == "overwritten":
        content[5000:9000] = b"x" * 4000
    if damage == "another-version":
        content[25] ^= 1
    (tmp_path / "plan").write_bytes(content)
    command = [sys.executable, "-c", DESERIALISE, str(tmp_path / "plan")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.splitlines()[-1]) == (0, "None"), run.stderr


def test_the_libraries_are_those_that_can_be_imported() -> None:
    assert set(ENGINE_MAGICS.values()) == set(LIBRARIES)
