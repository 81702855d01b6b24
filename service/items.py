"""What a model's batcher takes, and how a batch of it is run: pictures, decoded or not yet, and tensors as they are."""

import itertools
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.card import ModelCard
from models.fit import Fitted, Pixels
from models.image import ImageLimits
from service.batch import THREADED
from service.decoding import Decoded, Encoded, decode
from service.detector import Wish
from service.errors import InferenceFailed, InvalidRequest, ServiceError
from service.metrics import ModelObserver
from service.onnx_words import words_of
from service.runtime import Runtime

Answer = TypeVar("Answer")
# What ONNX Runtime says of a run that failed.
_OPERATOR = re.compile(r"while running (\w+) node")
_TOO_MUCH = re.compile(r"allocate memory|bad_alloc")
_NOT_THE_INPUT = re.compile(r"CUDA|CUDNN|CUBLAS")


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of tensors that one request sent, to be run as they are.

    Attributes:
        arrays: one per input of the model, in its order; first axis = rows.
        rows: how many.
        more: inputs that the model does not need, by name; with these it is run alone.
    """

    arrays: tuple[NDArray[Any], ...]
    rows: int
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """Pictures of one request that one thread decodes and runs; its result is a list, of a row or an error each.

    Attributes:
        images: encoded.
        limits: of each.
    """

    images: Sequence[Encoded]
    limits: ImageLimits


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A picture that the thread that runs it decodes.

    Attributes:
        image: encoded.
        limits: of it.
    """

    image: Encoded
    limits: ImageLimits


Picture = Decoded | Undecoded | Pixels
"""A picture: decoded here, not yet, or by the client."""


@dataclass(frozen=True, slots=True)
class Look:
    """A picture for a detector.

    Attributes:
        picture: to be looked at.
        wish: what is wanted of it.
    """

    picture: Picture
    wish: Wish


Item = Picture | Part | Look | Block


class Row(NamedTuple, Generic[Answer]):
    """What a bundle's batch says of one picture.

    Attributes:
        answer: of the model: `RowAnswer` of a classifier, `Found` or `Raw` of a detector.
        decoded: seconds that decoding the picture took; 0 where pixels came.
        inferred: seconds that the run of its batch took.
    """

    answer: Answer
    decoded: float
    inferred: float


Rows = list[Row[Answer] | Exception]
Infer = Callable[[list[Fitted]], Sequence[Answer | Exception]]
"""The net's answers to pictures."""


def weigh(item: Item) -> int:
    """How many images (rows) an item is; at least one."""
    return max(1, item.rows) if isinstance(item, Block) else len(item.images) if isinstance(item, Part) else 1


def kind_of(item: Item) -> Hashable:
    """What items of a batch have in common."""
    if isinstance(item, Look):
        return item.wish
    if isinstance(item, Part):
        return THREADED
    if isinstance(item, Block):
        return id(item) if item.more else tuple(array.shape[1:] for array in item.arrays)
    return None


def measure(weights: Sequence[int], results: Sequence[Any], seconds: float) -> tuple[int, float]:
    """As `batch.Measure`: of a part the pictures that were decoded; of any pictures without their decoding."""
    parts = [[one for one in result if isinstance(one, Row)] for result in results if isinstance(result, list)]
    if parts:
        return sum(map(len, parts)), sum([part[0].inferred for part in parts if part])
    return sum(weights), results[0].inferred if results and isinstance(results[0], Row) else seconds


def run_pictures(
    pictures: Iterable[Picture], card: ModelCard, observer: ModelObserver, infer: Infer[Answer]
) -> Rows[Answer]:
    """A row or an error for each picture.

    Args:
        pictures: to be run.
        card: of the model.
        observer: metrics of the model.
        infer: runs what was decoded, where anything was.
    """
    found = [_decoded(one, card, observer) for one in pictures]
    decoded = [one for one in found if isinstance(one, Decoded)]
    if not decoded:
        return [one for one in found if isinstance(one, Exception)]
    start = perf_counter()
    try:
        answers = infer([one.fitted for one in decoded])
    except Exception as error:  # what is wrong with the others is still told
        answers = [error] * len(decoded)
    inferred = perf_counter() - start
    observer.inferred(inferred)
    rows = iter([_row(answer, one, inferred) for answer, one in zip(answers, decoded, strict=True)])
    return [one if isinstance(one, Exception) else next(rows) for one in found]


def run_part(part: Part, card: ModelCard, observer: ModelObserver, infer: Infer[Answer]) -> Rows[Answer]:
    """A row or an error for each picture of a part; the other arguments are those of `run_pictures`."""
    return run_pictures([Undecoded(image, part.limits) for image in part.images], card, observer, infer)


def _decoded(picture: Picture, card: ModelCard, observer: ModelObserver) -> Decoded | Exception:
    if isinstance(picture, np.ndarray):
        return Decoded(Fitted(picture, (1.0, 1.0), (0.0, 0.0), (picture.shape[1], picture.shape[0])), 0.0)
    if isinstance(picture, Decoded):
        return picture
    found = decode(picture.image, card, picture.limits)
    if isinstance(found, Decoded):
        observer.decoded(found.seconds)
    return found


def _row(answer: Answer | Exception, picture: Decoded, inferred: float) -> Row[Answer] | Exception:
    return answer if isinstance(answer, Exception) else Row(answer, picture.seconds, inferred)


def stack(pictures: Sequence[Fitted]) -> Pixels:
    """Their pixels, (N, height, width, 3)."""
    first = pictures[0].pixels
    if len(pictures) == 1:
        return first[None]
    found = np.empty((len(pictures), *first.shape), first.dtype)  # np.stack takes twice as long for few
    for n, one in enumerate(pictures):
        found[n] = one.pixels
    return found


def run_blocks(runtime: Runtime, blocks: Sequence[Block]) -> Sequence[Any]:
    """Blocks of one kind to the outputs of each, a tuple of arrays in the graph's order, or what is wrong with it."""
    names = [spec.name for spec in runtime.outputs]
    columns = zip(*(block.arrays for block in blocks), strict=True)
    feeds = {
        spec.name: column[0] if len(blocks) == 1 else np.concatenate(column)
        for spec, column in zip(runtime.inputs, columns, strict=True)
    }
    feeds.update(blocks[0].more)
    try:
        outputs = runtime.run(feeds, names)
    except InferenceFailed as error:
        return [_refusal(error)] if len(blocks) == 1 else _each_alone(runtime, blocks)
    if len(blocks) == 1:
        return [tuple(outputs)]
    rows = sum(block.rows for block in blocks)
    if any(output.shape[:1] != (rows,) for output in outputs):
        return _each_alone(runtime, blocks)
    ends = list(itertools.accumulate([block.rows for block in blocks], initial=0))
    return [tuple([output[a:b] for output in outputs]) for a, b in itertools.pairwise(ends)]


def _each_alone(runtime: Runtime, blocks: Sequence[Block]) -> Sequence[Any]:
    return [run_blocks(runtime, [block])[0] for block in blocks]


def _refusal(failed: InferenceFailed) -> ServiceError:
    """Why a graph without a card did not run: mostly numbers that one of its operators does not take."""
    said = str(failed.__cause__)
    operator = _OPERATOR.search(said)
    if operator is None or _NOT_THE_INPUT.search(said):
        return failed
    if _TOO_MUCH.search(said):
        return InvalidRequest(f"this input makes the model's {operator[1]} ask for more memory than there is")
    why = words_of(failed.__cause__) if failed.__cause__ else ""
    return InvalidRequest(f"the model does not take this input, its {operator[1]} failed" + (f": {why}" if why else ""))
