"""Logits and labels to the answer of /loss; used by the service and by the offline verbs. No HTTP, no images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.card import Calibration, ClassFacts, LossSpec, ModelCard
from models.classify import is_clipped, logits_of
from models.errors import InvalidInput, InvalidLabel
from models.online import quality_method
from models.reductions import Reduced, total
from models.task import Floats, LabelScores, ScoreOptions
from models.tasks import TASKS
from service.errors import InferenceFailed, InvalidRequest, item_problem
from service.label_answers import class_answers, item_answers
from service.schemas import LossOptions

Logits = NDArray[Any]
ObserveLosses = Callable[[str, Floats], None]
"""Takes a label and (N,) focal losses of items that were given it."""
_ROW_SUM_TOLERANCE = 1e-3
_PLAIN = (str, int)
"""Types of the labels that items share; True is no 1."""
_NOT_REDUCED = Reduced(None, 1.0, "none")


class Given(NamedTuple):
    """One label to score; a tuple, since a request may bring a hundred thousand.

    Attributes:
        row: (K,) logits or probabilities, or why there are none.
        label: as given.
        id: the caller's own name for it.
        kind: what the row is.
    """

    row: Logits | Exception
    label: Any
    id: str | None = None
    kind: Literal["logits", "probabilities"] = "logits"


def _nobody(label: str, losses: Floats) -> None:
    pass


def score_labels(
    card: ModelCard, given: Sequence[Given], asked: LossOptions, observe: ObserveLosses = _nobody
) -> dict[str, Any]:
    """Answer of /loss, without the model's name: parameters, the batch's loss, classes, items.

    Args:
        card: of the model.
        given: rows with their labels.
        asked: what the request overrides.
        observe: is told the losses of the model's own rows, where they are computed as the card says.

    Raises:
        InvalidRequest: a row or label that does not fit; names the first ten by index.
        InvalidInput: a parameter out of its range.
    """
    given = _with_finite(given)
    if asked.activation is not None:
        card = card_of_rows(_width(given), asked.activation, card)
    options = _options(card, asked)
    batch = _collect(card, given, options)
    raw = batch.raw if asked.activation is None else np.zeros(len(batch.rows), bool)
    scores = TASKS[card.task].score(batch.rows, batch.targets, card, options, raw)
    if asked.activation is None and _is_own_loss(card, options):
        _tell(observe, scores, batch, card)
    reduced = total(scores.terms, options.reduction) if options.reduction != "none" else _NOT_REDUCED
    gradient = scores.terms.gradient / (reduced.denominator or 1.0) if asked.return_gradient else None
    return {
        "parameters": {
            "gamma": options.gamma,
            "alpha": options.alpha,
            "label_smoothing": options.label_smoothing,
            "activation": card.activation,
            "quality_method": quality_method(card, raw),
            "temperature": card.calibration.temperature,
        },
        "loss": _summary(scores, reduced, options),
        "classes": class_answers(scores, _membership(batch.targets, card), card),
        "items": _items(given, batch, scores, card, gradient),
    }


def _summary(scores: LabelScores, reduced: Reduced, options: ScoreOptions) -> dict[str, Any]:
    count = int(scores.valid.sum())
    summed = float(scores.loss[scores.valid].sum())
    return {
        "reduction": options.reduction,
        "value": reduced.value,
        "denominator": reduced.denominator,
        "denominator_name": reduced.denominator_name,
        "sum": summed,
        "mean": summed / count if count else None,
        "count": count,
    }


def _items(
    given: Sequence[Given], batch: "_Batch", scores: LabelScores, card: ModelCard, gradient: Floats | None
) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = [
        {"index": i} if id_ is None else {"index": i, "id": id_} for i, (_, _, id_, _) in enumerate(given)
    ]
    for i, one in enumerate(given) if len(batch.where) < len(given) else ():
        if isinstance(one.row, Exception):
            items[i]["error"] = item_problem(one.row)
    for i, clipped, scored in zip(batch.where, batch.clipped, item_answers(scores, card), strict=True):
        items[i] |= scored
        if clipped:
            items[i]["clipped"] = True
    if gradient is not None:
        for i, row in zip(batch.where, gradient.tolist(), strict=True):
            items[i]["gradient"] = row
    return items


def _with_finite(given: Sequence[Given]) -> Sequence[Given]:
    """The same, an error in the place of each row that is not finite."""
    rows = [one.row for one in given if not isinstance(one.row, Exception)]
    if rows and np.isfinite(np.concatenate(rows)).all():
        return given
    return [one._replace(row=_finite(one.row)) for one in given]


def _finite(row: Logits | Exception) -> Logits | Exception:
    if isinstance(row, Exception) or np.isfinite(row).all():
        return row
    return InferenceFailed("the model answered numbers that are not finite")


def _width(given: Sequence[Given]) -> int:
    return next((len(one.row) for one in given if not isinstance(one.row, Exception)), 1)


def card_of_rows(count: int, activation: str, card: ModelCard) -> ModelCard:
    """A card for rows of `count` numbers of a model that is not served here: so many classes."""
    labels = card.labels if len(card.labels) == count else [str(k) for k in range(count)]
    return ModelCard.model_construct(
        task="multiclass" if activation == "softmax" else "multilabel",
        labels=labels,
        classes=[ClassFacts(label=label, train_count=0, prior=0.0) for label in labels],
        calibration=Calibration(),
        loss=LossSpec(gamma=card.loss.gamma),
        quantile_levels=[],
    )


def _options(card: ModelCard, asked: LossOptions) -> ScoreOptions:
    if asked.objectlab:
        raise InvalidRequest("objectlab: its scores are of boxes; this model is no detector")
    return ScoreOptions(
        gamma=card.loss.gamma if asked.gamma is None else asked.gamma,
        alpha=asked.alpha if "alpha" in asked.model_fields_set else card.loss.alpha,
        alpha_mode=asked.alpha_mode,
        label_smoothing=asked.label_smoothing or 0.0,
        ignore_index=asked.ignore_index,
        reduction=asked.reduction,
    )


@dataclass(frozen=True)
class _Batch:
    """What can be scored: rows (M, K) logits, targets, which item each is, whether it is the model's own output."""

    rows: Floats
    targets: NDArray[Any]
    where: list[int]
    raw: NDArray[np.bool_]
    clipped: list[bool]


