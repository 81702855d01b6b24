"""Whether a graph's answer to a row is the same in any company: rows of several requests may share a run only then.

That first sides have one name says that rows go in and come out, not that none looks at another, as in a softmax over
the rows.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceFailed
from service.runtime import CPU, DATATYPES, Runtime, TensorSpec

Feeds = dict[str, NDArray[Any]]
_ROWS = 3
_SIDES = (4, 32, 224)
"""What is tried for sides that vary besides the first."""
_NEAR, _NEAR_ROUGHLY = 1e-3, 1e-2
"""Part of an output's largest number by which arithmetic may change it in other company; of FP16, and on CUDA."""


def rows_stand_alone(runtime: Runtime) -> bool:
    """Runs made-up rows alone, together and together in the other order; False where that fails, or could not tell.

    What hangs on values (a largest number, a scale that is shared, a branch) may mix other rows than those tried.

    Args:
        runtime: of a graph whose inputs and outputs all have rows.
    """
    if not runtime.operators.by_rows:
        return False
    for feeds in _made_up(runtime):
        try:
            alone = [_run(runtime, feeds, [row]) for row in range(_ROWS)]
            return all(_same(runtime, alone, feeds, order) for order in (range(_ROWS), range(_ROWS)[::-1]))
        except InferenceFailed:
            continue
    return False


def _made_up(runtime: Runtime) -> Iterator[Feeds]:
    varies = any(-1 in spec.shape[1:] for spec in runtime.inputs)
    for side in _SIDES if varies else _SIDES[:1]:
        random = np.random.default_rng(0)
        yield {spec.name: _values(spec, side, random) for spec in runtime.inputs}


def _values(spec: TensorSpec, side: int, random: np.random.Generator) -> NDArray[Any]:
    """Numbers that most graphs take: of a normal distribution, or 0 and 1, which are also indices and flags."""
    shape = [_ROWS, *(side if one == -1 else one for one in spec.shape[1:])]
    if spec.datatype == "BYTES":
        return random.integers(0, 2, shape).astype(str).astype(np.object_)
    kind = np.dtype(dict(DATATYPES.values())[spec.datatype])
    return (random.normal(size=shape) if kind.kind == "f" else random.integers(0, 2, shape)).astype(kind)


def _run(runtime: Runtime, feeds: Feeds, rows: list[int]) -> list[NDArray[Any]]:
    return runtime.run({name: one[rows] for name, one in feeds.items()}, [spec.name for spec in runtime.outputs])


def _same(runtime: Runtime, alone: list[list[NDArray[Any]]], feeds: Feeds, order: range) -> bool:
    joined = _run(runtime, feeds, list(order))
    roughly = runtime.device.provider != CPU
    return all(
        output.shape[:1] == (_ROWS,)
        and all(_near(output[place : place + 1], alone[row][n], roughly) for place, row in enumerate(order))
        for n, output in enumerate(joined)
    )


def _near(one: NDArray[Any], other: NDArray[Any], roughly: bool) -> bool:
    if one.shape != other.shape or one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    near = _NEAR_ROUGHLY if roughly or one.dtype == np.float16 else _NEAR
    finite = np.abs(other[np.isfinite(other)])
    room = near * float(finite.max(initial=0.0))
    return bool(np.allclose(one.astype(np.float64), other.astype(np.float64), rtol=0.0, atol=room, equal_nan=True))
