"""What can be read off a TensorRT plan without loading it, and whether this machine runs it.

A plan is checked before TensorRT gets it, because TensorRT answers late, for a person to read in a log, or
not at all. Both libraries' plans begin with a magic number. TensorRT-RTX says more (measured with 1.7.1,
whose header is 64 bytes): the plan's size at offset 16, its version at offset 24, and at offset 32 a bit for
each compute capability. A plan of TensorRT says no more than its name; there its manifest speaks, and the
compute capabilities of the scan kernels inside.

TensorRT-RTX has a check of its own, ``Runtime.get_engine_validity``. It is not used: without a driver it
answers that an engine is invalid and gives no reason, and users report the same of engines that run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ArtefactError, BackendError
from ..plugins.cuda_driver import Device
from ..plugins.selective_scan.gpu_launch import dotted
from ..plugins.selective_scan.gpu_package import MAGIC as KERNELS_MAGIC
from ..plugins.selective_scan.gpu_package import KernelPackage
from ..plugins.selective_scan.tensorrt_plugin import PLUGIN_VERSION
from ..text import as_word
from .artefact import ENGINE_MAGICS
from .manifest import EngineFacts, Manifest

NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}

_HEADER_BYTES = 64
_SIZE, _VERSION, _TARGETS = slice(16, 24), slice(24, 28), slice(32, 36)
_RTX_TARGETS = (75, 80, 86, 89, 120, 121)  # from the lowest bit on
_LONGEST_NAME = 40
_KERNELS_PREFIX = KERNELS_MAGIC.rstrip(b"\n").rstrip(b"0123456789")


@dataclass(frozen=True)
class Plan:
    """A plan and what it says of itself.

    Attributes:
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: the library's version; None where the plan does not say.
        compute_capabilities: the GPUs it runs on, ``10 * major + minor``; None where it does not say.
        has_plugin: whether it holds compiled scan kernels.
        kernels: their format, such as ``msmamba-kernels-1``; empty without.
    """

    library: str
    version: tuple[int, ...] | None
    compute_capabilities: tuple[int, ...] | None
    kernels: str

    @property
    def has_plugin(self) -> bool:
        return bool(self.kernels)

    @classmethod
    def of(cls, content: bytes, name: str) -> Plan:
        """Reads a plan's head.

        Raises:
            ArtefactError: it is none, or truncated.
        """
        library = ENGINE_MAGICS.get(content[:4])
        if library is None:
            raise ArtefactError(f"'{name}' is no TensorRT engine: it begins with {content[:4]!r}")
        size = _HEADER_BYTES
        if library == "tensorrt_rtx":
            size = max(size, int.from_bytes(content[_SIZE], "little"))
        if len(content) < size:
            raise ArtefactError(
                f"'{name}' is a truncated engine: {len(content)} of {size} bytes: copy or build it again"
            )
        start = content.find(_KERNELS_PREFIX)
        named = content[start : start + _LONGEST_NAME].split(b"\n")[0] if start >= 0 else b""
        kernels = named.decode(errors="replace")
        if library == "tensorrt_rtx":
            bits = int.from_bytes(content[_TARGETS], "little")
            known = tuple(sm for bit, sm in enumerate(_RTX_TARGETS) if bits >> bit & 1)
            targets = known if bits and not bits >> len(_RTX_TARGETS) else None
            return cls(library, tuple(content[_VERSION]), targets, kernels)
        if kernels == KERNELS_MAGIC.decode().strip():
            package = KernelPackage.from_bytes(content[start:])
            return cls(library, None, package.compute_capabilities, kernels)
        return cls(library, None, None, kernels)


def check_fit(
    plan: Plan, manifest: Manifest | None, *, name: str, library_version: str, device: Device
) -> None:
    """Refuses an engine that this machine does not run.

    Args:
        plan: what the plan says.
        manifest: its bundle's manifest; None for a bare plan.
        name: what messages call the artefact.
        library_version: the version of the library that is installed here.
        device: the GPU.

    Raises:
        BackendError: every mismatch, and the command that builds an engine for this machine.
    """
    problems = []
    facts = EngineFacts.of(manifest) if manifest else None
    library = NAMES[plan.library]
    found = ".".join(map(str, plan.version)) if plan.version else facts.version if facts else None
    compatible = facts is not None and facts.version_compatible
    if found is not None and not _runs(found, library_version, compatible):
        problems.append(f"it was built by {library} {found} and this machine has {library_version}")
    targets = plan.compute_capabilities or _targets(manifest)
    if targets and device.compute_capability not in targets:
        problems.append(
            f"it is for compute capability {dotted(targets)} and this GPU, {device.name}, has "
            f"{device.compute_capability / 10:.1f}"
        )
    if plan.has_plugin and plan.kernels != KERNELS_MAGIC.decode().strip():
        problems.append(
            f"its scan kernels are '{plan.kernels}' and this msmamba runs '{KERNELS_MAGIC.decode().strip()}'"
        )
    if facts is not None and facts.plugin_version not in ("", PLUGIN_VERSION):
        problems.append(
            f"its scan plugin has version {facts.plugin_version} and this msmamba has {PLUGIN_VERSION}"
        )
    if problems:
        command = rebuild_command(plan, name if manifest else "BUNDLE", device)
        raise BackendError(f"'{name}' does not run here: {'; '.join(problems)}: build it again: {command}")


def rebuild_command(plan: Plan, bundle: str, device: Device) -> str:
    """The command that builds an engine for a device from a bundle."""
    command = f"mmdeploy export {as_word(bundle)} --target {plan.library.replace('_', '-')}"
    if plan.library == "tensorrt_rtx":
        command += f" --sm {device.compute_capability / 10:.1f}"
    if not plan.has_plugin:
        command += " --no-plugin"
    return f"{command} -o NEW"


def _runs(built: str, installed: str, compatible: bool) -> bool:
    """Whether a library runs the engines of a version of it; the fourth number, the build, is left out."""
    built_by, here = ([int(part) for part in re.findall(r"\d{1,9}", text)[:3]] for text in (built, installed))
    return built_by <= here if compatible else built_by == here


def _targets(manifest: Manifest | None) -> tuple[int, ...]:
    """Compute capabilities of a manifest, ``8.9`` as 89; none where the engine runs on more than it names."""
    facts = EngineFacts.of(manifest) if manifest else None
    if manifest is None or (facts and facts.hardware_compatibility == "ampere-plus"):
        return ()
    return tuple(int(text.replace(".", "")) for text in manifest.compute_capabilities)