def _collect(card: ModelCard, given: Sequence[Given], options: ScoreOptions) -> _Batch:
    wrong: list[dict[str, str]] = []
    rows: list[Logits] = []
    targets: list[NDArray[Any]] = []
    where: list[int] = []
    clipped: list[bool] = []
    known: dict[Any, NDArray[Any]] = {}
    shape = (card.outputs,)
    for i, (row, label, _, kind) in enumerate(given):
        try:
            target = known.get(label) if type(label) in _PLAIN else None
            if target is None:
                target = _target(card, label, options)
                if type(label) in _PLAIN:
                    known[label] = target
            if isinstance(row, Exception):
                continue
            if row.shape != shape:
                raise InvalidInput(f"the row has {len(row)} numbers; the model has {card.outputs} outputs")
            if kind == "probabilities":
                _check_probabilities(row, card)
        except InvalidInput as error:
            place = "label" if isinstance(error, InvalidLabel) else kind
            wrong.append({"loc": f"inputs.{i}.{place}", "msg": str(error)})
            continue
        clipped.append(kind == "probabilities" and is_clipped(row, target))
        rows.append(logits_of(row, card.activation) if kind == "probabilities" else row)
        targets.append(target)
        where.append(i)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InvalidRequest(f"{wrong[0]['loc']}: {wrong[0]['msg']}{more}", wrong)
    stacked = np.array(rows, np.float64) if rows else np.zeros((0, card.outputs))
    raw = np.asarray([given[i].kind == "logits" for i in where], bool)
    return _Batch(stacked, _stack(targets, card), where, raw, clipped)


def _target(card: ModelCard, label: Any, options: ScoreOptions) -> NDArray[Any]:
    ignore = options.ignore_index
    if ignore is None:
        return TASKS[card.task].targets(label, card)
    if type(label) is int and label == ignore:
        return np.asarray(ignore, np.int64) if card.task == "multiclass" else np.full(card.outputs, float(ignore))
    if card.task != "multiclass" and isinstance(label, list) and ignore in label:
        known = TASKS[card.task].targets([0.0 if part == ignore else part for part in label], card)
        return np.where(np.asarray([part == ignore for part in label]), float(ignore), known)
    return TASKS[card.task].targets(label, card)


def _check_probabilities(row: Logits, card: ModelCard) -> None:
    if not bool(((row >= 0.0) & (row <= 1.0)).all()):
        raise InvalidInput("probabilities lie between 0 and 1 (send logits as logits)")
    if card.activation == "softmax" and abs(float(row.sum()) - 1.0) > _ROW_SUM_TOLERANCE:
        raise InvalidInput(f"the probabilities must sum to 1 (they sum to {float(row.sum()):.6g})")


def _stack(targets: Sequence[NDArray[Any]], card: ModelCard) -> NDArray[Any]:
    """Hard indices (M,) where all are; otherwise soft rows (M, K), a hard one as its one-hot."""
    if not targets:
        return np.zeros(0, np.int64) if card.task == "multiclass" else np.zeros((0, card.outputs))
    sides = {target.ndim for target in targets}
    if sides == {0}:
        return np.array([target.item() for target in targets], np.int64)
    if sides == {1}:
        return np.array(targets)
    if any(target.ndim == 0 and not 0 <= int(target) < card.outputs for target in targets):
        raise InvalidLabel("ignore_index and soft labels do not go together in one softmax request")
    return np.stack([np.eye(card.outputs)[int(target)] if target.ndim == 0 else target for target in targets])


def _is_own_loss(card: ModelCard, options: ScoreOptions) -> bool:
    return (options.gamma, options.alpha, options.label_smoothing) == (card.loss.gamma, card.loss.alpha, 0.0)


def _tell(observe: ObserveLosses, scores: LabelScores, batch: "_Batch", card: ModelCard) -> None:
    """Of several labels each has its own loss; else the item's is that of its label."""
    member = _membership(batch.targets, card) & (scores.valid & batch.raw)[:, None]
    losses = scores.terms.values if card.task == "multilabel" else np.repeat(scores.loss[:, None], member.shape[1], 1)
    for k in np.flatnonzero(member.any(axis=0)):
        observe(card.labels[k], np.asarray(losses[member[:, k], k], np.float64))


def _membership(targets: NDArray[Any], card: ModelCard) -> NDArray[np.bool_]:
    if card.task == "multiclass":
        given = targets if targets.ndim == 1 else targets.argmax(axis=1)
        return np.asarray(given[:, None] == np.arange(len(card.labels)))
    if card.task == "binary":
        return np.concatenate([targets < 0.5, targets >= 0.5], axis=1)
    return np.asarray(targets >= 0.5)
