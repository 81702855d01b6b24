"""The settings of an audit, and what it remembers of them."""

import json
import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg, CliToggleFlag, SettingsConfigDict

from models.errors import InvalidInput
from scripts.config import TrainConfig
from scripts.flags import Flags
from scripts.issues import written_whole

_STEPS, _LEAST_EPOCHS, _MOST_EPOCHS = 450, 8, 20
"""Fewer steps leave nets that know too little to tell wrong labels; many more, and they learn those by heart."""
_START_ONLY = {"data", "out", "restart", "threads", "cache_mb", "show", "device", "image_url"}


class AuditFlags(Flags):
    """Find the wrong labels of a data set. Example: focalserve audit photos/ --out audit.

    Trains one net per fold, asks each about the images it has not seen, and writes issues.csv, issues.jsonl,
    report.html, label_studio.json and .xml, fiftyone/, summary.json and config.json. Interrupted, the same command
    goes on.
    """

    model_config = SettingsConfigDict(cli_prog_name="focalserve audit")

    data: CliPositionalArg[Path] = Field(description="class folders, CSV, JSONL; boxes: COCO, YOLO, VOC, CSV")
    out: Path = Field(description="folder for what is found")
    bundle: Path | None = Field(
        None, description="ask this model instead of training; honest only if it saw none of it"
    )
    folds: Annotated[int, Field(ge=2, le=50)] = Field(
        5, description="nets; each is asked about its share of the images"
    )
    task: Literal["auto", "multiclass", "multilabel", "binary", "detection"] = Field(
        "auto", description="what the labels mean"
    )
    images: Path | None = Field(None, description="boxes: folder of the images, where they are not beside the file")
    on_bad_box: Literal["fail", "drop"] = Field("fail", description="boxes that cannot be: stop, or leave out")
    on_bad_image: Literal["fail", "skip"] = Field("fail", description="images that do not decode: stop, or leave out")
    net: str = Field("small", description="as of focalserve train")
    weights: Path | None = Field(None, description="as of focalserve train")
    image_size: str = Field("auto", description="as of focalserve train")
    resize: Literal["stretch", "letterbox", "center_crop"] = Field("stretch", description="how images are fitted")
    epochs: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="of each net; 8 to 20, the fewer the more images: wrong labels are learnt late; of detectors 12",
    )
    batch_size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="images per step; 16 to 128 by their number"
    )
    lr: Annotated[float, Field(gt=0.0)] = Field(3e-3, description="highest learning rate")
    flip: bool = Field(False, description="mirror half of the training images left to right")
    crop: bool = Field(False, description="shift and scale training images at random")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of the folds, the order, the weights")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads; 0: OMP_NUM_THREADS, else one a core")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train; auto: CUDA where present")
    cache_mb: Annotated[int, Field(ge=0)] = Field(2048, description="decoded images kept in memory, up to this size")
    show: Annotated[int, Field(ge=0, le=5000)] = Field(100, description="worst labels shown in the report")
    image_url: str = Field("/data/local-files/?d=", description="before an image's path in label_studio.json")
    restart: CliToggleFlag[bool] = Field(False, description="throw away what is in OUT and start afresh")

    def training(self, images: int) -> TrainConfig:
        """The training of each fold; of classes by cross-entropy without weights: its probabilities need no repair."""
        left_out = {"out", "task", "on_bad_image", "restart", "epochs", "batch_size", "images", "on_bad_box"}
        shared = self.model_dump(include=TrainConfig.model_fields.keys() - left_out)
        if self.task == "detection":
            said = {name: shared[name] for name in shared.keys() & (self.model_fields_set | {"seed", "device"})}
            said |= {} if self.batch_size is None else {"batch_size": self.batch_size}
            return TrainConfig(**said, epochs=self.epochs or 12).as_detection()
        size = self.batch_size or min(128, max(16, images // 32))
        steps = max(1, images * (self.folds - 1) // self.folds // size)
        epochs = self.epochs or min(_MOST_EPOCHS, max(_LEAST_EPOCHS, round(_STEPS / steps)))
        return TrainConfig(**shared, epochs=epochs, batch_size=size, gamma=0.0, alpha="none")


def remember(flags: AuditFlags, fingerprint: str) -> None:
    """Writes config.json, or checks that what is there was begun with the same settings and data.

    Raises:
        InvalidInput: it was not.
    """
    path, work = flags.out / "config.json", flags.out / "work"
    now = {**flags.model_dump(mode="json", exclude=_START_ONLY), "fingerprint": fingerprint}
    if flags.restart:
        shutil.rmtree(work, ignore_errors=True)
        path.unlink(missing_ok=True)
    if path.is_file():
        then = json.loads(path.read_text(encoding="utf-8"))["settings"]
        changed = [name for name in now if then.get(name) != now[name]]
        if changed:
            raise InvalidInput(
                f"{flags.out} holds an audit with another {', '.join(changed)}; choose another --out, or --restart"
            )
    elif work.exists():
        raise InvalidInput(f"{work} is there, but not what it was made with; choose another --out, or --restart")
    flags.out.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        json.dump({"data": str(flags.data.absolute()), "settings": now}, file, indent=2)
