"""Pictures of a long request on their way to another process, and what its net says of them on the way back."""

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.card import ModelCard
from models.errors import ImageTooLarge, InvalidInput, UndecodableImage
from service.decoding import Encoded
from service.items import Row
from service.predictions import RowAnswer, answer_rows

_LENGTH = struct.Struct("<I")
_ERRORS = {kind.__name__: kind for kind in (InvalidInput, UndecodableImage, ImageTooLarge)}
Rows = list[Row[RowAnswer] | Exception]


class Asked(NamedTuple):
    """Pictures to be decoded and run.

    Attributes:
        mark: comes back with the answer.
        model: name, version and checksum of the bundle.
        images: encoded.
    """

    mark: int
    model: tuple[str, str, str]
    images: Sequence[Encoded]


def pack_images(asked: Asked) -> bytes:
    """Pictures as bytes."""
    datas = [image.encode() if isinstance(image, str) else image for image in asked.images]
    text = [isinstance(image, str) for image in asked.images]
    head = {"mark": asked.mark, "model": asked.model, "lengths": [len(data) for data in datas], "text": text}
    return _join(head, *datas)


def unpack_images(message: bytes) -> Asked:
    """What `pack_images` packed."""
    head, body = _split(message)
    images, at = list[Encoded](), 0
    for length, is_text in zip(head["lengths"], head["text"], strict=True):
        data = bytes(body[at : at + length])
        images.append(data.decode() if is_text else data)
        at += length
    name, version, checksum = head["model"]
    return Asked(head["mark"], (name, version, checksum), images)


def pack_rows(mark: int, rows: Sequence[Row[Any] | Exception] | None) -> bytes:
    """What became of pictures as bytes; None where they could not be run here."""
    if rows is None:
        return _join({"mark": mark, "rows": None})
    errors = {n: (type(row).__name__, str(row)) for n, row in enumerate(rows) if isinstance(row, Exception)}
    good = [row for row in rows if not isinstance(row, Exception)]
    times = np.array([(row.decoded, row.inferred) for row in good], np.float64).reshape(-1, 2)
    logits = np.array([row.answer.logits for row in good], np.float32)
    return _join({"mark": mark, "rows": len(rows), "errors": errors}, times.tobytes(), logits.tobytes())


def unpack_rows(message: bytes, card: ModelCard) -> Rows | None:
    """What `pack_rows` packed, as `run_part` says it; None where they are to be run elsewhere."""
    head, body = _split(message)
    if head["rows"] is None or any(kind not in _ERRORS for kind, _ in head["errors"].values()):
        return None
    good = head["rows"] - len(head["errors"])
    times = np.frombuffer(body, np.float64, 2 * good).reshape(good, 2)
    logits: NDArray[np.float32] = np.frombuffer(body, np.float32, offset=times.nbytes).reshape(good, card.outputs)
    answers = zip(answer_rows(card, logits), times.tolist(), strict=True) if good else iter(())
    errors = {int(n): _ERRORS[kind](text) for n, (kind, text) in head["errors"].items()}
    return [errors[n] if n in errors else _row(*next(answers)) for n in range(head["rows"])]


def mark_of(message: bytes) -> int:
    """Of what `pack_rows` packed."""
    return int(_split(message)[0]["mark"])


def _row(answer: RowAnswer | Exception, times: list[float]) -> Row[RowAnswer] | Exception:
    return answer if isinstance(answer, Exception) else Row(answer, *times)


def _join(head: dict[str, Any], *parts: bytes) -> bytes:
    text = json.dumps(head).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *parts])


def _split(message: bytes) -> tuple[dict[str, Any], memoryview]:
    end = _LENGTH.size + _LENGTH.unpack_from(message)[0]
    head: dict[str, Any] = json.loads(message[_LENGTH.size : end])
    return head, memoryview(message)[end:]
