"""Snow, frost, fog and drops on the lens, by which images are corrupted.

An image is float64[H, W, 3] in [0, 1] and so is the result, if a function says nothing else; draws
come in as arrays.
"""

import numpy as np

from diffseg_jax.data.corruption_blurs import as_bytes, enlarged, gaussian_blur, motion_blur

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue
WATER, MUD = (175, 238, 238), (63, 42, 20)
AMPLITUDE = 100  # of the first level of a plasma map
LOW_EDGE, HIGH_EDGE = 50, 150  # gradients of Canny's edges
CUT_AT = 20  # pixels, at which distances to an edge are cut
CHAMFER = {(0, 1): 1.0, (1, 1): 1.4, (1, 2): 2.1969}  # length of a step (rows, columns)


def snow(
    image: np.ndarray, mean: float, std: float, zoom: float, cut: float, radius: int, sigma: float,
    mix: float, *, noise: np.ndarray, angle: float,
) -> np.ndarray:  # fmt: skip
    """Flakes that fall at `angle` over a whitened image; noise f[H, W] is standard normal."""
    flakes = enlarged(mean + std * noise.astype(float), zoom)
    flakes[flakes < cut] = 0
    layer = motion_blur(as_bytes(flakes), radius, sigma, angle=angle)[..., None] / 255
    grey = (image.astype(np.float32) @ np.float32(LUMA))[..., None]
    whitened = mix * image + (1 - mix) * np.maximum(image, 1.5 * grey + 0.5)
    return whitened + layer + layer[::-1, ::-1]


def frost(image: np.ndarray, of_image: float, of_frost: float, *, crop: np.ndarray) -> np.ndarray:
    """uint8 -> uint8: the weighted sum with a crop uint8[H, W, 3] of a photograph of frost."""
    return np.clip(of_image * image + of_frost * crop, 0, 255).astype(np.uint8)


def fog(image: np.ndarray, amount: float, decay: float, *, uniform: np.ndarray) -> np.ndarray:
    """A plasma map of fog laid over the image; uniform as of `plasma`."""
    height, width = image.shape[:2]
    layer = plasma(fog_side(height, width), uniform, decay)[:height, :width, None]
    brightest = image.max()
    return (image + amount * layer) * brightest / (brightest + amount)


def fog_side(height: int, width: int) -> int:
    """The side of the plasma map that covers an image, a power of two."""
    return 1 << (max(height, width) - 1).bit_length()


def plasma(side: int, uniform: np.ndarray, decay: float) -> np.ndarray:
    """A fractal map f64[side, side] from 0 to 1 by diamonds and squares, on a torus.

    side     a power of two, 2 or more
    uniform  f[side**2 - 1] in [0, 1), in the order of use
    decay    by which the amplitude shrinks from level to level
    """
    grid, step, amplitude, used = np.zeros((side, side)), side, AMPLITUDE, 0
    while step > 1:
        half = step // 2
        cells = side // step
        count = 3 * cells**2
        noise = 2 * uniform[used : used + count].astype(float).reshape(3, cells, cells) - 1
        noise *= amplitude**2  # squared, as in the original
        corners, centres = grid[::step, ::step], grid[half::step, half::step]
        beside, below = np.roll(corners, -1, 1), np.roll(corners, -1, 0)
        centres[:] = (corners + beside + below + np.roll(below, -1, 1)) / 4 + noise[0]
        above, left = np.roll(centres, 1, 0), np.roll(centres, 1, 1)
        grid[::step, half::step] = (corners + beside + centres + above) / 4 + noise[1]
        grid[half::step, ::step] = (corners + below + centres + left) / 4 + noise[2]
        step, amplitude, used = half, amplitude / decay, used + count
    grid -= grid.min()
    return grid / grid.max()


