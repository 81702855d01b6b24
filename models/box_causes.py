"""From signs to causes: what is wrong with a given box, and how probable that is.

With the card's calibrator (a multinomial logistic regression, fitted at export on validation boxes of which some were
spoilt on purpose) causes are probabilities. Without one, each cause has its plain score in [0, 1], and the quality is
the probability at which a single label would have the box's focal loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.box_calibrator import LOG_FLOOR, apply_regression, fit_regression
from models.box_quality import SWAP_RATE, BoxSigns
from models.box_view import GAMMA
from models.boxes import Floats, Indices
from models.detector_spec import BoxCalibrator
from models.losses import binary_margin_focal

CAUSES = ("none", "badly_located", "swapped", "spurious")
"""What can be wrong with a given box, by index."""
NONE, BADLY_LOCATED, SWAPPED, SPURIOUS = range(4)

SIGNS = (
    "located",
    "swapped",
    "doubted",
    "spurious",
    "focal",
    "own",
    "near",
    "on",
    "given",
    "other",
    "on_given",
    "on_other",
    "pull",
    "fit",
    "reach",
    "aside",
    "resized",
    "firm",
    "scatter",
)
PRODUCTS = (("doubted", "on"), ("pull", "own"), ("spurious", "pull"), ("given", "fit"))
FEATURES = (*SIGNS, *(f"log {name}" for name in SIGNS), *(f"{first} * {second}" for first, second in PRODUCTS))
"""What a calibrator may weigh: 19 signs, their logarithms, and four products of two."""
UNFITTED_THRESHOLD = 0.1
"""Without a calibrator a box of less quality is an issue: its focal mean is that of a label given a chance of .1."""
_HALVINGS = 60


@dataclass(frozen=True)
class Judgement:
    """What is thought of M given boxes.

    Attributes:
        causes: (M, 4) in [0, 1], columns as CAUSES. From a calibrator: probabilities, rows sum to 1. Else: quality,
            then plain scores, of use to rank boxes by one cause.
        quality: (M,) in [0, 1], 0 = surely wrong: column 0.
        is_issue: (M,) bool.
        cause: (M,) int64, index into CAUSES: the likeliest cause of an issue, NONE where there is no issue.
    """

    causes: Floats
    quality: Floats
    is_issue: NDArray[np.bool_]
    cause: Indices


def judge_boxes(signs: BoxSigns, calibrator: BoxCalibrator | None) -> Judgement:
    """What is thought of given boxes, from their signs; each box on its own.

    With a calibrator a box is an issue where P(none) < .5; without one where its quality is below .1.

    Args:
        signs: of M boxes.
        calibrator: the card's.

    Raises:
        BundleError: the calibrator weighs a feature, or names a cause, that is not known.
    """
    if calibrator is None:
        causes, threshold = _plain_causes(signs), UNFITTED_THRESHOLD
        weighed = _evenly_weighed(signs)
    else:
        causes, threshold = apply_calibrator(calibrator, signs), 0.5
        weighed = causes[:, 1:]
    is_issue = causes[:, NONE] < threshold
    return Judgement(causes, causes[:, NONE], is_issue, np.where(is_issue, 1 + weighed.argmax(axis=1), NONE))


def box_features(signs: BoxSigns) -> Floats:
    """(M, F) float64, columns as FEATURES."""
    plain = {name: np.asarray(getattr(signs, name), np.float64) for name in SIGNS}
    columns = [*plain.values(), *(np.log(values + LOG_FLOOR) for values in plain.values())]
    return np.stack([*columns, *(plain[first] * plain[second] for first, second in PRODUCTS)], axis=1)


def apply_calibrator(calibrator: BoxCalibrator, signs: BoxSigns) -> Floats:
    """Probabilities (M, 4) of CAUSES; 0 for a cause that the calibrator has not.

    Raises:
        BundleError: a feature or a cause that is not known.
    """
    return apply_regression(calibrator, box_features(signs), FEATURES, CAUSES, "detector.calibrator")


def fit_calibrator(
    features: Floats, causes: Indices, strength: float = 1.0, expected: Sequence[float] | None = None
) -> BoxCalibrator:
    """Fits the calibrator: penalised maximum likelihood by Newton's method on standardised features.

    Args:
        features: (N, F) of boxes that the detector was not trained on, columns as FEATURES.
        causes: (N,) int64, what is wrong with each, index into CAUSES.
        strength: of the squared-weight penalty, which half of each is multiplied with; the bias is free.
        expected: (4,) share of each of CAUSES where the calibrator will be used, to which the biases are moved: to fit
            it takes many wrong boxes. None: as in these data.

    Returns:
        The calibrator of the causes that occur.

    Raises:
        InvalidInput: no sound box, or nothing but sound boxes.
    """
    fitted = fit_regression(features, causes, FEATURES, CAUSES, strength)
    if expected is None:
        return fitted
    places = [CAUSES.index(name) for name in fitted.causes]
    moved = np.log(np.asarray(expected)[places] / (causes[:, None] == places).mean(axis=0))
    return fitted.model_copy(update={"bias": (np.asarray(fitted.bias) + moved).tolist()})


def _plain_causes(signs: BoxSigns) -> Floats:
    quality = _equivalent_probability(signs.focal)
    return np.stack([quality, signs.located, signs.doubted * signs.on, _spurious(signs)], axis=1)


def _evenly_weighed(signs: BoxSigns) -> Floats:
    """(M, 3) the plain scores of the causes made fit to be compared with each other; each keeps its order."""
    # Swaps are held to be rare, and a detector trained with focal loss is rarely sure of what it sees.
    doubted = signs.doubted / (signs.doubted + (1.0 - signs.doubted) * SWAP_RATE / (1.0 - SWAP_RATE))
    return np.stack([signs.located, doubted * signs.on, _spurious(signs) ** 2], axis=1)


def _spurious(signs: BoxSigns) -> Floats:
    # A badly drawn box has no prediction at IoU .5 and would pass for spurious: here .25 is near enough.
    return np.minimum(signs.spurious, 1.0 - signs.near)


def _equivalent_probability(focal: Floats) -> Floats:
    """The probability in [0, 1] whose focal loss this is, by bisection of its log-odds; falls as the loss rises."""
    low, high = np.full(len(focal), -700.0), np.full(len(focal), 700.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        above = binary_margin_focal(middle, GAMMA) > focal
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(1.0 / (1.0 + np.exp(-(low + high) / 2.0)))
