"""Q/DQ pairs: where they stand, what they cost, and that ONNX Runtime finds its int8 kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from msmamba.errors import ExportError, InputError
from msmamba.export.graph.int8 import Quantiser
from msmamba.export.graph.onnx_model import flat_model
from msmamba.export.graph.plan import Plan
from msmamba.export.graph.precision import fp16_from_fp32, precision_proof
from msmamba.export.graph.products import DEPTHWISE, LINEAR, merged, products
from msmamba.export.graph.quantise import int8_from_fp32, int8_nodes, int8_proof, quantised_weight
from msmamba.model import MicroscopicMamba, build_network
from msmamba.model.networks.registry import family_of
from msmamba.plugins.hybrid_block import INT8_OPERATORS

BATCH = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
NATIVE = ["CPUExecutionProvider"]


@pytest.fixture(scope="module")
def flat(small_onnx: ModelProto) -> ModelProto:
    return merged(flat_model(small_onnx))


@pytest.fixture(scope="module")
def units(network: MicroscopicMamba) -> Sequence[str]:
    return family_of(network).units(network)


def values_of(model: ModelProto, names: list[str]) -> dict[str, npt.NDArray[np.float32]]:
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return dict(zip(names, session(shown).run(names, {"image": BATCH}), strict=True))


def session(model: ModelProto, optimised: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=NATIVE)


def answers(model: ModelProto) -> npt.NDArray[np.float32]:
    (logits,) = session(model).run(["logits"], {"image": BATCH})
    return logits


@pytest.fixture(scope="module")
def ranges(flat: ModelProto) -> dict[str, float]:
    """Ranges measured on the test's own images."""
    found = products(flat)
    names = sorted({name for product in found for name in (product.activation, product.output)} - {"image"})
    largest = {name: float(np.abs(value).max()) for name, value in values_of(flat, names).items()}
    return {"image": float(np.abs(BATCH).max()), **largest}


@pytest.fixture(scope="module")
def chosen(flat: ModelProto) -> list[str]:
    return [product.node for product in Plan().chosen(products(flat))]


@pytest.fixture(scope="module")
def for_engines(flat: ModelProto, ranges: dict[str, float], chosen: list[str]) -> ModelProto:
    return int8_from_fp32(flat, ranges, chosen)


@pytest.fixture(scope="module")
def for_cpus(flat: ModelProto, ranges: dict[str, float], chosen: list[str]) -> ModelProto:
    return int8_from_fp32(flat, ranges, chosen, outputs=True)


def test_merging_products_changes_no_answer(small_onnx: ModelProto, flat: ModelProto) -> None:
    plain = flat_model(small_onnx)
    np.testing.assert_allclose(answers(flat), answers(plain), rtol=0, atol=1e-5)
    assert len(products(flat)) == len(products(plain)) - 4 * 2  # a block's three become one
    assert sum(product.macs for product in products(flat)) == sum(p.macs for p in products(plain))


