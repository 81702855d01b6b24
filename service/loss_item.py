"""What /loss scores, whichever form it came in: an image or a row, with what is given of it."""

from typing import Any, Literal, NamedTuple

import numpy as np

from models.task import Floats

_NO_ROW: Floats = np.zeros(0)


class LossItem(NamedTuple):
    """One image or row, checked; a tuple, since a request may bring a hundred thousand.

    Attributes:
        id: the caller's own name for it.
        label: as given; of a classifier.
        boxes: as given; of a detector.
        image: the encoded file, or base64 text of it; None where numbers came.
        row: (K,) logits or probabilities; empty where there are none.
        kind: what the row is; an image becomes logits.
        cls_logits: (A, K), a detector's output.
        box_deltas: (A, 4), a detector's output.
    """

    id: str | None
    label: Any = None
    boxes: list[dict[str, Any]] | None = None
    image: bytes | str | None = None
    row: Floats = _NO_ROW
    kind: Literal["logits", "probabilities"] = "logits"
    cls_logits: Floats | None = None
    box_deltas: Floats | None = None

    @property
    def source(self) -> Literal["image", "logits", "probabilities"]:
        """Which of the three it has."""
        return self.kind if self.image is None else "image"
