"""Small data sets in the true layout of the published ones, traps included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MALARIA_PATIENTS = [
    *("C100P61ThinF", "C33P1thinF", "C5NThinF", "C1_thinF", "C3thin_original", "C37BP2thinF"),
    *("C68P29N_ThinF", "C99P60ThinF", "C230ThinF", "C48P9thinF"),
]
MHIST_HEADER = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"
COLON_REGIONS = [
    # Two regions of one slide, and two slides of one case: all of them are one patient's.
    "2019-10732-1-5-5_2019-05-28 16_40_29-lv1-19373-12112-8943-4506",
    "2019-10732-1-5-5_2019-05-28 16_40_29-lv1-37280-16311-8989-5437",
    "2019-10732-1-6-6_2019-05-28 16_33_17-lv1-43103-2848-6491-8333",
    "D20190284705_2019-06-10 15_10_34-lv1-15598-12648-5733-5319",
    "D20190284706_2019-06-10 15_12_34-lv1-15598-12648-5733-5319",
    "1902386001_2019-06-11 12_18_33-lv1-31089-11000-1463-1314",
    "1902386002_2019-06-11 12_23_22-lv1-22824-31253-5676-4175",
    *(f"2019-06-11 0{hour}_00_50-lv1-1956-12720-11095-7901" for hour in range(8)),
]
TISSUES = ("train", "val", "test")


def write_image(path: Path, seed: int, size: tuple[int, int] = (12, 10)) -> None:
    """Noise, width by height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_malaria(root: Path, nested: bool = False) -> Path:
    """``cell_images`` of ten patients, six cells each; ``nested``: once more inside itself."""
    cells = root / "cell_images"
    for where in (cells, cells / "cell_images") if nested else (cells,):
        for label in ("Parasitized", "Uninfected"):
            for patient, prefix in enumerate(MALARIA_PATIENTS):
                for cell in range(3):
                    seed = 1000 * patient + 10 * cell + (label == "Uninfected")
                    name = f"{prefix}_IMG_20150918_144104_cell_{cell}.png"
                    write_image(where / label / name, seed, (10 + seed % 7, 12))
            (where / label / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    return cells


def write_mhist(root: Path, images: int = 40) -> Path:
    """``annotations.csv`` with CRLF line ends, and ``images``; two of seven are SSA, a quarter is test."""
    lines = [MHIST_HEADER]
    for number in range(images):
        name = f"MHIST_{number:03}.png"
        write_image(root / "mhist" / "images" / name, number, (224, 224))
        votes = 5 if number % 7 < 2 else 1
        partition = "test" if number % 4 == 0 else "train"
        lines.append(f"{name},{'SSA' if votes > 3 else 'HP'},{votes},{partition}")
    (root / "mhist" / "annotations.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    return root / "mhist"


def write_colon(root: Path) -> Path:
    """Both parts: the second without labels and with blank lines, which a csv file of both makes good."""
    rows: dict[str, list[str]] = {"train": [], "val": []}
    everything = ["slide_id,img_id,tumor"]
    for number, region in enumerate(COLON_REGIONS):
        for patch in range(4):
            part = "val" if patch == 3 else "train"
            image, tumor = f"{region}p{patch:04}.png", (number + patch) % 3 == 0
            write_image(root / f"MedFMC_{part}" / "colon" / "images" / image, 100 * number + patch)
            rows[part].append(f"{region},{image},{int(tumor) if part == 'train' else ''}")
            everything.append(f"{region},{image},{int(tumor)}")
    blank = [",,"] * 1000
    tables = {
        "MedFMC_train/colon/colon_train.csv": ("\r\n", ["slide_id,img_id,tumor", *rows["train"]]),
        "MedFMC_val/colon/colon_val.csv": ("\n", ["slide_id,img_id,tumor", *rows["val"], *blank]),
        "MedFMC_trainval_annotation/colonpath_published_2.csv": ("\n", everything),
    }
    for name, (end, lines) in tables.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(end.join([*lines, ""]).encode())
    return root


def write_rpe(root: Path) -> Path:
    """``Subwindows`` of sixteen images of four windows each, 640x480 shrunk to keep tests quick."""
    for image in range(16):
        for window in range(4):
            name = f"{image % 3}_{image:03}_{window}_{1 + (image + window) % 4}_7.tif"
            write_image(root / "Subwindows" / name, 10 * image + window, (64, 48))
    (root / "Subwindows" / "Thumbs.db").write_bytes(b"x")
    return root / "Subwindows"


def tissue_arrays(count: int = 40, size: int = 28, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of a TissueMNIST file: images without a channel axis, labels of shape (N, 1)."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for split, share in zip(TISSUES, (7, 1, 2), strict=True):
        number = count * share
        arrays[f"{split}_images"] = generator.integers(0, 256, (number, size, size), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(number, dtype=np.uint8) % 8)[:, None]
    return arrays
