"""Corruptions of images in five severities, as in ImageNet-C (Hendrycks and Dietterich, 2019).

    corrupt(image, "fog", 3, key="street_17")          uint8[H, W, 3] -> uint8[H, W, 3]

A corruption draws random numbers (`draws_of`), then computes without chance (`apply`). Its
constants were chosen for photographs of 224 pixels ("224"), others for images of 64 pixels ("64"):
radii and widths are in pixels, and do not grow with the image. The result is what the published
programs compute in memory, without the JPEG compression with which the published files were saved.
The one exception is frost_procedural, whose textures of frost are drawn here: the photographs of
the published `frost` are no part of this package.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from diffseg_jax.data import corruption_blurs as blurs
from diffseg_jax.data import corruption_weather as weather
from diffseg_jax.data.corruption_frost import drawn_frost, frost_crop
from diffseg_jax.errors import UserError, choose, require_known, shown

LEAST_SIDE = 16  # pixels
SEVERITIES = (1, 2, 3, 4, 5)
DRAWN_FROST, ELASTIC = "frost_procedural", "elastic_transform"  # not among the published eighteen
SHRUNK = {"224": 1.0, "64": 0.3}  # factor of images of frost
FOR_224 = {  # type -> the arguments of its function, by severity
    "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    "shot_noise": ((60,), (25,), (12,), (5,), (3,)),
    "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    "speckle_noise": ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "gaussian_blur": ((1,), (2,), (3,), (4,), (6,)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    "pixelate": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    "jpeg_compression": ((25,), (18,), (15,), (10,), (7,)),
    "elastic_transform": (  # of 244 pixels, as the published program has it
        (488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
}  # fmt: skip
FOR_64 = {
    "gaussian_noise": ((0.04,), (0.08,), (0.12,), (0.15,), (0.18,)),
    "shot_noise": ((250,), (100,), (50,), (30,), (15,)),
    "impulse_noise": ((0.01,), (0.02,), (0.05,), (0.08,), (0.14,)),
    "speckle_noise": ((0.15,), (0.2,), (0.25,), (0.3,), (0.35,)),
    "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "gaussian_blur": ((0.5,), (0.75,), (1,), (1.25,), (1.5,)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8), (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    "frost": ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    "fog": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.6, 0), (0.65, 0.1, 0.8, 0.7, 0.6, 0), (0.65, 0.3, 1, 0.69, 0.6, 0),
        (0.65, 0.1, 0.7, 0.68, 0.6, 1), (0.65, 0.1, 0.5, 0.67, 0.6, 1),
    ),
    "brightness": FOR_224["brightness"],
    "contrast": FOR_224["contrast"],
    "saturate": (*FOR_224["saturate"][:4], (30, 0.2)),
    "pixelate": ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)),
    "jpeg_compression": ((65,), (58,), (50,), (40,), (25,)),
    "elastic_transform": (
        (0, 0, 5.12), (3.2, 19.2, 3.84), (6.4, 5.12, 3.84), (6.4, 1.92, 1.92), (10.24, 1.92, 1.28),
    ),
}  # fmt: skip
SETS = {"224": FOR_224, "64": FOR_64}
CONSTANTS = {name: {**table, DRAWN_FROST: table["frost"]} for name, table in SETS.items()}
TYPES = tuple(CONSTANTS["224"])


def default_types(has_frost: bool) -> tuple[str, ...]:
    """The eighteen types of DDPM-Seg's study as read here: all but elastic_transform.

    has_frost  whether there are photographs of frost; without them frost_procedural stands for it
    """
    off = {ELASTIC, DRAWN_FROST if has_frost else "frost"}
    return tuple(name for name in TYPES if name not in off)


def corrupt(
    image: np.ndarray, name: str, severity: int, *, key: str, seed: int = 0,
    constants: str = "224", frost: Sequence[np.ndarray] = (),
) -> np.ndarray:  # fmt: skip
    """A corrupted copy of an image, uint8[H, W, 3]; sides of any length from 16 pixels on.

    name, severity  one of TYPES, and 1 to 5
    key, seed       the name of the image and the seed of the run, from which the draws follow: not
                    from the order in which images come
    constants       "224" or "64"
    frost           photographs, uint8[h, w, 3], see `read_frost`

    Raises UserError as `draws_of` does.
    """
    rng = generator(seed, key, name, severity)
    draws = draws_of(image, name, severity, rng, constants, frost)
    return apply(image, name, severity, draws, constants)


def corrupt_mask(
    mask: np.ndarray, name: str, severity: int, *, key: str, seed: int = 0, constants: str = "224"
) -> np.ndarray:  # fmt: skip
    """The mask int[H, W] of a corrupted image: elastic_transform moves it with the image."""
    if name != ELASTIC:
        return mask
    rng = generator(seed, key, name, severity)
    draws = draws_of(np.zeros((*mask.shape, 3), np.uint8), name, severity, rng, constants)
    scales = CONSTANTS[constants][name][severity - 1]
    return blurs.elastic_transform(mask, *scales, **draws, order=0)


def generator(seed: int, key: str, name: str, severity: int) -> np.random.Generator:
    """The random numbers of one image under one corruption."""
    digest = hashlib.sha256(f"{seed}/{name}/{severity}/{key}".encode("utf-8", "surrogateescape"))
    return np.random.default_rng(int.from_bytes(digest.digest()[:16]))


def draws_of(
    image: np.ndarray, name: str, severity: int, rng: np.random.Generator, constants: str = "224",
    frost: Sequence[np.ndarray] = (),
) -> dict:  # fmt: skip
    """The random part of a corruption: arrays for `apply`, by their names.

    Raises UserError for an unknown type or severity, for an image of another form or too small, and
    for frost without photographs.
    """
    given = _checked(image, name, severity, constants)
    size = image.shape[:2]
    if name == "frost":
        if not frost:
            raise UserError(
                "frost lays photographs over the image, which are no part of this package. Give "
                f'their folder, or take "{DRAWN_FROST}", for which they are drawn.'
            )
        return {"crop": frost_crop(frost, size, rng, SHRUNK[constants])}
    if name == DRAWN_FROST:
        return {"crop": drawn_frost(size, rng)}
    if name == "shot_noise":
        return {"counts": rng.poisson(image / 255 * given[0])}
    if name == "impulse_noise":
        return {"hit": rng.random(image.shape) < given[0], "white": rng.random(image.shape) < 0.5}
    if name == "glass_blur":
        _, reach, rounds = given
        replaced = rounds * len(blurs.glass_indices(*size, reach))
        return {"offsets": rng.integers(-reach, reach, (replaced, 2))}
    if name == "fog":
        return {"uniform": rng.random(weather.fog_side(*size) ** 2 - 1)}
    if name == ELASTIC:
        fields = {part: rng.random(size) for part in ("right", "down")}
        return {"corners": rng.random((3, 2)), **fields}
    draws = {}
    if name in ("gaussian_noise", "speckle_noise"):
        draws["noise"] = rng.standard_normal(image.shape)
    if name in ("snow", "spatter"):
        draws["noise"] = rng.standard_normal(size)
    if name in ("motion_blur", "snow"):
        draws["angle"] = rng.uniform(-45, 45) if name == "motion_blur" else rng.uniform(-135, -45)
    return draws


def apply(image: np.ndarray, name: str, severity: int, draws: dict, constants: str = "224"):
    """The corrupted image uint8[H, W, 3] for these draws; raises UserError as `draws_of` does."""
    given = _checked(image, name, severity, constants)
    if name in OF_BYTES:
        return OF_BYTES[name](image, *given, **draws)
    return blurs.as_bytes(OF_VALUES[name](image / 255, *given, **draws))


def _checked(image, name, severity, constants) -> tuple:
    """The constants of a corruption; UserError for what it cannot do."""
    require_known(name, TYPES, "corruption")
    table = choose(CONSTANTS, constants, "set of constants")
    if severity not in SEVERITIES:
        raise UserError(f"severity {shown(severity)} of {name} is none of 1, 2, 3, 4, 5.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(
            f"an image to corrupt is {image.dtype} of shape {image.shape}, but it must be uint8 of "
            "shape (height, width, 3); np.repeat(grey[..., None], 3, -1) makes one of a grey image."
        )
    require_large_enough(image)
    return table[name][severity - 1]


def require_large_enough(image: np.ndarray, name: str = ""):
    """Raises UserError for an image, with its name if it has one, that is too small to corrupt."""
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE:
        which = f"image {name}" if name else "an image"
        raise UserError(
            f"{which} of {height} x {width} pixels is too small for corruptions, whose blurs and "
            f"blocks need {LEAST_SIDE} x {LEAST_SIDE} or more. Enlarge or skip it."
        )


# ---- corruptions of single pixels ----------------------------------------------------------------


def _impulse_noise(image, share, *, hit, white):
    return np.where(hit, white, image)


def _contrast(image, factor):
    mean = image.mean((0, 1))
    return (image - mean) * factor + mean


def _brightness(image, more):
    """A larger value in HSV; black becomes grey."""
    value = image.max(-1, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return np.where(value > 0, image / np.where(value > 0, value, 1), 1) * brighter


def _saturate(image, gain, offset):
    """Another saturation in HSV; grey has the hue of red, so it becomes reddish with an offset."""
    value = image.max(-1, keepdims=True)
    spread = value - image.min(-1, keepdims=True)
    saturation = np.where(value > 0, spread / np.where(value > 0, value, 1), 0)
    new = np.clip(gain * saturation + offset, 0, 1)
    distance = np.where(spread > 0, (value - image) / np.where(spread > 0, spread, 1), (0, 1, 1))
    return value * (1 - new * distance)


OF_VALUES = {  # (image f64[H, W, 3] in [0, 1], constants, draws) -> the same, not clipped
    "gaussian_noise": lambda image, sigma, *, noise: image + sigma * noise,
    "shot_noise": lambda image, rate, *, counts: counts / rate,
    "impulse_noise": _impulse_noise,
    "speckle_noise": lambda image, sigma, *, noise: image + image * noise * sigma,
    "defocus_blur": blurs.defocus_blur,
    "glass_blur": blurs.glass_blur,
    "zoom_blur": blurs.zoom_blur,
    "gaussian_blur": blurs.gaussian_blur,
    ELASTIC: blurs.elastic_transform,
    "snow": weather.snow,
    "fog": weather.fog,
    "spatter": weather.spatter,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturate": _saturate,
}
OF_BYTES = {  # (image u8[H, W, 3], constants, draws) -> the same
    "motion_blur": lambda *given, **draws: blurs.motion_blur(*given, **draws).astype(np.uint8),
    "frost": weather.frost,
    DRAWN_FROST: weather.frost,
    "pixelate": blurs.pixelate,
    "jpeg_compression": blurs.jpeg_compression,
}
