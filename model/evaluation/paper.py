"""What the paper (arXiv 2409.07896) prints in its Tables I to III: sizes, and results on five data sets.

The results stand beside this file in the form that `read_published` takes, every figure as it is printed.
`DOUBTS` names those that the paper's others contradict; nothing is put in their place.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...errors import InputError, reason_of
from ...files import lines_of, open_text
from ..networks.family import Architecture as AnyArchitecture
from ..networks.microscopic_mamba import SIZES, Architecture

SWITCHES = ("mifa", "parallel", "psffn")
"""The ablations, by the names of `Architecture`'s fields."""
NAMES = {"t": "Microscopic-Mamba-t", "s": "Microscopic-Mamba-s", "b": "Microscopic-Mamba-b"}
METRICS = ("accuracy", "auc", "precision")
"""What the paper's tables give of a data set: OA, AUC and precision."""


@dataclass(frozen=True)
class Published:
    """A network's size in the paper."""

    parameters: float | None = None
    """Millions; None where the paper has no such row."""
    macs: float | None = None
    """10^9 at 224x224, counted by ptflops."""
    classes: int = 1000
    """How many classes the network had that the paper counted, as far as its count tells."""


@dataclass(frozen=True)
class PaperRow:
    """A network of the paper's, or an ablation that it might have."""

    size: str
    """``t``, ``s`` or ``b``."""
    off: tuple[str, ...] = ()
    """The switches that are off."""

    @property
    def key(self) -> str:
        """The row as options of `mmdeploy train` write it: ``t``, ``t --no-mifa``, …"""
        return " ".join([self.size, *(f"--no-{name}" for name in self.off)])

    @property
    def name(self) -> str:
        """The row's name for people."""
        return NAMES[self.size] + "".join(f" w/o {name.upper()}" for name in self.off).replace(
            "PARALLEL", "parallel"
        )

    @property
    def table(self) -> str:
        """The paper's tables that have the row."""
        return "II, III" if self.off else "I"

    @property
    def published(self) -> Published:
        """The size that they print."""
        return PUBLISHED.get(self.key, Published(classes=PUBLISHED[self.size].classes))

    def architecture(self, num_classes: int) -> Architecture:
        """The network."""
        return Architecture.of_size(self.size, num_classes=num_classes, **dict.fromkeys(self.off, False))

    @classmethod
    def of(cls, arch: AnyArchitecture) -> PaperRow | None:
        """The row of an architecture, whatever its classes; None for one that the paper does not have."""
        if not isinstance(arch, Architecture):
            return None
        for size, fields in SIZES.items():
            if (arch.depths, arch.dims, arch.d_state) == (fields["depths"], fields["dims"], 16):
                return cls(size, tuple(name for name in SWITCHES if not getattr(arch, name)))
        return None


PUBLISHED = {
    "t": Published(4.32, 0.64),
    "s": Published(4.97, 0.76),
    "b": Published(8.39, 1.59, classes=8),
    "t --no-mifa": Published(4.30),
    "t --no-parallel": Published(8.83),
    "t --no-psffn": Published(4.89),
    "t --no-mifa --no-psffn": Published(4.86),
}
"""Sizes by `PaperRow.key`. The two numbers without PSFFN do not follow from the released code."""

ABLATIONS = tuple(
    PaperRow("t", tuple(name for name, off in zip(SWITCHES, bits, strict=True) if off))
    for bits in (
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, False, True),
        (True, True, False),
        (False, True, True),
        (True, True, True),
    )
)
"""The tiny network with every combination of switches."""


@dataclass(frozen=True)
class Peer:
    """Another network's row of Table I."""

    name: str
    parameters: float
    """Millions."""
    macs: float
    """10^9 at 224x224."""

    @property
    def network(self) -> str:
        """Its name in the registry."""
        return _NETWORKS[self.name]

    @property
    def classes(self) -> int:
        """How many classes the network had that the paper counted, as far as its count tells."""
        return 4 if self.name.startswith("SwiftFormer") else 1000


