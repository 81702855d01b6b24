"""The detector's graph: what torch computes, and detections that obey the request, for every size of batch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from models.boxes import decode_boxes, make_anchors, suppress
from models.bundle import METADATA_KEY
from models.card import AnchorLevel, ClassFacts, DetectorSpec, ImageInput, ModelCard
from models.errors import BundleError
from models.image import Pixels, decode_image, fit_pixels
from models.nets import export_detector as module
from models.nets.detectors import build_detector
from models.nets.export_detector import DETECTIONS, RAW, export_detector, run_raw
from models.nets.graphs import Export, open_session
from models.nets.retinanet import RetinaNet
from models.nets.served import ServedDetector
from scripts.data import __name__ as _data  # noqa: F401
