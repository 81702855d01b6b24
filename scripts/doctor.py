"""`focalserve doctor`: is this machine fit to serve? Versions, providers, cores, one timed run."""

import base64
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnxruntime as ort
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.errors import FocalserveError
from scripts.clients import choose_bundle
from scripts.flags import Flags
from service.model_folder import open_engine
from service.runtime import CUDA, cuda_driver_present
from service.settings import usable_cores
from service.warm_up import best_seconds

_PACKAGES = (
    "focalserve",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
    "pillow",
    "fastapi",
    "uvicorn",
    "pydantic",
    "torch",
)
# Four matrix products of 256 x 256: what is timed where no bundle is given.
_PROBE_GRAPH = (
    "CAo65QEKKBIBcyIIQ29uc3RhbnQqGQoFdmFsdWUqDQgCEAc6BIACgAJCAXagAQQKMgoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlKhkK"
    "BXZhbHVlKg0IARABIgQK1yM8QgF2oAEEChIKAXgKAXcSAmgwIgZNYXRNdWwKEwoCaDAKAXcSAmgxIgZNYXRNdWwKEwoCaDEKAXcS"
    "AmgyIgZNYXRNdWwKEgoCaDIKAXcSAXkiBk1hdE11bBIFcHJvYmVaFQoBeBIQCg4IARIKCgMSAU4KAwiAAmIVCgF5EhAKDggBEgoK"
    "AxIBTgoDCIACQgQKABAU"
)


class DoctorFlags(Flags):
    """Check this machine; exit code 1 where something is wrong. With a bundle, it is checked and timed too."""

    model_config = SettingsConfigDict(cli_prog_name="focalserve doctor")

    bundle: CliPositionalArg[Path | None] = Field(None, description="a bundle, or a folder with one model")


def main(argv: Sequence[str]) -> int:
    """Runs `focalserve doctor`: 0 where all is well."""
    flags = DoctorFlags.parse(argv)
    print(f"python      {platform.python_version()} on {platform.platform()}")
    for line in _versions():
        print(line)
    print(f"cores       {usable_cores()} usable by this process")
    wrong = [*_two_runtimes(), *_cuda()]
    try:
        print(_time_bundle(flags.bundle) if flags.bundle else _time_probe())
    except FocalserveError as error:
        wrong.append(str(error))
    for fault in wrong:
        print(f"WRONG       {fault}")
    print("all is well" if not wrong else f"{len(wrong)} thing(s) to mend")
    return 1 if wrong else 0


def _versions() -> Iterator[str]:
    for name in _PACKAGES:
        try:
            yield f"{name:16} {version(name)}"
        except PackageNotFoundError:
            continue


def _two_runtimes() -> Iterator[str]:
    """Both wheels write into one package folder: whichever came last has half overwritten the other."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if len(found) > 1:
        yield f"{' and '.join(found)} are both installed and overwrite each other; uninstall both, install one"


def _cuda() -> Iterator[str]:
    if not cuda_driver_present():
        print("CUDA        no NVIDIA driver (libcuda.so.1): the CPU is used")
        return
    ort.set_default_logger_severity(4)
    ort.preload_dlls()
    session = ort.InferenceSession(base64.b64decode(_PROBE_GRAPH), providers=[CUDA, "CPUExecutionProvider"])
    got = session.get_providers()[0]
    print(f"CUDA        a session that asks for it runs on {got}")
    if got != CUDA:
        yield "there is an NVIDIA driver, but ONNX Runtime cannot use it: pip install 'focalserve[cuda]'"


def _time_bundle(folder: Path) -> str:
    engine = open_engine(choose_bundle(folder, None), "auto", usable_cores())
    card, took = engine.card, best_seconds(engine.blank(1)) * 1e3
    return f"inference   {card.name} version {card.version} on {engine.device}: {took:.2f} ms for one image"


def _time_probe() -> str:
    session = ort.InferenceSession(base64.b64decode(_PROBE_GRAPH), providers=["CPUExecutionProvider"])
    row = np.ones((1, 256), np.float32)
    took = _median_ms(lambda: session.run(None, {"x": row}))
    return f"inference   four 256 x 256 products on {session.get_providers()[0]}: {took:.3f} ms"


def _median_ms(run: Callable[[], object], times: int = 20) -> float:
    run()
    took = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append((time.perf_counter() - start) * 1e3)
    return sorted(took)[len(took) // 2]
