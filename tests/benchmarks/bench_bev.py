"""Our camera encoder of BEV networks, timed; torch_bev.py is its plain PyTorch twin.

python tests/benchmarks/bench_bev.py --what=encoder|pool [--cells=cells.npy]

encoder  six images of 256x704 to features of 128x128 cells, at the published sizes, float32
pool     the softmax over 118 depths, and the sum over 6 x 118 x 32 x 88 points of 80 features into
         256x256 cells

Random weights; both programs pool into the same cells, which ours writes to the file --cells.
"""

from random_network import random_values
from timing import jax_program


def cameras():
    """f32[1, 6, 2, 3, 4] of cameras around a car, 0.4 m high, whose photographs are 1600x900."""
    import numpy as np

    from diffseg_jax.data.bev_transforms import RigView, affine_maps

    intrinsics = np.array([[1280, 0, 800], [0, 1280, 450], [0, 0, 1.0]])
    to_world = np.stack([np.eye(4)] * 6)
    for matrix, turn in zip(to_world, 2 * np.pi * np.arange(6) / 6):
        ahead, right = (np.cos(turn), np.sin(turn), 0), (np.sin(turn), -np.cos(turn), 0)
        matrix[:3, :3] = np.stack([right, (0, 0, -1), ahead], -1)
        matrix[:3, 3] = 0.1 * ahead[0], 0.1 * ahead[1], 0.4
    image = np.stack([RigView((256, 704), 0.48).matrix(900, 1600)] * 6)
    return affine_maps(np.stack([intrinsics] * 6), to_world, image, np.eye(4))[None]


def make_step(args):
    """The encoder of a set of images, or the pooling alone."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffseg_jax.layers.bev_pooling import (
        Grid,
        cells_of_points,
        depth_bins,
        frustum,
        points_of,
        pool,
    )
    from diffseg_jax.models.bev_network import BEVNetwork, BEVSettings
    from diffseg_jax.models.network import Network

    settings, draw = BEVSettings(num_classes=6), np.random.default_rng(0)
    pixels = frustum((256, 704), (32, 88), depth_bins(settings.depth))
    grid = Grid(settings.x, settings.y, settings.z)
    placed = cameras()
    cells = jax.jit(lambda c: cells_of_points(points_of(c, pixels), grid))(placed)
    if args.cells:
        np.save(args.cells, np.asarray(cells)[0])
    if args.what == "pool":
        bins = cells.shape[2]
        given = draw.standard_normal((1, 6, 32, 88, bins + settings.lifted)).astype(np.float32)
        given = jax.device_put((given, np.asarray(cells)))

        @jax.jit
        def run(y, cells):
            depth = jnp.moveaxis(jax.nn.softmax(y[..., :bins]), -1, 2)
            return pool(depth, y[..., bins:], cells, 256 * 256)

        return lambda: run(*given)
    network = Network(lambda rngs: BEVNetwork(settings, rngs=rngs))
    values = random_values(network)
    images = jax.device_put(draw.standard_normal((1, 6, 256, 704, 3)).astype(np.float32))
    run = jax.jit(lambda v, i, c: network.bind_eval(**v).encode(i, c)[0])
    return lambda: run(values, images, placed)


if __name__ == "__main__":
    jax_program(__doc__, ("encoder", "pool"), make_step, cells="")
