"""What is attacked: by name, a class that makes inputs and opens them through one of the library's doors."""

from __future__ import annotations

from .artefacts import EngineFile, Guards, KernelPackages, Manifests, Onnx, OnnxMetadata, Plans
from .checkpoints import PickledCheckpoints, SafeCheckpoints
from .data_sets import DataManifests, Index, Npz, Tables
from .images import Pictures
from .microscope import DrawnRegions, DriftLogs, LargeFields, Sessions
from .nodes import Nodes
from .runs import CalibrationCaches, PredictionFiles, Runs, RunStates
from .slides import SlideResults, Slides
from .target import Target

TARGETS: dict[str, type[Target]] = {
    "images": Pictures,
    "nodes": Nodes,
    "slides": Slides,
    "results": SlideResults,
    "fields": LargeFields,
    "regions": DrawnRegions,
    "sessions": Sessions,
    "drift": DriftLogs,
    "manifests": Manifests,
    "guards": Guards,
    "onnx": Onnx,
    "metadata": OnnxMetadata,
    "engines": EngineFile,
    "kernels": KernelPackages,
    "plans": Plans,
    "safetensors": SafeCheckpoints,
    "pickles": PickledCheckpoints,
    "npz": Npz,
    "tables": Tables,
    "data-manifests": DataManifests,
    "index": Index,
    "predictions": PredictionFiles,
    "runs": Runs,
    "states": RunStates,
    "calibration": CalibrationCaches,
}
