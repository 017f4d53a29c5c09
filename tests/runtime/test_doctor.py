"""`mmdeploy doctor` tells what works, what does not, and what to do about it, on any machine."""

from __future__ import annotations

import configparser
import ctypes
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from recording_gpu import RecordingDriver

from msmamba.cli import mmdeploy
from msmamba.errors import BackendError
from msmamba.plugins import cuda_driver, tensorrt_library
from msmamba.plugins.selective_scan import cpu
from msmamba.runtime import doctor, onnxruntime_library

ROOT = Path(doctor.__file__).parent.parent


def test_what_an_extra_brings_is_what_is_looked_for() -> None:
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg", encoding="utf-8")
    for extra, (name, packages) in doctor._OF_EXTRAS.items():
        brought = set(re.findall(r"^[\w-]+", declared["options.extras_require"][extra], flags=re.MULTILINE))
        assert set(packages) <= brought, name


@pytest.mark.parametrize("extra", ["slides", "fields", "live"])
def test_a_missing_extra_is_named_with_what_brings_it(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, (first, *_) = doctor._OF_EXTRAS[extra]
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == first else version(package))
    ability = next(each for each in doctor.examine().abilities if each.name == name)
    assert (ability.works, ability.found) == (False, f"missing: {first}")
    assert ability.fix == f"pip install 'msmamba[{extra}]'"


def test_a_triton_that_compiles_nothing_is_named_with_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, works in (("3.4.0", False), ("3.5.0", True), ("3.10.0+git1", True)):
        monkeypatch.setattr(doctor, "_version", lambda package, number=number: number)
        ability = doctor._triton()
        assert ability.works is works
        assert works or ability.fix == "pip install 'triton>=3.5'"


def test_this_machine_can_classify() -> None:
    report = doctor.examine()
    assert report.can_infer
    assert "ONNX Runtime" in report.abilities[0].found


def test_whatever_does_not_work_has_a_fix_or_names_what_has() -> None:
    abilities = {ability.name: ability for ability in doctor.examine().abilities}
    for ability in abilities.values():
        assert bool(ability.found) == (not ability.needs)
        assert ability.works == (not ability.fix and not ability.needs), ability
        assert not ability.needs or abilities[ability.needs].fix


def test_each_cause_is_told_once(no_gpu: None) -> None:
    text = doctor.examine().to_text()
    fixes = [line.strip() for line in text.splitlines() if line.strip().startswith("fix: ")]
    assert len(fixes) == len(set(fixes)) > 0
    causes = [ability.found for ability in doctor.examine().abilities if not ability.works and ability.found]
    assert len(causes) == len(set(causes))
    assert text.count("needs: NVIDIA GPU") >= 4
    yes = [line.split()[0] for line in text.splitlines() if line.startswith(("yes", "no"))]
    assert yes == sorted(yes, reverse=True)  # what works comes first


ABILITIES = (
    "classify on the CPU",
    "native kernels of the network",
    "train",
    "export to ONNX",
    "run TensorRT engines",
    "run TensorRT-RTX engines",
    "build TensorRT-RTX engines",
)


def a_report(*working: str) -> doctor.Report:
    """What doctor says of a machine on which only these abilities work."""
    abilities = tuple(
        doctor.Ability(name, name in working, name, "" if name in working else "a remedy")
        for name in ABILITIES
    )
    return doctor.Report({}, abilities)


@pytest.mark.parametrize(
    ("working", "best"),
    [
        ((), ["This machine cannot classify images yet: see the first 'no' below."]),
        (
            ("classify on the CPU",),
            ["This machine can classify on the CPU, slowly: it lacks the native kernels."],
        ),
        (
            ("classify on the CPU", "native kernels of the network", "train"),
            [
                "This machine is best for classifying on the CPU: float32 files, by native kernels.",
                "It can also train.",
            ],
        ),
        (
            ABILITIES[:4] + ABILITIES[5:],
            [
                "This machine is best for classifying on its GPU, by TensorRT-RTX engines.",
                "It can also train, export and build TensorRT-RTX engines for other machines.",
            ],
        ),
    ],
    ids=["nothing", "plain", "native", "gpu"],
)
def test_the_report_begins_with_what_the_machine_is_best_for(
    working: tuple[str, ...], best: list[str]
) -> None:
    report = a_report(*working)
    assert report.to_text().splitlines()[: len(best) + 1] == [*best, ""]
    assert json.loads(report.to_json())["best_for"].splitlines() == best


def test_text_and_json_say_the_same() -> None:
    text = CliRunner().invoke(mmdeploy, ["doctor"])
    data = CliRunner().invoke(mmdeploy, ["doctor", "--format", "json"])
    assert text.exit_code == data.exit_code == 0
    report = json.loads(data.stdout)
    for value in report["machine"].values():
        assert value in text.stdout
    for ability in report["abilities"]:
        assert ability["found"] in text.stdout
        assert ability["fix"] in text.stdout
        assert ability["needs"] in text.stdout


def test_missing_native_kernels_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "why_unavailable", lambda: "no compiler was there: install one")
    ability = next(item for item in doctor.examine().abilities if item.name.startswith("native"))
    assert not ability.works
    assert ability.found == "no compiler was there: install one"


