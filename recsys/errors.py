"""The error tree. Every error that a user can cause or meet is one of these, with a one-line message that says what
is wrong, where, and what to do; no lower library's error escapes the package.

RecsysError
├── DataError            the user's data: names file, row, column
├── SpecError            a spec or an option: names the field
├── UnknownUserError     a user id that the log does not hold
├── UnknownItemError     an item id that the catalog does not hold
├── WeightsError         LM weights that cannot be found, fetched or trusted
├── ModelError           an LM or an endpoint that failed or answered nonsense
│   └── NotOfferedError  a server that lacks what it was asked for
├── BundleError          a bundle that is missing, altered or of another format
├── RegistryError        the model registry is out of reach or has no such model
└── StorageError         a file that cannot be written (full disk, no permission)
"""


class RecsysError(Exception):
    """Base of every error that this package raises on purpose."""


class DataError(RecsysError):
    """The user's data cannot be used as it is."""


class SpecError(RecsysError):
    """A spec file or an option has a wrong or missing field."""


class UnknownUserError(RecsysError):
    """A user id that the log does not hold."""


class UnknownItemError(RecsysError):
    """An item id that the catalog does not hold."""


class WeightsError(RecsysError):
    """Model weights that cannot be found, fetched or trusted."""


class ModelError(RecsysError):
    """A language model or an endpoint that failed or answered nonsense."""


class NotOfferedError(ModelError):
    """A server does not offer what was asked of it; another way may be tried."""


class BundleError(RecsysError):
    """A bundle that is missing, altered or of another format."""


class RegistryError(RecsysError):
    """The model registry is out of reach or does not hold what was asked."""


class StorageError(RecsysError):
    """A file that cannot be written."""
