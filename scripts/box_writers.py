"""Annotations of boxes written anew with some boxes changed: what does not change stays as it is.

A format is a function `(source, data, edits, out)` and a line in BOX_WRITERS; it writes all but the pictures.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.box_csv_writer import write_box_csv
from scripts.box_data import BoxDataSet
from scripts.box_decisions import BoxEdits
from scripts.coco_writer import write_coco
from scripts.voc_writer import write_voc
from scripts.yolo_writer import write_yolo

BOX_WRITERS: dict[str, Callable[[Path, BoxDataSet, Mapping[str, BoxEdits], Path], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "csv": write_box_csv,
}
