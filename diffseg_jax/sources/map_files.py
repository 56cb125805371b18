"""Maps of features that files hold, as a value."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class MapFiles:
    """The maps of images, found by the names of the images.

    folder   that holds them;  example  abstract maps f32[1, h, w, C] of one image
    read     names of B images -> f32[B, h, w, C] each; UserError for missing and other maps
    lacking  names of images -> those without a file; UserError where one may have several
    """

    folder: str
    example: tuple
    read: Callable
    lacking: Callable
