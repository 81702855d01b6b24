"""What ONNX Runtime says of a failure, without what is nobody's business: its own files and functions, and any path."""

import re

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_WHERE = re.compile(r"\S+\.(?:h|cc|cu):\d+ .*?\)>? (?:\[with [^\]]*\] )?")
_WITHIN = re.compile(r".* Status Message: ")
_NOT_WORDS = re.compile(r"/\w+/|\\|::|\.(?:h|cc|cu)\b")
_LONGEST = 200


def words_of(error: BaseException) -> str:
    """The reason in an exception of ONNX Runtime, at most 200 characters; "" where it cannot be told from the rest."""
    text = str(error).strip()
    for part in (_CODE, _WITHIN, _WHERE):
        text = part.sub("", text)
    text = text.strip().rstrip(".")
    return "" if _NOT_WORDS.search(text) or not text.isprintable() else text[:_LONGEST]
