"""The one tree of errors. Each says whose fault it is; `service.errors` gives each an HTTP status.

FocalserveError
├── InvalidInput               what a caller or a file gave cannot be used
│   ├── InvalidLabel           a label that the model does not know, or of the wrong form
│   ├── UndecodableImage       bytes that are not a whole picture of an accepted format
│   └── ImageTooLarge          more pixels, or a longer side, than allowed; found before decoding
├── BundleError                a bundle that must not be served: missing, altered, inconsistent
├── DeviceUnavailable          a device was asked for that the runtime did not give
└── ServiceError               see service/errors.py: full, not ready, not found, ...
"""


class FocalserveError(Exception):
    """Base of all errors that focalserve raises on purpose. The text is fit to be shown to whoever caused it."""


class InvalidInput(FocalserveError):
    """What a caller or a file gave cannot be used."""


class InvalidLabel(InvalidInput):
    """A label that the model does not know, or of the wrong form."""


class UndecodableImage(InvalidInput):
    """Bytes that are not a whole picture of an accepted format."""


class ImageTooLarge(InvalidInput):
    """A picture with more pixels, or a longer side, than allowed; found in its header, before decoding."""


class BundleError(FocalserveError):
    """A bundle that must not be served: missing, altered, or inconsistent with itself."""


class DeviceUnavailable(FocalserveError):
    """A device was asked for that the runtime did not give."""
