"""`focalserve info BUNDLE`: what a bundle is, in words or as its card."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.bundle import read_bundle
from models.card import ModelCard
from models.detector_spec import DetectorSpec
from scripts.clients import choose_bundle
from scripts.flags import Flags


class InfoFlags(Flags):
    """Show what a bundle is. Its SHA-256 is checked first. Example: focalserve info artifacts/birds."""

    model_config = SettingsConfigDict(cli_prog_name="focalserve info")

    bundle: CliPositionalArg[Path] = Field(Path("artifacts"), description="a bundle, or a folder with one model")
    model: str | None = Field(None, description="which model, where there are several")
    json_: bool = Field(False, alias="json", description="the card as JSON")


def main(argv: Sequence[str]) -> int:
    """Runs `focalserve info`."""
    flags = InfoFlags.parse(argv)
    bundle = read_bundle(choose_bundle(flags.bundle, flags.model))
    print(bundle.card.model_dump_json(indent=2) if flags.json_ else describe_card(bundle.card, len(bundle.graph)))
    return 0


def describe_card(card: ModelCard, size: int) -> str:
    """The card in words.

    Args:
        card: what to describe.
        size: of the graph, bytes.
    """
    lines = [
        f"{card.name} version {card.version}: {card.task}, {len(card.labels)} labels, {size / 1e6:.1f} MB",
        f"made      {card.created}, SHA-256 {(card.sha256 or '')[:16]}...",
        f"input     {card.input.width} x {card.input.height} RGB, {card.input.resize}",
        f"loss      focal, gamma {card.loss.gamma:g}, alpha {_alpha(card)}, smoothing {card.loss.label_smoothing:g}",
        *(_classifier_lines(card) if card.detector is None else _detector_lines(card.detector)),
        f"parity    torch against ONNX Runtime {card.parity_max_difference:.2g}",
        "",
        *(f"{name:10} {one.value:.3f}  ({one.low:.3f} to {one.high:.3f})" for name, one in card.metrics.items()),
        "",
        f"{'class':20} {'images' if card.detector is None else 'boxes':>7} {'precision':>9} {'recall':>7} {'f1':>7}",
    ]
    for facts in card.classes:
        shown = [_number(value) for value in (facts.precision, facts.recall, facts.f1)]
        lines.append(f"{facts.label:20} {facts.train_count:7d} {shown[0]:>9} {shown[1]:>7} {shown[2]:>7}")
    return "\n".join(lines)


def _classifier_lines(card: ModelCard) -> list[str]:
    wrong = [part.rate for part in card.label_noise if card.task != "multilabel"]
    return [
        f"calibrated  inverse of gamma {card.calibration.gamma:g}, temperature {card.calibration.temperature:.3f}",
        *(f"noise     {rate:.1%} of the validation labels are wrong, as estimated" for rate in wrong),
    ]


def _detector_lines(spec: DetectorSpec) -> list[str]:
    levels = ", ".join(
        f"{'/'.join(f'{size:g}' for size in level.sizes)} at stride {level.stride}" for level in spec.levels
    )
    return [
        f"boxes     {spec.box_loss}, weight {spec.box_weight:g}",
        f"anchors   {levels}; ratios {', '.join(f'{ratio:g}' for ratio in spec.ratios)}",
        f"answers   score above {spec.score_threshold:g}, {spec.max_detections} of an image at most",
        f"causes    {'calibrated on validation' if spec.calibrator else 'not calibrated: quality is the focal mean'}",
    ]


def _alpha(card: ModelCard) -> str:
    alpha = card.loss.alpha
    return "none" if alpha is None else "one per class" if isinstance(alpha, list) else f"{alpha:g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