def test_products_are_merged_in_each_module_apart() -> None:
    """Query and key of attention, say: modules that stand in no operator, some of them with a bias."""
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal((4, 4)).astype(np.float32) for name in "abcdef"}
    nodes = [
        helper.make_node("MatMul", ["image", "a"], ["block.0.q"], "block.0.q/MatMul"),
        helper.make_node("MatMul", ["image", "b"], ["block.0.k/MatMul"], "block.0.k/MatMul"),
        helper.make_node("Add", ["block.0.q", "block.0.k/MatMul"], ["block.0"], "block.0/Add"),
        helper.make_node("MatMul", ["block.0", "c"], ["block.1/MatMul"], "block.1/MatMul"),
        helper.make_node("MatMul", ["block.0", "d"], ["block.1/MatMul_2"], "block.1/MatMul_2"),
        helper.make_node("Mul", ["block.1/MatMul", "block.1/MatMul_2"], ["block.1/Mul"], "block.1/Mul"),
        helper.make_node("MatMul", ["block.1/Mul", "e"], ["block.1/MatMul_3"], "block.1/MatMul_3"),
        helper.make_node("MatMul", ["block.1/Mul", "f"], ["block.1/MatMul_4"], "block.1/MatMul_4"),
        helper.make_node("Mul", ["block.1/MatMul_3", "block.1/MatMul_4"], ["logits"], "block.1/Mul_2"),
    ]
    shown = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("image", "logits")
    ]
    constants = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "attention", shown[:1], shown[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = merged(model)
    onnx.checker.check_model(made, full_check=True)
    kinds = Counter(node.op_type for node in made.graph.node)
    assert (kinds["MatMul"], kinds["Split"]) == (3, 3)
    assert len({node.name for node in made.graph.node}) == len(made.graph.node)
    batch = {"image": generator.standard_normal((3, 4)).astype(np.float32)}
    (before,), (after,) = (session(each).run(["logits"], batch) for each in (model, made))
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_the_multiply_adds_are_those_of_the_layers(tiny_onnx: ModelProto) -> None:
    with torch.device("meta"):
        tiny = build_network("t", num_classes=4)
    found = products(merged(flat_model(tiny_onnx)), family_of(tiny).units(tiny))
    assert found[0].macs == 112 * 112 * 48 * 27
    assert found[1].macs == 56 * 56 * 96 * 48 * 9
    by_unit = Counter(product.unit for product in found)
    assert set(by_unit) == {
        "patch_embed",
        *(f"layers.{i}.blocks.{j}" for i, depth in enumerate((2, 2, 4, 2)) for j in range(depth)),
        *(f"layers.{i}.downsample" for i in range(3)),
    }
    reduction = next(product for product in found if product.unit == "layers.2.downsample")
    assert (reduction.kind, reduction.macs) == (LINEAR, 7 * 7 * 1536 * 768)


def test_only_products_read_quantised_values(for_engines: ModelProto) -> None:
    readers: dict[str, list[str]] = {}
    for node in for_engines.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    pairs = [node for node in for_engines.graph.node if node.op_type == "DequantizeLinear"]
    assert {kind for node in pairs for kind in readers[node.output[0]]} == {"Conv", "MatMul"}
    assert all(len(readers[node.output[0]]) == 1 for node in pairs)
    made_by = {output: node.op_type for node in for_engines.graph.node for output in node.output}
    for node in for_engines.graph.node:
        if node.op_type in ("SelectiveScan2D", "LayerNormalization", "Sigmoid", "Add"):
            assert "DequantizeLinear" not in {made_by.get(name) for name in node.input}


def test_no_add_joins_a_product_to_an_activation(flat: ModelProto) -> None:
    """So the residual rule has no place to apply; if this fails, it has one."""
    weights = {tensor.name for tensor in flat.graph.initializer}
    outputs = {product.output for product in products(flat)}
    joined = [
        node.name
        for node in flat.graph.node
        if node.op_type == "Add" and outputs & set(node.input) and not weights & set(node.input)
    ]
    assert joined == []


def test_weights_are_int8_and_everything_is_symmetric(for_cpus: ModelProto, chosen: list[str]) -> None:
    tensors = {tensor.name: tensor for tensor in for_cpus.graph.initializer}
    pairs = [n for n in for_cpus.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        zero = numpy_helper.to_array(tensors[node.input[2]])
        assert zero.dtype == np.int8
        assert not zero.any()
    assert {node.name for node in int8_nodes(for_cpus)} == set(chosen)
    stored = [tensor for tensor in tensors.values() if tensor.data_type == TensorProto.INT8]
    assert sum(tensor.name.endswith(":int8") for tensor in stored) == len(chosen)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_is_off_by_at_most_half_a_step_of_its_channel(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 5, 3, 3)).astype(np.float32)
    weight *= np.logspace(-6, 2, weight.shape[axis]).reshape([-1 if i == axis else 1 for i in range(4)])
    weight[(slice(None),) * axis + (1,)] = 0
    integers, scales = quantised_weight(weight, axis)
    steps = scales.reshape([-1 if i == axis else 1 for i in range(4)])
    assert (np.abs(integers * steps - weight) <= 0.5001 * steps).all()
    assert np.abs(integers).max() <= 127
    assert scales.astype(np.float16).astype(np.float32).tolist() == scales.tolist()


def test_float16_around_holds_the_same_integers(for_engines: ModelProto, chosen: list[str]) -> None:
    half = fp16_from_fp32(for_engines)
    assert {node.name for node in int8_nodes(half)} == set(chosen)
    wide = {tensor.name: tensor for tensor in for_engines.graph.initializer}
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.INT8 or tensor.name.endswith(":scale"):
            assert (numpy_helper.to_array(tensor) == numpy_helper.to_array(wide[tensor.name])).all()
    assert precision_proof(half).nodes["float16"] > 100
    np.testing.assert_allclose(answers(half), answers(for_engines), rtol=0, atol=0.02)


def test_answers_stay_near(flat: ModelProto, for_cpus: ModelProto, for_engines: ModelProto) -> None:
    expected = answers(flat)
    for model in (for_cpus, for_engines):
        error = np.abs(answers(model) - expected).max()
        assert 0 < error < 0.1 * np.abs(expected).max()


def test_onnxruntime_multiplies_in_int8(for_cpus: ModelProto, chosen: list[str], tmp_path: Path) -> None:
    session(for_cpus, tmp_path / "optimised.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] + kinds["MatMulIntegerToFloat"] == len(chosen)
    assert kinds["MatMul"] == 0


def test_the_proof_counts_what_stands_in_the_graph(
    flat: ModelProto, for_cpus: ModelProto, ranges: dict[str, float]
) -> None:
    proof = int8_proof(for_cpus, flat)
    assert 0.8 < proof.share < 1
    assert proof.by_kind == {"convolution": 1, "depthwise": 0, "linear": 1}
    one = next(product for product in products(flat) if product.kind == DEPTHWISE)
    alone = int8_proof(int8_from_fp32(flat, ranges, [one.node]), flat)
    assert alone.products == (one.node,)
    assert 0 < alone.share < 0.05
    assert int8_proof(flat, flat).share == 0


@pytest.fixture(scope="module")
def in_blocks(small_onnx: ModelProto, flat: ModelProto, ranges: dict[str, float]) -> ModelProto:
    return Quantiser(small_onnx, flat, ranges, half=False)(Plan().chosen(products(flat)))


def test_blocks_with_int8_products_say_what_their_flat_form_says(
    in_blocks: ModelProto, for_cpus: ModelProto, flat: ModelProto, chosen: list[str], tmp_path: Path
) -> None:
    blocks = 4
    assert Counter(
        node.op_type for node in in_blocks.graph.node if node.domain == "msmamba"
    ) == dict.fromkeys({*INT8_OPERATORS, "MIFA"} - {"ScanInputsInt8"}, blocks) | {
        "PatchMergingInt8": blocks - 1
    }
    proof, expected = int8_proof(in_blocks, flat), int8_proof(for_cpus, flat)
    assert set(proof.products) == set(expected.products) == set(chosen)
    assert proof.share == expected.share
    np.testing.assert_allclose(answers(in_blocks), answers(for_cpus), rtol=0, atol=1e-5)
    session(in_blocks, tmp_path / "optimised.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] + kinds["MatMulIntegerToFloat"] == len(chosen)


def test_an_operator_stays_where_there_is_a_form_of_it_for_what_is_quantised_and_is_written_out_where_not(
    small_onnx: ModelProto, flat: ModelProto, ranges: dict[str, float]
) -> None:
    quantiser = Quantiser(small_onnx, flat, ranges, half=False)

    def operators(*kinds: str) -> Counter[str]:
        model = quantiser(Plan(kinds=kinds).chosen(products(flat)))
        return Counter(node.op_type for node in model.graph.node if node.domain == "msmamba")

    in_int8 = ("ScanFeaturesInt8", "ProjectedScan2DInt8", "ScanOutputsInt8")
    linear = dict.fromkeys(("LocalBranch", *in_int8, "MIFA"), 4) | {"PatchMergingInt8": 3}
    assert operators(LINEAR) == linear
    assert operators(DEPTHWISE) == {"ProjectedScan2D": 4, "PatchMerging": 3}


def test_a_value_that_is_always_zero_can_be_quantised(flat: ModelProto, ranges: dict[str, float]) -> None:
    first = products(flat)[0]
    model = int8_from_fp32(flat, {**ranges, first.activation: 0.0}, [first.node])
    assert np.isfinite(answers(model)).all()


def test_what_cannot_be_quantised_is_named_at_once(flat: ModelProto, ranges: dict[str, float]) -> None:
    first, second = products(flat)[:2]
    broken = {**ranges, first.activation: float("nan")}
    del broken[second.activation]
    message = r"head/Gemm is no product.*patch_embed\.1 has no range; image has the range nan"
    with pytest.raises(ExportError, match=message):
        int8_from_fp32(flat, broken, [first.node, second.node, "head/Gemm"])


def test_a_plan_keeps_units_and_comes_back_from_its_file(flat: ModelProto, units: Sequence[str]) -> None:
    plan = Plan(kept=("layers.0.blocks.0", "patch_embed"), kinds=("linear",))
    again = Plan.from_json(plan.to_json(), "plan.json")
    assert again == plan
    left = again.chosen(products(flat, units))
    assert {product.kind for product in left} == {"linear"}
    assert not {product.unit for product in left} & set(plan.kept)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(kept=("layers.7.blocks.0",)), r"names 'layers\.7\.blocks\.0': .*units patch_embed, layers\.0"),
        (Plan(kinds=("scan",)), "names 'scan'.*kinds convolution, depthwise, linear"),
        (Plan(kinds=()), "leaves no product"),
    ],
    ids=["unit", "kind", "nothing"],
)
def test_a_plan_for_another_network_is_refused(
    flat: ModelProto, units: Sequence[str], plan: Plan, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        plan.chosen(products(flat, units))


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format_version": 2, "kept": [], "kinds": []}', '{"format_version": 1, "kept": "all"}',
     '{"format_version": 1, "kept": [1], "kinds": []}'],
    ids=["empty", "list", "newer", "text", "numbers"],
)  # fmt: skip
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"'p\.json' is no plan that can be read"):
        Plan.from_json(text, "p.json")
