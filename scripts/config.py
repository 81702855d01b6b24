"""The settings of a training: one model that gives the flags, the YAML file, the help, and what is printed."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliToggleFlag,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from models.card import describe_validation
from models.errors import InvalidInput
from scripts.box_readers import is_detection

RUN_FOLDER = "run"
_UNSAID = {"config", "print_config", "dry_run", "resume", "restart"}
"""Settings that say how to start, not what to train: not part of the printed configuration."""
_NAME, _VERSION = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$"
_DETECTION = {"alpha": 0.5, "batch_size": 16, "clip_grad": 10.0, "monitor": "ap", "resize": "letterbox", "warmup": 0.05}
"""Defaults of a detector where they are not those of a classifier."""
_WEIGHTINGS = ("none", "balanced", "class-balanced")


def _check_alpha(value: object) -> object:
    if value is None or value in _WEIGHTINGS:
        return value or "none"
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"should be {', '.join(_WEIGHTINGS)}, or a number from 0 to 1")
    return number


Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Weighting = Annotated[Literal["none", "balanced", "class-balanced"] | float, BeforeValidator(_check_alpha)]


class TrainConfig(BaseSettings):
    """Train a classifier or a detector with focal loss and export it as a bundle that the service runs.

    Example: focalserve train photos/ --out artifacts/birds. Flags win over --config FILE.yaml. Data with boxes trains a
    detector, for which some defaults are others: see the settings that are printed first.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="focalserve train",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        extra="forbid",
        frozen=True,
    )

    data: CliPositionalArg[Path | None] = Field(
        None,
        description="Folder of class folders, or a CSV or JSON Lines file beside its images; "
        "for boxes COCO .json, YOLO's or Pascal VOC's folder, or a CSV with corners.",
    )
    out: Path | None = Field(None, description="Folder of the model, such as artifacts/NAME; NAME is its name.")
    config: Path | None = Field(None, description="YAML file with any of these settings; flags win over it.")
    print_config: CliToggleFlag[bool] = Field(False, description="Print the settings as YAML on stdout and stop.")
    dry_run: CliToggleFlag[bool] = Field(False, description="Read the data, show its classes and one batch, stop.")
    resume: CliToggleFlag[bool] = Field(False, description="Go on from OUT/run/last.pt, or start where there is none.")
    restart: CliToggleFlag[bool] = Field(False, description="Throw away an unfinished run in OUT and start afresh.")
    version: Annotated[str, Field(pattern=_VERSION)] | None = Field(
        None, description="Version of the bundle; default: one more than the highest."
    )

    task: Literal["auto", "multiclass", "multilabel", "binary", "detection"] = Field(
        "auto", description="What the labels mean."
    )
    images: Path | None = Field(None, description="Boxes: folder of the pictures, where not beside the annotations.")
    labels: list[str] = Field([], description="The only class names allowed, in this order; default: those found.")
    on_bad_image: Literal["fail", "skip"] = Field("fail", description="Images that do not decode: stop, or skip.")
    on_bad_box: Literal["fail", "drop"] = Field("fail", description="Boxes that cannot be used: stop, or leave out.")
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.15, description="Share of the data held out, where no split says which."
    )
    cache_mb: Annotated[int, Field(ge=0)] = Field(
        2048, description="Decoded images are kept in memory up to this size; larger data is decoded anew each epoch."
    )

    net: str = Field("small", description="small, resnet18, resnet34, resnet50 or mobilenet_v2.")
    weights: Path | None = Field(None, description="File of weights to start from, such as torchvision's.")
    image_size: str = Field(
        "auto",
        description="Side, or HxW; auto: that of images up to 64 pixels, else 64 or 224; of a detector that of images "
        "which are alike and at most 640, else the net's.",
    )
    resize: Literal["stretch", "letterbox", "center_crop"] = Field("stretch", description="How images are fitted.")
    body_norm: Literal["auto", "batch", "frozen"] = Field(
        "auto", description="Detector: the backbone's norm; auto: frozen with --weights or --freeze, else batch."
    )
    freeze: Annotated[int, Field(ge=0, le=5)] = Field(0, description="Detector: stages of the backbone that stay.")
    anchor_sizes: list[Positive] = Field(
        [],
        description="Detector: sides of the anchors, between commas, dealt out to the levels in order; default: from "
        "the boxes.",
    )
    anchor_ratios: list[Positive] = Field([], description="Detector: height over width; default: 0.5, 1, 2.")
    max_detections: Annotated[int, Field(ge=1, le=1000)] = Field(100, description="Detector: of one image, at most.")

    gamma: Annotated[float, Field(ge=0.0, le=100.0)] = Field(2.0, description="Focusing; 0 is cross-entropy.")
    alpha: Weighting = Field(
        "class-balanced",
        description="Class weights: none, balanced (inverse frequency), class-balanced, or a number (sigmoid tasks); "
        "of a detector none or a number.",
    )
    alpha_beta: Share = Field(0.999, description="Of class-balanced: weights (1-b)/(1-b^n), their mean 1.")
    label_smoothing: Share = Field(0.0, description="Share of each label that is spread over the classes.")
    box_loss: Literal["giou", "smooth_l1"] = Field("giou", description="Detector: the loss of the boxes' places.")
    box_weight: Positive = Field(0.33, description="Detector: weight of the box loss; the classes' has 1.")

    epochs: Annotated[int, Field(ge=1)] = Field(12, description="Passes over the training part, at most.")
    batch_size: Annotated[int, Field(ge=2)] = Field(32, description="Images per step.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd with Nesterov momentum 0.9.")
    lr: Positive = Field(3e-3, description="Highest learning rate.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    warmup: Share = Field(0.1, description="Share of all steps in which the learning rate rises.")
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.05, description="Of weights, not of biases and norms."
    )
    clip_grad: Positive = Field(5.0, description="Longest gradient, as a norm over all weights.")
    flip: bool = Field(True, description="Mirror half of the training images left to right.")
    crop: bool = Field(True, description="Shift and scale training images at random by up to a tenth.")
    turn: bool = Field(False, description="Detector: mirror and turn training images as seen from above.")
    multi_scale: Share = Field(0.0, description="Detector: scale training images by up to this share.")
    patience: Annotated[int, Field(ge=0)] = Field(0, description="Epochs without a better score until it ends; 0: all.")
    monitor: Literal["macro_f1", "nll", "ap", "ap50"] = Field(
        "macro_f1", description="Validation score; the latest epoch within one standard error of its best is kept."
    )
    save_every: Positive = Field(60.0, description="Seconds between checkpoints within an epoch.")

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Of the split, the order, the weights.")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads; 0: OMP_NUM_THREADS, else one a core.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train; auto: CUDA where present.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and file only: the environment does not change a training."""
        return (init_settings,)

    @field_validator("image_size", mode="before")
    @classmethod
    def _size(cls, value: object) -> str:
        text = str(value).lower()
        sides = text.split("x")
        if text == "auto" or (len(sides) <= 2 and all(s.isdecimal() and 8 <= int(s) <= 4096 for s in sides)):
            return text
        raise ValueError("should be auto, a side such as 224, or HEIGHTxWIDTH such as 192x256; sides from 8 to 4096")

    @field_validator("out")
    @classmethod
    def _name(cls, value: Path | None) -> Path | None:
        if value is not None and not re.match(_NAME, value.absolute().name):
            raise ValueError("its last part names the model: letters, digits and ._- only, 64 at most")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.resume and self.restart:
            raise ValueError("--resume and --restart exclude each other")
        if self.version == RUN_FOLDER:
            raise ValueError(f"'{RUN_FOLDER}' is the folder of the training itself; choose another version")
        return self

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) as asked for; None for auto."""
        if self.image_size == "auto":
            return None
        sides = [int(side) for side in self.image_size.split("x")]
        return sides[0], sides[-1]

    def as_detection(self) -> "TrainConfig":
        """The settings of a detector: its own defaults where nothing was said."""
        unsaid = {name: value for name, value in _DETECTION.items() if name not in self.model_fields_set}
        return self.model_copy(update={**unsaid, "task": "detection"})

    def recipe(self) -> dict[str, Any]:
        """What to train, as plain values: all but the settings that only say how to start."""
        return self.model_dump(mode="json", exclude=_UNSAID)

    def as_yaml(self) -> str:
        """The recipe as a YAML document that --config reads."""
        return yaml.safe_dump(self.recipe(), sort_keys=False)


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """Reads flags, and the YAML file that they name.

    Args:
        argv: arguments after the program's name.

    Raises:
        InvalidInput: an unknown or wrong setting; the message has one line.
        SystemExit: with 0, after --help.
    """
    config = _parse(argv, {})
    if config.config is not None:
        config = _parse(argv, _read_yaml(config.config))
    for name, value in (("DATA", config.data), ("--out", config.out)):
        if value is None and not config.print_config and not (name == "--out" and config.dry_run):
            raise InvalidInput(f"{name} is missing: focalserve train DATA --out artifacts/NAME")
    return config


def choose_task(config: TrainConfig) -> TrainConfig:
    """The settings with detection as the task, and its defaults, where it is asked for or the data holds boxes.

    Raises:
        InvalidInput: there is nothing at the data's path.
    """
    found = config.task == "detection"
    if config.task == "auto" and config.data is not None and not config.print_config:
        found = is_detection(config.data)
    return config.as_detection() if found else config


def _parse(argv: Sequence[str], values: dict[str, Any]) -> TrainConfig:
    try:
        return CliApp.run(TrainConfig, cli_args=list(argv), **values)
    except SettingsError as error:
        raise InvalidInput(str(error).removeprefix("error parsing CLI: ")) from None
    except ValidationError as error:
        raise InvalidInput(describe_validation(error).replace("Value error, ", "")) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
    except yaml.YAMLError as error:
        raise InvalidInput(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is not None and not (isinstance(values, dict) and all(isinstance(key, str) for key in values)):
        raise InvalidInput(f"{path}: should hold settings, one `name: value` a line")
    known = TrainConfig.model_fields.keys() - _UNSAID
    for name in values or {}:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise InvalidInput(f"{path}: unknown setting '{name}'" + (f"; is it {near[0]}?" if near else ""))
    return values or {}
