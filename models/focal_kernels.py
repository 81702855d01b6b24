"""The focal loss of one number, the log-odds margin, and its use on chunks of rows (numpy).

With d the log-odds of the given label, p = sigmoid(d) and q = sigmoid(-d) = 1 - p,

    L(d) = q^gamma * softplus(-d)        dL/dd = q^gamma * (-gamma * p * softplus(-d) - q)

and nothing here divides by p or q, so both are finite for every finite d and gamma >= 0.
Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, rewritten in log space.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput

Floats = NDArray[np.floating]
Labels = NDArray[np.intp]
Mask = NDArray[np.bool_]

CHUNK = 65536
# Reductions over few classes are several times faster with the classes first in memory.
CLASSES_FIRST_BELOW = 192
# A decorator; numpy does not allow one errstate to be entered by hand twice.
quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of rows that hold about 65k elements each, so that the work stays in the cache."""
    step = max(1, CHUNK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


@quiet
def each(function: Callable[[Floats, float], Floats], d: Floats, gamma: float, weights: Floats) -> Floats:
    """Return function(d, gamma) * weights, [N], in chunks."""
    out = np.empty_like(d)
    for part in chunks(d.size, 1):
        np.multiply(function(d[part], gamma), weights[part], out=out[part])
    return out


def softplus(x: Floats) -> Floats:
    """Return log(1 + e^x) without overflow, same shape and dtype as x."""
    result = _tail_log(x)
    result += positive_part(x)
    return result


def positive_part(x: Floats) -> Floats:
    """Return max(x, 0) for finite x; three plain passes, several times faster than a maximum with a number."""
    half: Floats = x * 0.5
    result: Floats = np.abs(half)
    result += half
    return result


def focal_of_margin(d: Floats, gamma: float) -> Floats:
    """Return L(d), same shape and dtype as d."""
    tail_log, above = _tail_log(d), positive_part(d)
    loss: Floats = above - d
    loss += tail_log
    if gamma == 0.0:
        return loss
    tail_log += above
    tail_log *= -gamma
    loss *= np.exp(tail_log, out=tail_log)
    return loss


def slope_of_margin(d: Floats, gamma: float) -> Floats:
    """Return dL/dd, same shape and dtype as d."""
    p, q, cross_entropy = probabilities(d)
    if gamma == 0.0:
        return np.negative(q, out=q)
    p *= -gamma
    p *= cross_entropy
    p -= q
    p *= modulation(d, gamma)
    return p


def probabilities(d: Floats) -> tuple[Floats, Floats, Floats]:
    """Return p = sigmoid(d), q = sigmoid(-d) and -log p, each to full relative precision."""
    tail: Floats = np.abs(d)
    np.negative(tail, out=tail)
    np.exp(tail, out=tail)
    cross_entropy: Floats = np.log1p(tail)
    cross_entropy += positive_part(-d)
    near = 1 / (1 + tail)
    tail *= near
    near -= tail
    # Sums of products instead of a selection by mask, which is slow where the mask is random.
    right = (d >= 0).astype(d.dtype)
    p = right * near
    p += tail
    np.subtract(1, right, out=right)
    right *= near
    right += tail
    return p, right, cross_entropy


def modulation(d: Floats, gamma: float) -> Floats:
    """Return q^gamma = exp(-gamma * softplus(d))."""
    result = softplus(d)
    result *= -gamma
    return np.exp(result, out=result)


def _tail_log(x: Floats) -> Floats:
    tail: Floats = np.abs(x)
    np.negative(tail, out=tail)
    np.exp(tail, out=tail)
    return np.log1p(tail, out=tail)


@dataclass(frozen=True, eq=False)
class Rows:
    """Logits as rows: what every softmax pass reads.

    Attributes:
        logits: [N, C] float32 or float64.
        labels: [N] class indices, 0 where ignored.
        valid: [N] false where the row is ignored, or None when every row counts.
        name: flat row -> how the caller would call it.
    """

    logits: Floats
    labels: Labels
    valid: Mask | None
    name: Callable[[int], str]

    def __len__(self) -> int:
        """Return N."""
        return len(self.logits)

    def load(self, part: slice, work: Floats) -> Floats:
        """Copy rows `part` into the flat buffer `work`; return them as [C, rows], ignored rows as zeros."""
        count, classes = part.stop - part.start, self.logits.shape[1]
        flat = work[: count * classes]
        # Whichever memory order is faster for reductions over the classes.
        first = classes < CLASSES_FIRST_BELOW
        z = flat.reshape(classes, count) if first else flat.reshape(count, classes).T
        np.copyto(z, self.logits[part].T)
        if self.valid is not None:
            z[:, ~self.valid[part]] = 0
        return z

    def at_label(self, part: slice) -> Labels:
        """Return where in the flat buffer of `load` each row has its label's logit, [rows]."""
        count, classes = part.stop - part.start, self.logits.shape[1]
        columns = np.arange(count)
        if classes < CLASSES_FIRST_BELOW:
            columns += self.labels[part] * count
            return columns
        columns *= classes
        columns += self.labels[part]
        return columns

    def workspace(self) -> Floats:
        """Return an empty flat buffer that holds any chunk."""
        rows, classes = self.logits.shape
        return np.empty(min(rows, max(1, CHUNK // classes)) * classes, self.logits.dtype)

    def refuse_non_finite(self, z: Floats, part: slice) -> None:
        """Raise for a NaN or infinite logit in a loaded chunk, naming its row."""
        # A sum is one pass; only a suspicious one (it may have overflowed) is looked at closely.
        if np.isfinite(z.sum()):
            return
        bad = np.flatnonzero(~np.isfinite(z).all(axis=0))
        if bad.size:
            raise InvalidInput(f"logits of row {self.name(part.start + int(bad[0]))} are not finite")


@dataclass(frozen=True, eq=False)
class Scan:
    """One pass over the rows: margin d [N], largest other logit [N], sum of exp(other - largest) [N]."""

    margin: Floats
    top: Floats
    total: Floats


@quiet
def scan_rows(rows: Rows) -> Scan:
    """Return d = z_y - logsumexp of the other logits for each row, and what a gradient needs of it."""
    n = len(rows)
    margin, top, total = (np.empty(n, rows.logits.dtype) for _ in range(3))
    work = rows.workspace()
    for part in chunks(n, rows.logits.shape[1]):
        z = rows.load(part, work)
        rows.refuse_non_finite(z, part)
        own_place = rows.at_label(part)
        own = work[own_place]
        work[own_place] = -np.inf
        np.max(z, axis=0, out=top[part])
        z -= top[part]
        np.exp(z, out=z)
        np.sum(z, axis=0, out=total[part])
        margin[part] = (own - top[part]) - np.log(total[part])
    np.minimum(margin, np.finfo(margin.dtype).max, out=margin)
    return Scan(margin, top, total)


@quiet
def spread_slope(rows: Rows, scan: Scan, slope: Floats) -> Floats:
    """Return the gradient [N, C]: slope at the label, -slope * softmax of the others elsewhere.

    Args:
        rows: the logits and labels.
        scan: the pass over the same rows.
        slope: [N] dL/dd of each row, weight included, 0 where ignored.
    """
    gradient = np.empty_like(rows.logits)
    share = -slope / scan.total
    work = rows.workspace()
    for part in chunks(len(rows), rows.logits.shape[1]):
        z = rows.load(part, work)
        own_place = rows.at_label(part)
        work[own_place] = -np.inf
        z -= scan.top[part]
        np.exp(z, out=z)
        z *= share[part]
        work[own_place] = slope[part]
        gradient[part] = z.T
    return gradient
