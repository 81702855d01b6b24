"""Which recipe a training follows: that of a classifier or that of a detector."""

import torch

from models.errors import InvalidInput
from scripts.classifier import ClassifierJob, Parts, build_classifier, read_classes
from scripts.config import TrainConfig
from scripts.detector import BoxParts, DetectorJob, build_detection, read_box_parts

_OF_BOXES = ("ap", "ap50")


def read_parts(config: TrainConfig) -> Parts | BoxParts:
    """Reads and splits the data, says what it holds, and chooses the input.

    Raises:
        InvalidInput: anything wrong with the data, or a score to watch that this task does not have.
    """
    if (config.monitor in _OF_BOXES) != (config.task == "detection"):
        known = "ap, ap50" if config.task == "detection" else "macro_f1, nll"
        raise InvalidInput(f"--monitor {config.monitor} is not of this task; use one of {known}")
    return read_box_parts(config) if config.task == "detection" else read_classes(config)


def build_job(config: TrainConfig, parts: Parts | BoxParts, device: torch.device) -> ClassifierJob | DetectorJob:
    """Net, loss and optimizer, and the images decoded."""
    if isinstance(parts, BoxParts):
        return build_detection(config, parts, device)
    return build_classifier(config, parts, device)
