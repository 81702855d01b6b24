"""What /predict and /loss do where the model is a detector."""

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from pydantic_core import to_json

from models.card import ModelCard
from models.task import Floats, ScoreOptions
from service.batch import Timed
from service.box_answers import GivenBoxes, box_loss_answer, box_options, read_given, score_picture
from service.box_items import PICTURES_AT_ONCE, arrays_of, check_item
from service.detector import RAW, Raw, Wish
from service.errors import BodyTooLarge, InvalidRequest
from service.exchange import Call, Reply
from service.loss_item import LossItem
from service.schemas import LossOptions, PredictOptions
from service.served import Served
from service.state import ServiceState
from service.timing import tell

_CLASSIFIERS = ("top_k",)
_DETECTORS = ("score_threshold", "iou_threshold", "max_detections")


def wish_of(card: ModelCard, asked: PredictOptions) -> Wish | None:
    """What a request wants of a detector; None of a classifier.

    Raises:
        InvalidRequest: an option of the other kind of model.
    """
    wrong = _CLASSIFIERS if card.detector else _DETECTORS
    for name in asked.model_fields_set.intersection(wrong):
        kind = "detector" if card.detector else "classifier"
        raise InvalidRequest(f"{name}: model {card.name} is a {kind}, which has no such option")
    if card.detector is None:
        return None
    spec = card.detector
    return Wish(
        spec.score_threshold if asked.score_threshold is None else asked.score_threshold,
        spec.iou_threshold if asked.iou_threshold is None else asked.iou_threshold,
        spec.max_detections if asked.max_detections is None else asked.max_detections,
    )


async def box_loss(
    state: ServiceState,
    call: Call,
    served: Served,
    card: ModelCard,
    items: Sequence[LossItem],
    asked: LossOptions,
    start: float,
) -> Reply:
    """Scores given boxes: a few pictures are run, scored and forgotten before the next.

    Raises:
        InvalidRequest: boxes, arrays or options that do not fit.
    """
    options = box_options(card, asked)
    _check(card, items, state.settings.max_rows)
    given = await asyncio.to_thread(read_given, card, [item.boxes for item in items], [item.id for item in items])
    results: list[Timed | Exception] = []
    scores = []
    for at in range(0, len(items), PICTURES_AT_ONCE):
        part = items[at : at + PICTURES_AT_ONCE]
        images = [item.image for item in part if item.image is not None]
        ran = await state.images.run(served, card, images, call, RAW) if images else []
        found = iter(ran)
        raw = [arrays_of(card, item) if item.image is None else _answer(next(found)) for item in part]
        scores += await asyncio.to_thread(_score, card, raw, given[at : at + PICTURES_AT_ONCE], options)
        results += [one if isinstance(one, Exception) else _forget(one) for one in ran]
    if len(scores) == 1 and isinstance(scores[0], Exception):
        raise scores[0]
    encoding = perf_counter()
    observe = served.observer.labelled if _as_card(options, card) else _nobody
    answer = box_loss_answer(card, given, scores, options, asked.max_missing, observe)
    document = {"model": {"name": card.name, "version": card.version}, **answer}
    reply = Reply(to_json(document, inf_nan_mode="null"))
    timed = [one for one in results if isinstance(one, Timed)]
    return tell(call, reply, start, encoding, timed, served.observer)


def _score(
    card: ModelCard, raw: Sequence[Raw | Exception], given: Sequence[GivenBoxes], options: ScoreOptions
) -> list[Any]:
    return [score_picture(card, one, boxes, options) for one, boxes in zip(raw, given, strict=True)]


def _answer(result: Timed | Exception) -> Raw | Exception:
    return result if isinstance(result, Exception) else result.result.answer


def _forget(timed: Timed) -> Timed:
    """The times without the arrays."""
    return timed._replace(result=timed.result._replace(answer=None))


def _check(card: ModelCard, items: Sequence[LossItem], most: int) -> None:
    for i, item in enumerate(items):
        try:
            check_item(card, item)
        except InvalidRequest as error:
            raise InvalidRequest(f"inputs.{i}: {error}") from None
        except BodyTooLarge as error:
            raise BodyTooLarge(f"inputs.{i}.{error}") from None
    count = sum(len(item.boxes or ()) for item in items)
    if count > most:
        raise BodyTooLarge(f"{count} boxes in one request; {most} are allowed")


def _as_card(options: ScoreOptions, card: ModelCard) -> bool:
    return (options.gamma, options.alpha, options.label_smoothing) == (card.loss.gamma, card.loss.alpha, 0.0)


def _nobody(label: str, losses: Floats) -> None:
    """Tells nobody."""
