"""Two ways to ask a model the same questions: a bundle on this machine, or a service's address."""

import base64
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
import numpy as np

from models.bundle import find_bundles, read_bundle, version_key
from models.errors import BundleError, FocalserveError, InvalidInput
from models.fit import Pixels
from models.image import load_input
from service.engine import Engine
from service.predictions import RowAnswer, answer_rows, predict_items
from service.runtime import Device
from service.schemas import LossOptions
from service.scoring import Given, score_labels
from service.settings import usable_cores


class ServiceUnreachable(FocalserveError):
    """The service did not answer, or not with what it should."""


@dataclass(frozen=True)
class LabelledImage:
    """One image with its given label.

    Attributes:
        id: what the answer calls it.
        data: the encoded file.
        label: a name, or a list of names (multi-label).
    """

    id: str
    data: bytes
    label: str | list[str]


class Model(Protocol):
    """Answers as the service does."""

    def predict(self, images: Sequence[tuple[str, bytes]], top_k: int) -> list[dict[str, Any]]:
        """One answer of /predict per (id, encoded file)."""
        ...

    def loss(self, images: Sequence[LabelledImage], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One item of /loss per image."""
        ...


class LocalModel:
    """A bundle in this process: the service's own code without HTTP.

    Args:
        folder: a bundle, or a folder that holds exactly one model.
        device: auto, cpu or cuda.
        name: which model, where the folder holds several.

    Raises:
        BundleError: there is no such bundle, or it must not be used.
    """

    def __init__(self, folder: Path, device: Device, name: str | None) -> None:
        self._engine = Engine(read_bundle(choose_bundle(folder, name)), device, usable_cores())
        self._pool = ThreadPoolExecutor(usable_cores())

    def predict(self, images: Sequence[tuple[str, bytes]], top_k: int) -> list[dict[str, Any]]:
        """One answer of /predict per (id, encoded file)."""
        answers = self._answers([data for _, data in images])
        return predict_items(self._engine.card, answers, [name for name, _ in images], top_k)

    def loss(self, images: Sequence[LabelledImage], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One item of /loss per image."""
        answers = self._answers([image.data for image in images])
        given = [
            Given(answer.logits if isinstance(answer, RowAnswer) else answer, image.label, image.id)
            for answer, image in zip(answers, images, strict=True)
        ]
        items: list[dict[str, Any]] = score_labels(self._engine.card, given, LossOptions(**options))["items"]
        return items

    def _answers(self, images: Sequence[bytes]) -> list[RowAnswer | Exception]:
        decoded = list(self._pool.map(partial(_decode, self._engine), images))
        good = [pixels for pixels in decoded if not isinstance(pixels, Exception)]
        rows = iter(answer_rows(self._engine.card, self._engine.run(np.stack(good))) if good else ())
        return [pixels if isinstance(pixels, Exception) else next(rows) for pixels in decoded]


class RemoteModel:
    """A running service.

    Args:
        url: its address, such as http://127.0.0.1:8000.
        name: which of its models; the default one where left out.
    """

    def __init__(self, url: str, name: str | None) -> None:
        self._client = httpx.Client(base_url=url, timeout=httpx.Timeout(120.0, connect=5.0))
        self._name = {} if name is None else {"model": name}

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connections."""
        self._client.close()

    def predict(self, images: Sequence[tuple[str, bytes]], top_k: int) -> list[dict[str, Any]]:
        """One answer of /predict per (id, encoded file)."""
        inputs = [{"id": name, "image": base64.b64encode(data).decode()} for name, data in images]
        answer = self._post("/predict", {"inputs": inputs, "top_k": top_k, **self._name})
        return self._items(answer, "predictions", len(images))

    def loss(self, images: Sequence[LabelledImage], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One item of /loss per image."""
        inputs = [
            {"id": image.id, "image": base64.b64encode(image.data).decode(), "label": image.label} for image in images
        ]
        return self._items(self._post("/loss", {"inputs": inputs, **options, **self._name}), "items", len(images))

    def _post(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._client.post(path, json=document)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceUnreachable(f"{self._client.base_url}: {error or type(error).__name__}") from None
        try:
            body = answer.json()
        except json.JSONDecodeError:
            raise ServiceUnreachable(f"{self._client.base_url}: status {answer.status_code}, not JSON") from None
        if answer.status_code == 200 and isinstance(body, dict):
            return body
        detail = body.get("detail") if isinstance(body, dict) else None
        raise (InvalidInput if answer.status_code in (404, 422) else ServiceUnreachable)(
            f"the service answered {answer.status_code}: {detail or 'no reason given'}"
        )

    def _items(self, answer: dict[str, Any], field: str, count: int) -> list[dict[str, Any]]:
        items = answer.get(field)
        if not isinstance(items, list) or len(items) != count:
            raise ServiceUnreachable(f"{self._client.base_url}: the answer holds no {count} {field}")
        return items


def choose_bundle(folder: Path, name: str | None) -> Path:
    """The bundle in a folder: the newest version of the only model, or of the one that is named.

    Raises:
        BundleError: none, or several and none named.
    """
    newest: dict[str, Path] = {}
    for one in sorted(find_bundles(folder), key=lambda one: version_key(one.name)):
        newest[one.parent.name] = one
    found = list(newest.values())
    named = [bundle for bundle in found if name is None or bundle.parent.name == name]
    if len(named) == 1:
        return named[0]
    known = ", ".join(bundle.parent.name for bundle in found)
    raise BundleError(f"{folder}: say which model with --model: {known}" if found else f"{folder}: there is no bundle")


def _decode(engine: Engine, data: bytes) -> Pixels | Exception:
    try:
        return load_input(data, engine.card.input).pixels
    except InvalidInput as error:
        return error