_NETWORKS = {
    "ConvNext-tiny": "convnext_tiny",
    "ConvNext-small": "convnext_small",
    "RepVit-m1_0": "repvit_m1_0",
    "RepVit-m1_1": "repvit_m1_1",
    "Mobileone-s0": "mobileone_s0",
    "Mobileone-s2": "mobileone_s2",
    "Mobileone-s3": "mobileone_s3",
    "Twins-small": "twins_pcpvt_small",
    "Twins-base": "twins_pcpvt_base",
    "Vit-tiny": "vit_tiny_patch16_224",
    "Vit-small": "vit_small_patch16_224",
    "Vit-base": "vit_base_patch16_224",
    "FastVit-sa24": "fastvit_sa24",
    "FastVit-ma36": "fastvit_ma36",
    "SwiftFormer-S": "swiftformer_s",
    "SwiftFormer-L1": "swiftformer_l1",
    "SwiftFormer-L3": "swiftformer_l3",
    "PVT-small": "pvt_small",
    "PVT-medium": "pvt_medium",
    "MpVit-tiny": "mpvit_tiny",
    "MpVit-small": "mpvit_small",
    "Uniformer-small": "uniformer_small",
    "Uniformer-base": "uniformer_base",
    "SMT-s": "smt_s",
    "SMT-b": "smt_b",
    "Medmamba-s": "medmamba_s",
    "Medmamba-b": "medmamba_b",
    "VMamba-t": "vmamba_t",
    "VMamba-s": "vmamba_s",
}

PEERS = tuple(
    Peer(name, parameters, macs)
    for name, parameters, macs in (
        ("ConvNext-tiny", 28.69, 4.49),
        ("ConvNext-small", 50.22, 8.73),
        ("RepVit-m1_0", 6.85, 1.13),
        ("RepVit-m1_1", 8.29, 1.37),
        ("Mobileone-s0", 5.29, 1.1),
        ("Mobileone-s2", 7.88, 1.35),
        ("Mobileone-s3", 10.17, 1.96),
        ("PVT-small", 24.49, 3.71),
        ("PVT-medium", 44.21, 6.49),
        ("MpVit-tiny", 5.84, 1.84),
        ("MpVit-small", 22.89, 5.32),
        ("Twins-small", 24.11, 3.71),
        ("Twins-base", 43.83, 6.49),
        ("Vit-tiny", 5.71, 1.26),
        ("Vit-small", 22.04, 4.62),
        ("Vit-base", 86.54, 17.6),
        ("FastVit-sa24", 21.55, 2.94),
        ("FastVit-ma36", 44.07, 6.07),
        ("SwiftFormer-S", 5.64, 1.01),
        ("SwiftFormer-L1", 11.29, 1.62),
        ("SwiftFormer-L3", 27.47, 4.05),
        ("Uniformer-small", 21.55, 3.46),
        ("Uniformer-base", 49.78, 7.81),
        ("SMT-s", 22.55, 4.72),
        ("SMT-b", 32.04, 7.81),
        ("Medmamba-s", 19.39, 2.75),
        ("Medmamba-b", 40.88, 6.16),
        ("VMamba-t", 22.1, 4.4),
        ("VMamba-s", 43.7, 9.0),
    )
)
"""The other rows of Table I."""

Results = dict[tuple[str, str], dict[str, float]]
"""Metrics in [0, 1] by data set (lower case) and network: a `PaperRow.key` or a `Peer`'s name."""


@dataclass(frozen=True)
class Doubt:
    """A printed figure that others of the paper contradict."""

    network: str
    """A `PaperRow.key` or a `Peer`'s name."""
    figure: str
    """One of `METRICS`, ``parameters`` or ``macs``."""
    printed: float
    """The figure, in per cent, in millions or in 10^9."""
    why: str
    data: str | None = None
    """The data set, in lower case; None for a size."""

    def concerns(self, network: str, data: str | None, figures: Mapping[str, float | None]) -> bool:
        """Whether a row has this figure; one that somebody has corrected is not doubted."""
        value = figures.get(self.figure)
        return (
            network == self.network
            and self.data in (None, data)
            and value is not None
            and math.isclose(value, self.printed / (100 if self.figure in METRICS else 1))
        )


_NO_SHARE_OF_RPE = "no share of 371 images, as other RPE accuracies are"
_OTHER_AUCS_OF_RPE = "other RPE AUCs are 97.25 to 98.40; perhaps"

