"""`make gpu-check`, second half: a short table of what a CUDA device does here. Exit code 1 where there is none."""

import sys
import time
from collections.abc import Iterator

import numpy as np
import onnxruntime as ort
import torch

from models.bundle import Bundle
from models.card import ClassFacts, ImageInput
from models.class_logits import HostLogits
from models.losses import softmax_focal
from models.nets.export import export_net
from models.nets.loss_graph import build_loss_graph
from models.nets.losses import softmax_focal_loss
from models.nets.registry import build_net
from service.engine import Engine
from service.loss_graph import DeviceLogits, LossGraph

_SIDE = 224
_BATCH = 32


def main() -> int:
    """Prints the table."""
    if not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here; nothing was checked", file=sys.stderr)
        return 1
    print(f"{'device':24} {torch.cuda.get_device_name(0)}")
    for name, value in (*_engine_rows(), *_loss_rows()):
        print(f"{name:24} {value}")
    return 0


def _engine_rows() -> Iterator[tuple[str, str]]:
    bundle = _bundle()
    on_cpu, on_cuda = Engine(bundle, "cpu", 4), Engine(bundle, "cuda", 4)
    images = np.random.default_rng(0).integers(0, 256, (_BATCH, _SIDE, _SIDE, 3), np.uint8)
    yield "provider", on_cuda.device.provider
    yield "parity with the CPU", f"{np.abs(on_cuda.run(images) - on_cpu.run(images)).max():.2g} at most"
    for name, engine in (("CPU", on_cpu), ("CUDA", on_cuda)):
        engine.run(images)
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < 2.0:
            engine.run(images)
            runs += 1
        yield f"ResNet-18 on {name}", f"{runs * _BATCH / (time.perf_counter() - start):.0f} images/s"


def _loss_rows() -> Iterator[tuple[str, str]]:
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 5, (10_000, 100)).astype(np.float32), random.integers(0, 100, 10_000)
    want = softmax_focal(logits.astype(np.float64), labels).values
    got = softmax_focal_loss(torch.from_numpy(logits).cuda(), torch.from_numpy(labels).cuda(), reduction="none")
    worst = np.abs(got.cpu().numpy() - want) / np.maximum(want, 1e-30)
    yield "focal loss on CUDA", f"{worst.max():.2g} relative difference at most from float64 on the CPU"
    graph = LossGraph(build_loss_graph(), "cuda", 4)
    batch = ort.OrtValue.ortvalue_from_numpy(logits[None], "cuda", 0)
    asked = np.arange(len(logits)), labels, 2.0, 0.25, 0.0
    want = HostLogits(logits).focal(*asked)
    worst = np.abs(DeviceLogits(graph, batch, 0).focal(*asked) - want) / want
    yield "loss graph on CUDA", f"{worst.max():.2g} relative difference at most from float64 on the CPU"


def _bundle() -> Bundle:
    labels = [str(k) for k in range(10)]
    facts = {
        "name": "gpu-check",
        "version": "1",
        "created": "now",
        "task": "multiclass",
        "labels": labels,
        "input": ImageInput(height=_SIDE, width=_SIDE),
        "classes": [ClassFacts(label=label, train_count=0, prior=0.1) for label in labels],
    }
    images = np.random.default_rng(1).integers(0, 256, (2, _SIDE, _SIDE, 3), np.uint8)
    exported = export_net(build_net("resnet18", 10).eval(), facts, images)
    return Bundle(exported.card, exported.graph)


if __name__ == "__main__":
    sys.exit(main())
