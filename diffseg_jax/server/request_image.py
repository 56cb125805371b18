"""The image in the body of a request, as it is or in a form."""

import io

import numpy as np
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from diffseg_jax.data.formats import image_formats
from diffseg_jax.data.images import read_image
from diffseg_jax.errors import UserError, visible
from diffseg_jax.server.security import RequestRefused


class _InMemory(MultiPartParser):
    """Writes no part of a form to a file: the body is in memory already."""

    spool_max_size = 2**40


async def image_of_form(request: Request, body: bytes) -> bytes:
    """The content of the file `image` of a form; RequestRefused for others."""

    async def stream():
        yield body

    try:
        form = await _InMemory(request.headers, stream(), max_files=1, max_fields=0).parse()
    except MultiPartException as error:
        said = error.message.rstrip(".")
        raise RequestRefused(
            400, f"the form cannot be read: {said}. It takes one file, image; options go into the "
            "address."
        ) from None  # fmt: skip
    image = form.get("image")
    if not isinstance(image, UploadFile):
        names = ", ".join(visible(name[:50]) for name in form) or "nothing"
        raise RequestRefused(400, f"the form holds {names}, but must hold a file named image.")
    return await image.read()


def image_in(content: bytes, most: int) -> np.ndarray:
    """The upright image u8[H,W,3] in the bytes of a file.

    RequestRefused with 413 for more than `most` pixels, before they are decoded; 400 for no image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=image_formats()) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        sentence = f"the image is larger than {most:,} pixels. Send a smaller one."
        raise RequestRefused(413, sentence) from None
    except Exception:  # Pillow raises many types; read_image says what is wrong
        width = height = 0
    if width * height > most:
        raise RequestRefused(
            413, f"the image is {width}x{height}, {width * height:,} pixels, but this server takes "
            f"{most:,}. Send a smaller one."
        )  # fmt: skip
    try:
        return read_image("the image", content)
    except UserError as error:
        raise RequestRefused(400, str(error)) from None
