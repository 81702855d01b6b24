import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import InvalidRequest
from service.tensors import (
    NUMPY,
    WireTensor,
    as_text,
    datatype_of,
    from_binary,
    from_json,
    read_head,
    to_binary,
    to_json_data,
    top_classes,
)

NUMBERS = [name for name in NUMPY if name != "BYTES"]


def head(datatype: str, *shape: int) -> WireTensor:
    return WireTensor("x", datatype, shape)


def elements(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


@pytest.mark.parametrize("datatype", NUMBERS)
def test_binary_comes_back_as_it_went(datatype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(NUMPY[datatype])
    assert datatype_of(array) == datatype
    again = from_binary(head(datatype, 2, 3), memoryview(to_binary(array)))
    assert again.dtype == array.dtype and np.array_equal(again, array)


@pytest.mark.parametrize("datatype", [name for name in NUMPY if name not in ("FP16", "BYTES")])
def test_json_comes_back_as_it_went_flat_or_nested(datatype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(NUMPY[datatype])
    for data in (to_json_data(array), array.tolist()):
        again = from_json(head(datatype, 2, 3), data)
        assert again.dtype == array.dtype and np.array_equal(again, array)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, min_side=0, max_side=4)))
def test_any_numbers_in_any_shape_survive_binary(array: Any) -> None:
    again = from_binary(head("FP32", *array.shape), memoryview(to_binary(array)))
    np.testing.assert_array_equal(again, array)


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_any_bytes_survive_binary(parts: list[bytes]) -> None:
    data = elements(*parts)
    found = from_binary(head("BYTES", len(parts)), memoryview(data))
    assert found.tolist() == parts and to_binary(found) == data


def test_elements_of_5_and_8_bytes_take_21() -> None:
    assert len(to_binary(np.array([b"12345", b"12345678"], np.object_))) == 21


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((1,), elements(b"a", b"b")),
        ((3,), elements(b"a", b"b")),
        ((1,), b"\x01"),
        ((1,), struct.pack("<I", 2**32 - 1) + b"abc"),
        ((1,), struct.pack("<I", 4) + b"abc"),
        ((2,), elements(b"a") + b"\0\0"),
        ((0,), elements(b"a")),
        ((2**31,), b""),
    ],
    ids=["too many", "too few", "short prefix", "huge prefix", "lying prefix", "cut prefix", "none", "huge shape"],
)
def test_bytes_that_do_not_add_up_are_refused(shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="x: "):
        from_binary(head("BYTES", *shape), memoryview(data))


@pytest.mark.parametrize("size", [0, 23, 25, 240])
def test_numbers_of_another_length_are_refused_before_use(size: int) -> None:
    with pytest.raises(InvalidRequest, match="24 bytes"):
        from_binary(head("FP32", 2, 3), memoryview(bytes(size)))


def test_a_bool_is_0_or_1() -> None:
    assert from_binary(head("BOOL", 2), memoryview(b"\0\1")).tolist() == [False, True]
    with pytest.raises(InvalidRequest, match="BOOL"):
        from_binary(head("BOOL", 2), memoryview(b"\0\2"))


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", (2,), [1.0]),
        ("FP32", (1,), [1.0, 2.0]),
        ("FP32", (1,), 5),
        ("FP32", (1,), "5"),
        ("FP32", (1,), {"a": 1}),
        ("FP32", (1,), None),
        ("FP32", (1,), [True]),
        ("FP32", (1,), ["1"]),
        ("FP32", (1,), [None]),
        ("FP32", (1,), [1e39]),
        ("FP32", (1,), [10**400]),
        ("FP64", (1,), [10**400]),
        ("FP16", (1,), [1.0]),
        ("INT8", (1,), [128]),
        ("UINT8", (1,), [-1]),
        ("INT64", (1,), [2**63]),
        ("UINT64", (1,), [2**64]),
        ("INT32", (1,), [1.0]),
        ("BOOL", (1,), [1]),
        ("BYTES", (1,), [1]),
        ("FP32", (3,), [[1.0], [2.0, 3.0], 4.0]),
        ("FP32", (2,), [1.0, [2.0]]),
        ("FP32", (1,), [{}]),
    ],
)
def test_json_data_that_does_not_fit_is_refused(datatype: str, shape: tuple[int, ...], data: Any) -> None:
    with pytest.raises(InvalidRequest):
        from_json(head(datatype, *shape), data)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"name": 5, "datatype": "FP32", "shape": [1]},
        {"name": "x", "datatype": "FP33", "shape": [1]},
        {"name": "x", "datatype": ["FP32"], "shape": [1]},
        {"name": "x", "datatype": "FP32"},
        {"name": "x", "datatype": "FP32", "shape": "1"},
        {"name": "x", "datatype": "FP32", "shape": [-1]},
        {"name": "x", "datatype": "FP32", "shape": [1.0]},
        {"name": "x", "datatype": "FP32", "shape": [True]},
        {"name": "x", "datatype": "FP32", "shape": [2**40]},
        {"name": "x", "datatype": "FP32", "shape": [2**31, 2**31]},
        {"name": "x", "datatype": "FP32", "shape": [0, 2**31, 2**31]},
        {"name": "x", "datatype": "FP32", "shape": [1] * 33},
        {"name": "x", "datatype": "FP32", "shape": [2**31] * 100_000},
    ],
    ids=range(16),
)
def test_a_head_that_is_none_is_refused(document: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs\.0"):
        read_head(document, "inputs.0")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8])
def test_the_largest_come_first_and_equal_ones_in_their_order(dtype: Any) -> None:
    rows = np.array([[1, 5, 5, 0], [9, 0, 1, 2]], dtype)
    found = top_classes(rows, 3, ["a", "b", "c", "d"])
    shown = [[one.decode().split(":")[1:] for one in row] for row in found]
    assert shown == [[["1", "b"], ["2", "c"], ["0", "a"]], [["0", "a"], ["3", "d"], ["2", "c"]]]
    assert float(found[1, 0].decode().split(":")[0]) == 9.0


def test_classes_without_names_have_none_and_more_than_there_are_is_all() -> None:
    assert top_classes(np.array([[0.5, 0.25]], np.float32), 9, None).tolist() == [[b"0.500000:0", b"0.250000:1"]]
    assert top_classes(np.zeros((0, 3), np.float32), 2, None).shape == (0, 2)
    assert top_classes(np.array([[True, False]]), 1, None).tolist() == [[b"1:0"]]


@pytest.mark.parametrize("odd", [np.array([b"a"], np.object_), np.array(1.0)], ids=["text", "scalar"])
def test_classes_of_what_is_no_row_of_numbers_are_refused(odd: Any) -> None:
    with pytest.raises(InvalidRequest, match="classification"):
        top_classes(odd, 1, None)


def test_text_is_utf_8() -> None:
    assert as_text(np.array([["é".encode()]], np.object_)).tolist() == [["é"]]
    with pytest.raises(InvalidRequest, match="UTF-8"):
        as_text(np.array([b"\xff"], np.object_))
