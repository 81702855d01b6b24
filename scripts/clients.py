"""Two ways to ask a model the same questions: a bundle on this machine, or a service's address."""

import base64
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, Self, cast

import httpx
import numpy as np

from models.bundle import CARD_FILE, version_key
from models.card import ModelCard
from models.errors import BundleError, FocalserveError, InvalidInput
from models.fit import Fitted
from models.image import load_input
from service.box_answers import box_loss_answer, box_options, detect_items, read_given, score_picture
from service.box_routes import wish_of
from service.detector import RAW, DetectorEngine, Found, Raw, Wish
from service.engine import Engine
from service.model_folder import find_models, open_engine
from service.predictions import RowAnswer, answer_rows, predict_items
from service.runtime import Device
from service.schemas import LossOptions, PredictOptions
from service.scoring import Given, score_labels
from service.settings import usable_cores

_AT_ONCE = 16
"""Pictures whose raw outputs a detector holds at once: those of one may be megabytes."""


class ServiceUnreachable(FocalserveError):
    """The service did not answer, or not with what it should."""


@dataclass(frozen=True)
class LabelledImage:
    """One image with what it was given.

    Attributes:
        id: what the answer calls it.
        data: the encoded file.
        label: a name, a list of names (multi-label), or boxes as models.box_labels reads them.
    """

    id: str
    data: bytes
    label: str | list[str] | list[dict[str, Any]]


class Model(Protocol):
    """Answers as the service does."""

    @property
    def detects(self) -> bool:
        """Whether it is a detector: its answers are boxes, and so are the labels it takes."""
        ...

    def predict(self, images: Sequence[tuple[str, bytes]], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One answer of /predict per (id, encoded file)."""
        ...

    def loss(self, images: Sequence[LabelledImage], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One item of /loss per image."""
        ...


def open_bundle(folder: Path, device: Device, name: str | None) -> Model:
    """A bundle in this process: the service's own code without HTTP.

    Args:
        folder: a bundle, or a folder that holds exactly one model.
        device: auto, cpu or cuda.
        name: which model, where the folder holds several.

    Raises:
        BundleError: there is no such bundle, or it must not be used.
    """
    engine = open_engine(choose_bundle(folder, name), device, usable_cores())
    return LocalDetector(engine) if isinstance(engine, DetectorEngine) else LocalClassifier(engine)


class LocalClassifier:
    """A classifier's bundle in this process.

    Args:
        engine: of the bundle.
    """

    detects = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pool = ThreadPoolExecutor(usable_cores())

    def predict(self, images: Sequence[tuple[str, bytes]], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One answer of /predict per (id, encoded file)."""
        asked = PredictOptions(**options)
        wish_of(self._engine.card, asked)
        answers = self._answers([data for _, data in images])
        return predict_items(self._engine.card, answers, [name for name, _ in images], asked.top_k)

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
        decoded = list(self._pool.map(partial(_decode, self._engine.card), images))
        good = [image.pixels for image in decoded if not isinstance(image, Exception)]
        rows = iter(answer_rows(self._engine.card, self._engine.run(np.stack(good))) if good else ())
        return [image if isinstance(image, Exception) else next(rows) for image in decoded]


class LocalDetector:
    """A detector's bundle in this process.

    Args:
        engine: of the bundle.
    """

    detects = True

    def __init__(self, engine: DetectorEngine) -> None:
        self._engine = engine
        self._pool = ThreadPoolExecutor(usable_cores())

    def predict(self, images: Sequence[tuple[str, bytes]], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One answer of /predict per (id, encoded file)."""
        card = self._engine.card
        wish = wish_of(card, PredictOptions(**options)) or self._engine.usual
        answers = cast("list[Found | Exception]", list(self._answers([data for _, data in images], wish)))
        return detect_items(card, answers, [name for name, _ in images])

    def loss(self, images: Sequence[LabelledImage], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One item of /loss per image."""
        card, asked = self._engine.card, LossOptions(**options)
        wanted = box_options(card, asked)
        given = read_given(card, [image.label for image in images], [image.id for image in images])
        answers = cast("Iterator[Raw | Exception]", self._answers([image.data for image in images], RAW))
        scores = [score_picture(card, raw, boxes, wanted) for raw, boxes in zip(answers, given, strict=True)]
        answer = box_loss_answer(card, given, scores, wanted, asked.max_missing, lambda _label, _losses: None)
        items: list[dict[str, Any]] = answer["items"]
        return items

    def _answers(self, images: Sequence[bytes], wish: Wish) -> Iterator[Raw | Found | Exception]:
        for start in range(0, len(images), _AT_ONCE):
            decoded = list(self._pool.map(partial(_decode, self._engine.card), images[start : start + _AT_ONCE]))
            good = [image for image in decoded if not isinstance(image, Exception)]
            rows = iter(self._engine.run(good, wish) if good else ())
            yield from (image if isinstance(image, Exception) else next(rows) for image in decoded)


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

    @cached_property
    def detects(self) -> bool:
        """Whether it is a detector."""
        name = self._name.get("model")
        tasks = {one["task"] for one in self._ask("GET", "/models") if name in (None, one["name"])}
        if len(tasks) > 1 and "detection" in tasks:
            raise InvalidInput("the service has classifiers and detectors: say which with --model")
        return "detection" in tasks

    def predict(self, images: Sequence[tuple[str, bytes]], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One answer of /predict per (id, encoded file)."""
        inputs = [{"id": name, "image": base64.b64encode(data).decode()} for name, data in images]
        answer = self._ask("POST", "/predict", {"inputs": inputs, **options, **self._name})
        return self._items(answer, "predictions", len(images))

    def loss(self, images: Sequence[LabelledImage], options: dict[str, Any]) -> list[dict[str, Any]]:
        """One item of /loss per image."""
        given = "boxes" if self.detects else "label"
        inputs = [
            {"id": image.id, "image": base64.b64encode(image.data).decode(), given: image.label} for image in images
        ]
        answer = self._ask("POST", "/loss", {"inputs": inputs, **options, **self._name})
        return self._items(answer, "items", len(images))

    def _ask(self, method: str, path: str, document: dict[str, Any] | None = None) -> Any:
        try:
            answer = self._client.request(method, path, json=document)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceUnreachable(f"{self._client.base_url}: {error or type(error).__name__}") from None
        try:
            body = answer.json()
        except json.JSONDecodeError:
            raise ServiceUnreachable(f"{self._client.base_url}: status {answer.status_code}, not JSON") from None
        if answer.status_code == 200 and isinstance(body, dict if document else list):
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
    found = dict[str, Path]()
    for known, versions in sorted(find_models(folder).items()):
        bundles = {version: path for version, path in versions.items() if (path / CARD_FILE).is_file()}
        if bundles:
            found[known] = bundles[max(bundles, key=version_key)]
    named = [path for known, path in found.items() if name is None or known == name]
    if len(named) == 1:
        return named[0]
    known = ", ".join(found)
    raise BundleError(f"{folder}: say which model with --model: {known}" if found else f"{folder}: there is no bundle")


def _decode(card: ModelCard, data: bytes) -> Fitted | Exception:
    try:
        return load_input(data, card.input)
    except InvalidInput as error:
        return error