DOUBTS = (
    Doubt("SMT-s", "accuracy", 83.99, f"{_NO_SHARE_OF_RPE}, but this row's on MHIST", "rpe"),
    Doubt("SMT-s", "auc", 83.73, "one digit from this row's on MHIST, 89.73", "rpe"),
    Doubt("ConvNext-tiny", "accuracy", 86.06, _NO_SHARE_OF_RPE, "rpe"),
    Doubt("Vit-small", "accuracy", 86.54, _NO_SHARE_OF_RPE, "rpe"),
    Doubt("Vit-base", "accuracy", 86.24, _NO_SHARE_OF_RPE, "rpe"),
    Doubt("t --no-mifa --no-psffn", "accuracy", 87.14, _NO_SHARE_OF_RPE, "rpe"),
    Doubt("Uniformer-small", "auc", 88.13, f"{_OTHER_AUCS_OF_RPE} 98.13", "rpe"),
    Doubt("Uniformer-base", "auc", 83.41, f"{_OTHER_AUCS_OF_RPE} 98.41", "rpe"),
    Doubt("Mobileone-s3", "accuracy", 70.69, "no share of 631 images: 446 of them are 70.68", "mhist"),
    Doubt("t", "accuracy", 87.3, "no share of 631 images: 551 of them are 87.32", "mhist"),
    Doubt("b", "accuracy", 97.14, "no share of 5,511 images, as other malaria accuracies are", "malaria"),
    Doubt("Twins-small", "auc", 82.55, "rows as accurate have 92 to 93; perhaps 92.55", "tissuemnist"),
    Doubt("Vit-base", "auc", 94.6, "rows as accurate have 98.3 to 98.8; nearly the accuracy", "medfm-colon"),
    Doubt("ConvNext-tiny", "parameters", 28.69, "28.59 by the paper's way of counting"),
    Doubt("SMT-b", "macs", 7.81, "7.80 by the paper's way of counting; 7.81 is Uniformer-base's"),
    Doubt("SwiftFormer-S", "macs", 1.01, "1.00 by the paper's way of counting"),
    Doubt("VMamba-t", "macs", 4.4, "2.84 by the paper's way of counting"),
    Doubt("VMamba-s", "macs", 9.0, "5.99 by the paper's way of counting"),
)
"""Typing errors, most of them. An accuracy is a whole number of test images over their number."""


@cache
def printed_results() -> Results:
    """The results that the paper prints."""
    return read_published(Path(__file__).with_name("paper_results.csv"))


def read_published(path: str | Path) -> Results:
    """Reads results that somebody copied from the paper.

    Args:
        path: a csv file with the columns ``dataset``, ``network`` (``t``, ``t --no-mifa``, ``Vit-base``, …),
            ``accuracy``, ``auc`` and ``precision``, in per cent or as shares; a cell may be empty.

    Raises:
        InputError: it cannot be read, lacks a column, or has a network or figure that makes no sense.
    """
    path = Path(path)
    try:
        with open_text(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(lines_of(file))
            missing = [
                name for name in ("dataset", "network", *METRICS) if name not in (reader.fieldnames or ())
            ]
            if missing:
                raise InputError(f"{path}: has no column {', '.join(map(repr, missing))}")
            rows = list(enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error
    known = {*PUBLISHED, *(row.key for row in ABLATIONS), *(peer.name for peer in PEERS)}
    results: Results = {}
    for line, row in rows:
        network = " ".join((row["network"] or "").split())
        if network not in known:
            raise InputError(f"{path}, line {line}: {network!r} is no network of the paper's, such as 't'")
        results[(row["dataset"] or "").strip().lower(), network] = {
            name: _share(row[name].strip(), f"{path}, line {line}, {name}")
            for name in METRICS
            if (row[name] or "").strip()
        }
    return results


def _share(text: str, where: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError as error:
        raise InputError(f"{where}: {text!r} is no number") from error
    if not 0 <= value <= 100:
        raise InputError(f"{where}: {text} is neither a share nor in per cent")
    if value > 1 or text.endswith("%"):
        return round(value / 100, 12)  # 0.8544, not 0.8543999999999999
    return value
