"""Reads the golden set of focal-loss values (tests/data/focal_golden.json)."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "data" / "focal_golden.json"
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Case:
    """One case: what is computed, and what must come out as nearest binary64 numbers."""

    id: str
    kind: str
    gamma: float
    alpha: Any
    logits: NDArray[np.float64]
    targets: NDArray[Any]
    reduction: str
    soft: str
    smoothing: float
    ignore_index: int | None
    expected: dict[str, Any]

    def options(self) -> dict[str, Any]:
        options = {"gamma": self.gamma, "alpha": self.alpha, "label_smoothing": self.smoothing, "soft": self.soft}
        if self.kind == "softmax" and isinstance(self.alpha, float):
            options["alpha_mode"] = "uniform"
        return options | {"ignore_index": self.ignore_index}


@cache
def cases() -> tuple[Case, ...]:
    loaded = json.loads(GOLDEN.read_text())
    assert len(loaded["cases"]) == loaded["count"] == 300
    return tuple(_case(raw) for raw in loaded["cases"])


def _case(raw: dict[str, Any]) -> Case:
    return Case(
        id=raw["id"],
        kind=raw["kind"],
        gamma=raw["gamma"],
        alpha=raw["alpha"],
        logits=np.asarray(_numbers(raw["logits"]), np.float64),
        targets=np.asarray(raw["targets"]),
        reduction=raw["reduction"],
        soft=raw.get("soft", "expected"),
        smoothing=raw.get("label_smoothing", 0.0),
        ignore_index=raw.get("ignore_index"),
        expected=_with_small_log_1mpt({name: _numbers(value) for name, value in raw["expected"].items()}),
    )


def _with_small_log_1mpt(expected: dict[str, Any]) -> dict[str, Any]:
    # In 60 rows with p_t = e^-200 the file says log(1 - p_t) = 0, which is 1 - p_t rounded to its 80 working digits.
    # The true value is -p_t to 87 digits, and p_t itself is right in the file.
    if "log_1mpt" in expected:
        given, p = (np.asarray(expected[name], np.float64) for name in ("log_1mpt", "pt"))
        expected["log_1mpt"] = np.where((given == 0) & (p > 0) & (p < 1e-80), -p, given)
    return expected


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return value["f64"]
    return float(value) if isinstance(value, str) else value


def assert_close(got: Any, want: Any, rtol: float, atol: float, what: str) -> None:
    """Fail unless |got - want| <= atol + rtol * |want| everywhere; None in `want` is not compared."""
    wanted = np.asarray(want, np.float64)
    compared = ~np.isnan(wanted)
    found = np.asarray(got, np.float64)
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, not {wanted.shape}"
    error = np.abs(found - wanted)[compared]
    assert (error <= atol + rtol * np.abs(wanted[compared])).all(), f"{what}: {found} is not {wanted}"
