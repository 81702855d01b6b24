"""The `focalserve` command: a verb, then that verb's own flags. A verb's module is imported only when asked for."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from models.errors import FocalserveError, InvalidInput

VERBS = {
    "train": ("scripts.train:main", "train a focal-loss classifier or detector, and export it"),
    "serve": ("service.__main__:main", "serve bundles over HTTP"),
    "predict": ("scripts.score:predict", "classify image files or find boxes, with a bundle or a running service"),
    "loss": ("scripts.score:loss", "score the labels of a data set: which are wrong?"),
    "audit": ("scripts.audit:main", "find the wrong labels of a data set by cross-validation, with a report"),
    "audit-rows": ("scripts.row_audit:main", "find the wrong labels of rows of logits or probabilities"),
    "apply": ("scripts.apply:main", "write an audited data set anew with decisions on its labels"),
    "info": ("scripts.info:main", "show what a bundle is"),
    "doctor": ("scripts.doctor:main", "check this machine: versions, providers, cores, one timed inference"),
    "bench": ("scripts.bench:main", "measure a bundle: the machine's limit, the service, the ratio"),
    "demo": ("scripts.demo:main", "the whole story on real images: train, export, serve, find wrong labels"),
    "demo-detect": ("scripts.demo_detect:main", "the same with boxes: trees in aerial photographs, fetched by pip"),
}
_TRAIN_ONLY = {"torch", "onnx", "onnxscript", "yaml", "defusedxml", "faster_coco_eval"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; its exit code: 0, 1 (failed), 2 (bad input), 3 (bundle refused), 130 (interrupted)."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    if given[0] in ("-V", "--version"):
        print(f"focalserve {version('focalserve')}")
        return 0
    if given[0] not in VERBS:
        near = "".join(f"; is it {verb}?" for verb in difflib.get_close_matches(given[0], VERBS, 1))
        print(f"focalserve: there is no verb {given[0]!r}{near}\nfocalserve --help lists them", file=sys.stderr)
        return 2
    return _run(given[0], given[1:])


def usage() -> str:
    """The verbs, a line each."""
    lines = [f"  {verb:11} {what}" for verb, (_, what) in VERBS.items()]
    return "usage: focalserve VERB ...\n\n" + "\n".join(lines) + "\n\nfocalserve VERB --help tells each verb's flags"


def _run(verb: str, argv: Sequence[str]) -> int:
    # Read by torch when it loads: threads that spin while they wait cost a shared machine ten times the processor time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if verb == "train":
        # Some milliseconds of it: threads that sleep between the net's many small steps wake up on the same core.
        os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    try:
        return _load(VERBS[verb][0])(argv)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _TRAIN_ONLY:
            raise
        print(f"focalserve {verb}: needs the train extra ({error.name} is missing): pip install 'focalserve[train]'",
              file=sys.stderr)  # fmt: skip
        return 2
    except InvalidInput as error:
        print(f"focalserve {verb}: {error}\nfocalserve {verb} --help lists every flag", file=sys.stderr)
        return 2
    except (FocalserveError, OSError) as error:
        print(f"focalserve {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _load(target: str) -> Callable[[Sequence[str]], int]:
    module, function = target.split(":")
    run: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return run


if __name__ == "__main__":
    sys.exit(main())
