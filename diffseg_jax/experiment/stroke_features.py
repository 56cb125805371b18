"""Features of images for a fit to strokes: computed once, kept on disk and, some, in memory."""

import collections
import hashlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffseg_jax.data.npy import arrays_in_npz
from diffseg_jax.data.transforms import resize_image
from diffseg_jax.errors import UserError
from diffseg_jax.inference.views import Protocol
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.storage.integrity import fingerprints
from diffseg_jax.storage.paths import read_bytes, write_atomically

MEMORY = 2**30  # bytes of the maps that are kept in memory
FORMAT_OF_MAPS = 1  # grows when the same network gives other maps, or files hold them otherwise
DIGEST_DIGITS = 24  # of the digests in names of files


class FeatureCache:
    """The maps of images by a digest of their pixels.

    extract   (network, images u8[1,h,w,3], valid i32[1,2]) -> PixelFeatures, compiled for each size
    network   {"params", "stats"}
    folder    of the files, one .npz for each image and network; they may be deleted at any time
    identity  JSON values that tell which features they are, besides the arrays of the network
    limit     (longer, shorter side) into which images are fitted first, as `load(...).predict` does
    memory    bytes of maps that stay in memory; those that were used last stay
    """

    def __init__(
        self, extract: Callable, network: dict, folder: Path, identity: dict,
        limit: tuple[int, int], memory: int = MEMORY,
    ):  # fmt: skip
        self.extract, self.network, self.folder = extract, network, folder
        self.protocol, self.memory = Protocol(limit=tuple(limit)), memory
        content = {
            **identity, "limit": list(limit), "arrays": fingerprints(network),
            "format": FORMAT_OF_MAPS,
        }  # fmt: skip
        content = json.dumps(content, sort_keys=True).encode()
        self.of = hashlib.sha256(content).hexdigest()[:DIGEST_DIGITS]
        self.kept, self.bytes = collections.OrderedDict(), 0
        self.computed = 0  # images, by this object

    def file_of(self, digest: str) -> Path:
        """Where the maps of an image are."""
        return self.folder / f"{digest[:DIGEST_DIGITS]}_{self.of}.npz"

    def has(self, digest: str) -> bool:
        """Whether its maps are in memory or on disk."""
        return digest in self.kept or self.file_of(digest).exists()

    def read(self, digest: str, image: np.ndarray | None = None) -> PixelFeatures:
        """The maps of an image as NumPy arrays, computed if there are none yet.

        image  u8[H,W,3]; None: only those that are kept, else LookupError
        """
        if digest in self.kept:
            self.kept.move_to_end(digest)
            return self.kept[digest]
        found = self._from_file(digest)
        if found is None and image is None:
            raise LookupError(digest)
        if found is None:
            found = self._compute(image)
            self._write(digest, found)
        self._keep(digest, found)
        return found

    def size_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) at which an image of that size is shown to the network."""
        return tuple(map(int, self.protocol.sizes(shape)[0]))

    def _compute(self, image) -> PixelFeatures:
        shown = resize_image(image, self.size_of(image.shape[:2]))
        found = self.extract(self.network, shown[None], np.array([shown.shape[:2]], np.int32))
        self.computed += 1
        return PixelFeatures(tuple(map(np.asarray, found.maps)), found.size, found.covered)

    def _from_file(self, digest) -> PixelFeatures | None:
        file = self.file_of(digest)
        try:
            arrays = arrays_in_npz(io.BytesIO(read_bytes(file)))
            maps = tuple(arrays[name] for name in sorted(arrays) if name.startswith("map_"))
            size = tuple(arrays["size"].tolist())
            covered = tuple(map(tuple, arrays["covered"].tolist()))
            if len(covered) != len(maps) or not maps:
                raise ValueError("it lacks maps")
            return PixelFeatures(maps, size, covered)
        except FileNotFoundError:
            return None
        except Exception as error:  # damaged files raise many types
            warnings.warn(f"{file} cannot be read ({error}), so it is made again", stacklevel=3)
            return None

    def _write(self, digest, found):
        content, full = io.BytesIO(), ((1.0, 1.0),) * len(found.maps)
        maps = {f"map_{i:02}": values for i, values in enumerate(found.maps)}
        np.savez(content, size=found.size, covered=found.covered or full, **maps)
        try:
            write_atomically(self.file_of(digest), content.getvalue())
        except OSError as error:
            raise UserError(
                f"features cannot be written to {self.folder} ({error.strerror or error}). Free "
                "some space, or give another --output."
            ) from None

    def _keep(self, digest, found):
        self.kept[digest] = found
        self.bytes += found.nbytes
        while self.bytes > self.memory and len(self.kept) > 1:
            _, old = self.kept.popitem(last=False)
            self.bytes -= old.nbytes


def pixels_digest(image: np.ndarray) -> str:
    """The SHA-256 of an image's size and pixels u8[H,W,3], in hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