def spatter(
    image: np.ndarray, mean: float, std: float, sigma: float, cut: float, strength: float,
    mud: int, *, noise: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Drops of water, or of mud, on the lens; noise f[H, W] is standard normal.

    An image on which no drop falls is not changed.
    """
    layer = mean + std * noise.astype(float)
    layer = gaussian_blur(layer[..., None], sigma)[..., 0]
    if mud:
        mask = gaussian_blur((layer > cut).astype(float)[..., None], strength)
        mask[mask < 0.8] = 0
        return image * (1 - mask) + mask * np.array(MUD) / 255
    layer[layer < cut] = 0
    liquid = (255 * layer).astype(int).astype(np.uint8)  # wraps above 1, as in the original
    mask = liquid.astype(float) * water_relief(liquid)
    if not mask.any():
        return image
    return image + strength * (mask / mask.max())[..., None] * np.array(WATER) / 255


def water_relief(liquid: np.ndarray) -> np.ndarray:
    """How drops uint8[H, W] bend the light, from the distance to their edges: f64[H, W] 0..255."""
    from scipy.ndimage import correlate, uniform_filter

    distance = np.minimum(distance_to(canny_edges(liquid)), CUT_AT)
    smooth = uniform_filter(distance, 3, mode="mirror")
    relief = equalised((smooth + 1e-4).astype(np.uint8)).astype(float)
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], float)
    bent = np.clip(correlate(relief, kernel, mode="mirror"), 0, 255)
    return np.rint(uniform_filter(bent, 3, mode="mirror"))


def canny_edges(grey: np.ndarray) -> np.ndarray:
    """Canny's edges of uint8[H, W], by thresholds on |gx| + |gy|: bool[H, W]."""
    from scipy.ndimage import correlate1d, label

    values, edge = grey.astype(np.int64), "nearest"
    slope, smooth = (-1, 0, 1), (1, 2, 1)
    right = correlate1d(correlate1d(values, slope, 1, mode=edge), smooth, 0, mode=edge)
    down = correlate1d(correlate1d(values, slope, 0, mode=edge), smooth, 1, mode=edge)
    ridges = _ridges(right, down) & (np.abs(right) + np.abs(down) > LOW_EDGE)
    regions, _ = label(ridges, np.ones((3, 3)))
    strong = np.unique(regions[ridges & (np.abs(right) + np.abs(down) > HIGH_EDGE)])
    return np.isin(regions, strong[strong > 0])


def _ridges(right, down):
    """Where the gradient is largest along its own direction, one of four: bool[H, W]."""
    size = np.abs(right) + np.abs(down)
    height, width = size.shape
    padded = np.pad(size, 1)
    at = lambda y, x: padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]
    tangent, x, y = 13573, np.abs(right), np.abs(down) << 15  # of 22.5 degrees, times 2**15
    flat, steep = y < x * tangent, y > x * (tangent + (1 << 16))
    along_row = (size > at(0, -1)) & (size >= at(0, 1))
    along_column = (size > at(-1, 0)) & (size >= at(1, 0))
    rising = (size > at(-1, 1)) & (size > at(1, -1))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    diagonal = np.where((right ^ down) < 0, rising, falling)
    return np.where(flat, along_row, np.where(steep, along_column, diagonal))


def distance_to(edges: np.ndarray) -> np.ndarray:
    """The length of the shortest chain of CHAMFER's steps to an edge, if it is below CUT_AT."""
    steps = {
        (sign_y * y, sign_x * x): length
        for (a, b), length in CHAMFER.items() for y, x in ((a, b), (b, a))
        for sign_y in (1, -1) for sign_x in (1, -1)
    }  # fmt: skip
    height, width = edges.shape
    distance = np.where(edges, 0.0, 4 * CUT_AT)
    for _ in range(CUT_AT):
        padded = np.pad(distance, 2, constant_values=4 * CUT_AT)
        shorter = distance
        for (y, x), length in steps.items():
            near = padded[2 + y : 2 + y + height, 2 + x : 2 + x + width]
            shorter = np.minimum(shorter, near + length)
        if np.array_equal(shorter, distance):
            break
        distance = shorter
    return distance


def equalised(values: np.ndarray) -> np.ndarray:
    """uint8[H, W] whose histogram is made even; a single value is not changed."""
    counts = np.bincount(values.ravel(), minlength=256)
    first = np.flatnonzero(counts)[0]
    if counts[first] == values.size:
        return values
    after = np.cumsum(counts) - counts[first]
    table = np.rint(255 * after.clip(0) / (values.size - counts[first]))
    return table.astype(np.uint8)[values]
