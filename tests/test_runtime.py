from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.bundle import read_bundle
from models.errors import BundleError
from service.errors import InferenceFailed, NotReady
from service.model_folder import open_graph
from service.onnx_file import Operators, has_external_data
from service.runtime import Runtime, TensorSpec
from tests.foreign import FOREIGN, graph, looping, relu, selected, sequence


def outside(location: str, where: str) -> bytes:
    """A graph with a tensor that is kept in another file: an initializer, a constant, or a constant of a branch."""
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if where == "initializer":
        made = helper.make_graph([add], "g", [x], [y], [tensor])
    elif where == "constant":
        made = helper.make_graph([constant, add], "g", [x], [y])
    else:
        flag = helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True)))
        out = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 3])
        branch = helper.make_graph([constant, helper.make_node("Add", ["x", "w"], ["b"])], "branch", [], [out])
        choose = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
        made = helper.make_graph([flag, choose], "g", [x], [y])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("where", ["initializer", "constant", "branch"])
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd"])
def test_a_graph_with_tensors_in_other_files_is_refused_with_words(location: str, where: str) -> None:
    data = outside(location, where)
    assert has_external_data(data)
    with pytest.raises(BundleError, match="save it as one file") as caught:
        Runtime(data, "cpu", 1)
    assert location not in str(caught.value)


def test_a_field_that_onnx_does_not_know_hides_nothing() -> None:
    assert has_external_data(b"\x83\x06\x84\x06" + outside("weights.bin", "branch"))


def test_a_graph_of_one_file_has_no_external_data(bundle_folder: Path) -> None:
    assert not has_external_data(read_bundle(bundle_folder).graph)
    assert not any(has_external_data(data) for data in FOREIGN.values())


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"", lambda data: data[:-3], lambda data: b"\xff" * 100, lambda data: bytes(1000)],
    ids=["empty", "cut", "ones", "zeros"],
)
def test_what_is_no_graph_is_left_to_the_runtime_which_refuses_it(spoil: Callable[[bytes], bytes]) -> None:
    data = spoil(relu(("n", 3)))
    assert not has_external_data(data)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        Runtime(data, "cpu", 1)


def test_inputs_and_outputs_are_told_in_the_protocols_words() -> None:
    runtime = Runtime(FOREIGN["several"], "cpu", 1)
    assert runtime.inputs == (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1, 2)))
    assert runtime.outputs[2] == TensorSpec("shape", "INT64", (2,))


@pytest.mark.parametrize(
    ("data", "batchable"),
    [
        (relu(("n", 3)), True),
        (relu(("n", "h", "w")), True),
        (relu((2, 3)), False),
        (relu((None, 3)), False),
        (relu(("n", 3), out=("m", 3)), False),
        (relu(()), False),
        (FOREIGN["several"], False),
        (selected(), True),
    ],
    ids=["named", "three", "fixed", "unnamed", "other name", "scalar", "one without rows", "same name, other rows"],
)
def test_only_rows_of_one_name_all_over_are_batched(data: bytes, batchable: bool) -> None:
    assert Runtime(data, "cpu", 1).batchable == batchable


def test_outputs_that_are_no_tensors_are_refused_with_words() -> None:
    with pytest.raises(BundleError, match="the output y is a seq"):
        Runtime(sequence(), "cpu", 1)
    inside = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    node = helper.make_node("SequenceLength", ["x"], ["y"])
    with pytest.raises(BundleError, match="the input x is a seq"):
        Runtime(graph([node], [inside], [("y", TensorProto.INT64, ())]), "cpu", 1)


@pytest.mark.parametrize("opset", range(9, 21))
def test_opsets_9_to_20_run(opset: int) -> None:
    runtime = Runtime(relu(("n", 3), opset, ir=4 if opset < 12 else 8), "cpu", 1)
    (y,) = runtime.run({"x": np.array([[-1.0, 0.0, 2.0]], np.float32)}, ["y"])
    assert y.tolist() == [[0.0, 0.0, 2.0]]


def test_a_run_that_fails_says_nothing_of_the_runtimes_own() -> None:
    odd: Any = np.zeros((1, 4), np.float32)
    with pytest.raises(InferenceFailed) as caught:
        Runtime(relu(("n", 3)), "cpu", 1).run({"x": odd}, ["y"])
    assert str(caught.value) == "the model's run failed"


LISTED: tuple[tuple[str, Sequence[int | str]], ...] = (("x", ["n", 3]), ("w", [3]))


def test_initializers_that_are_listed_as_inputs_are_no_inputs() -> None:
    weights = numpy_helper.from_array(np.ones(3, np.float32), "w")
    x, w = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in LISTED)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    made = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x, w], [out], [weights])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
    onnx.checker.check_model(model)
    assert [spec.name for spec in Runtime(model.SerializeToString(), "cpu", 1).inputs] == ["x"]


def sized_by_values() -> bytes:
    """A vector of ones as long as a number says, in a function of the graph's own."""
    made = helper.make_function(
        "own", "Ones", ["n"], ["y"], [helper.make_node("ConstantOfShape", ["n"], ["y"])], [helper.make_opsetid("", 20)]
    )
    found = helper.make_graph(
        [helper.make_node("Ones", ["n"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return bytes(helper.make_model(found, opset_imports=opsets, ir_version=10, functions=[made]).SerializeToString())


@pytest.mark.parametrize("data", [looping(), outside("x", "branch"), sized_by_values()], ids=["loop", "if", "function"])
def test_a_graph_that_does_more_for_some_values_is_told_and_kept_from_the_event_loop(data: bytes) -> None:
    assert not Operators(data).steady


def test_of_other_graphs_the_time_hangs_on_shapes_alone(bundle_folder: Path) -> None:
    assert all(Operators(data).steady for data in FOREIGN.values())
    assert Operators(read_bundle(bundle_folder).graph).steady


def test_a_loop_is_not_run_in_the_event_loop_though_zeros_take_no_time() -> None:
    runtime, rows = open_graph(looping(), "cpu", 1, 32)
    assert rows == 0 and not runtime.operators.steady
    assert open_graph(relu(("n", 3)), "cpu", 1, 32)[1] > 1


def test_a_runtime_that_was_ended_ends_its_runs_and_begins_none() -> None:
    runtime = Runtime(looping(), "cpu", 1)
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(runtime.run, {"count": np.array([10**9])}, ["y"])
        with pytest.raises(TimeoutError):
            endless.result(0.2)
        runtime.end()
        assert isinstance(endless.exception(10), NotReady)
    with pytest.raises(NotReady):
        runtime.run({"count": np.array([1])}, ["y"])