@pytest.mark.parametrize(
    ("features", "works"),
    [(("avx2", "avx512_vnni"), True), (("avx2", "avx_vnni"), True), (("avx2", "fma"), False)],
    ids=["avx512-vnni", "avx-vnni", "avx2"],
)
def test_int8_is_told_from_the_instruction_sets(
    features: tuple[str, ...], works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.machine, "processor_features", lambda: features)
    ability = next(item for item in doctor.examine().abilities if item.name.startswith("int8"))
    assert ability.works == works
    assert ("no faster than float32" in ability.fix) != works


@pytest.mark.parametrize(
    ("installed", "fix"),
    [
        ({}, "pip install onnxruntime"),
        ({"onnxruntime": "1.32.0"}, "pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime"),
    ],
    ids=["nowhere", "broken"],
)
def test_without_onnxruntime_nothing_is_promised(
    installed: dict[str, str], fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(onnxruntime_library, "versions", lambda: installed)
    result = CliRunner().invoke(mmdeploy, ["doctor"])
    assert result.exit_code == 1
    assert result.stdout.count(f"fix: {fix}\n") == 1
    assert (
        result.stdout.splitlines()[0] == "This machine cannot classify images yet: see the first 'no' below."
    )


def test_a_folder_that_an_uninstalled_package_emptied_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``onnxruntime-gpu`` was installed beside ``onnxruntime``, and that removed."""
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "capi" / "left.txt").touch()
    for name in [name for name in sys.modules if name.split(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(onnxruntime_library, "versions", lambda: {"onnxruntime-gpu": "1.31.1"})
    with pytest.raises(BackendError) as refused:
        onnxruntime_library.import_onnxruntime()
    assert str(refused.value) == (
        f"ONNX Runtime cannot be loaded ({tmp_path / 'onnxruntime'} holds nothing of it, as after "
        "uninstalling one of two): pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime-gpu"
    )


def test_the_roads_to_a_gpu_are_told() -> None:
    assert a_report(*ABILITIES).roads == ""  # there is no GPU
    gpu = doctor.Ability("NVIDIA GPU", True, "a GPU")
    scan = doctor.Ability("the scan on ONNX Runtime's CUDA", False, "kernels are missing", "none")
    report = doctor.Report({}, (*a_report("run TensorRT-RTX engines").abilities, gpu, scan))
    told = [
        "A bundle gets to this machine's GPU by an engine that it holds, else where --device cuda asks:",
        "  TensorRT engine: no, see 'run TensorRT engines'",
        "  TensorRT-RTX engine: yes",
        "  ONNX Runtime on CUDA, with the scan's kernels: no, see 'the scan on ONNX Runtime's CUDA'",
    ]
    assert report.to_text().splitlines()[1:5] == told
    assert json.loads(report.to_json())["roads"].splitlines() == told


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({"onnxruntime": "here", "onnxruntime-gpu": "1.31.1"}, "onnxruntime here and onnxruntime-gpu 1.31.1"),
        ({"onnxruntime-gpu": "1.2.3"}, "onnxruntime-gpu 1.2.3"),
        ({"onnxruntime-gpu": "here"}, None),
        ({}, None),
    ],
    ids=["both", "files-of-another", "gpu-alone", "built-from-source"],
)
def test_a_mixed_install_of_onnxruntime_is_seen(
    installed: dict[str, str], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    here = onnxruntime.__version__
    versions = {name: here if number == "here" else number for name, number in installed.items()}
    monkeypatch.setattr(onnxruntime_library, "versions", lambda: versions)
    found = ability("one ONNX Runtime")
    assert found.works == (said is None) == (not found.is_wrong)
    if said is not None:
        assert f"{said.replace('here', here)} installed, in one folder; what imports is {here}" in found.found
        assert found.fix.startswith(
            "pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime-gpu"
        )


@pytest.mark.parametrize(("capability", "works"), [(89, True), (70, False)], ids=["8.9", "7.0"])
def test_the_scan_on_cuda_is_told_by_the_gpu(
    capability: int, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cpu.why_unavailable() is not None:
        pytest.skip("the native library is not built")
    on_cuda = doctor.Ability("ONNX Runtime on CUDA", True, "ONNX Runtime")
    monkeypatch.setattr(doctor, "_onnxruntime_on", lambda provider: on_cuda)
    monkeypatch.setattr(doctor, "compute_capability", lambda: capability)
    found = ability("the scan on ONNX Runtime's CUDA")
    assert found.works == works
    assert works or "compute capability 7.0; the scan has kernels for 7.5, 8.0" in found.found


def ability(name: str) -> doctor.Ability:
    return next(item for item in doctor.examine().abilities if item.name == name)


@pytest.fixture
def missing_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """TensorRT-RTX as its wheel installs it."""
    link = tmp_path / "libtensorrt_rtx.so"
    monkeypatch.setattr(tensorrt_library, "missing_parser_link", lambda: link)
    return link


def test_the_missing_link_of_tensorrt_rtx_keeps_it_from_building(missing_link: Path) -> None:
    found = ability("build TensorRT-RTX engines")
    assert not found.works
    assert f"would abort the process: {missing_link} is missing" in found.found
    assert found.fix == f"ln -s libtensorrt_rtx.so.1 {missing_link}"


def test_where_its_folder_is_read_only_the_fix_is_another_folder(
    missing_link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    fix = ability("build TensorRT-RTX engines").fix
    library = missing_link.with_name("libtensorrt_rtx.so.1")
    assert fix.startswith(f"mkdir -p ~/.local/lib/tensorrt_rtx && ln -s {library} ~/.local/lib/tensorrt_rtx/")
    assert fix.endswith("LD_LIBRARY_PATH=~/.local/lib/tensorrt_rtx:$LD_LIBRARY_PATH")


def test_without_the_link_engines_run_all_the_same(
    missing_link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "driver", lambda: RecordingDriver(89))
    found = ability("run TensorRT-RTX engines")
    assert found.works
    assert found.found.startswith("tensorrt_rtx 1.")


@pytest.mark.parametrize(
    "name", ["run TensorRT-RTX engines", "reach the GPU from Python", "ONNX Runtime on CUDA"]
)
def test_without_a_gpu_engines_do_not_run(no_gpu: None, name: str) -> None:
    found = ability(name)
    assert not found.works
    assert found.needs == "NVIDIA GPU"
    assert ability("NVIDIA GPU").fix


class PlayedDriver:
    """The CUDA driver's library as `ctypes` calls it, with some GPUs, or one that does not start."""

    GPUS = ((b"NVIDIA L4", {75: 8, 76: 9}), (b"Tesla T4", {75: 7, 76: 5}))

    def __init__(self, status: int, gpus: int) -> None:
        self._status, self._gpus = status, self.GPUS[:gpus]

    def cuInit(self, flags: int) -> int:
        return self._status

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self._gpus)
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = 100 + ordinal
        return 0

    def cuDeviceGetName(self, label: Any, size: int, device: Any) -> int:
        name, _ = self._gpus[device.value - 100]
        assert len(name) < size <= len(label)
        label.value = name
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self._gpus[device.value - 100][1][attribute]
        return 0


@pytest.mark.parametrize(
    ("status", "gpus", "found", "fix"),
    [
        (0, 1, "CUDA 12.8; NVIDIA L4 (compute capability 8.9)", ""),
        (0, 2, "CUDA 12.8; NVIDIA L4 (compute capability 8.9), Tesla T4 (compute capability 7.5)", ""),
        (0, 0, "CUDA 12.8, but no device", "check nvidia-smi and CUDA_VISIBLE_DEVICES"),
        (100, 1, "the driver does not start: cuInit gives 100", "check nvidia-smi"),
    ],
    ids=["one", "two", "none", "does-not-start"],
)
def test_the_gpus_of_a_driver_are_told(
    status: int, gpus: int, found: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda library: PlayedDriver(status, gpus))
    assert doctor._cuda_driver() == doctor.Ability("NVIDIA GPU", not fix, found, fix)


def test_a_gpu_without_scan_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "driver", lambda: RecordingDriver(70))
    assert ability("run TensorRT-RTX engines").needs == "reach the GPU from Python"
    found = ability("reach the GPU from Python")
    assert not found.works
    assert "Recording has compute capability 7.0; the scan has kernels for 7.5, 8.0" in found.found
    assert "--no-plugin" in found.fix


def test_what_is_not_installed_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_import_elsewhere", lambda module: pytest.fail("it must not be imported"))
    found = ability("TensorRT")
    assert (found.works, found.found) == (False, "not installed")
    assert "JetPack" in found.fix
    for name in ("build TensorRT engines", "run TensorRT engines"):
        assert ability(name) == doctor.Ability(name, False, needs="TensorRT")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("ONNX Runtime on CUDA", "onnxruntime-gpu"),
        ("ONNX Runtime on Tensorrt", "onnxruntime-gpu"),
        ("ONNX Runtime on NvTensorRTRTX", "onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_every_provider_is_there_or_says_how_to_get_it(
    name: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_cuda_driver", lambda: doctor.Ability("NVIDIA GPU", True, "a GPU"))
    found = ability(name)
    if not found.works:  # as where onnxruntime is the one for CPUs
        assert "does not offer" in found.found
        assert fix in found.fix


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libnvinfer.so.10 is missing')", "ImportError: libnvinfer.so.10 is missing"),
        ("import os; os.abort()", "died of signal 6"),
        ("import os; os._exit(3)", "ended with status 3"),
    ],
    ids=["import-error", "abort", "without-a-word"],
)
def test_a_library_that_breaks_on_import_does_not_take_us_along(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaking.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert reason in (doctor._import_elsewhere("breaking")[1] or "")
    assert doctor._import_elsewhere("json") == (json.__version__, None)


def test_a_library_is_not_looked_for_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("__version__ = 'of whoever sent the images'")
    monkeypatch.chdir(tmp_path)
    assert doctor._import_elsewhere("json") == (json.__version__, None)
