"""Random numbers of jax in plain arithmetic, so that a file draws what jax draws.

A key is two words u32[...]. Threefry: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3"
(2011), with 20 rounds on two words, as jax uses it.
"""

import math

import jax
import jax.numpy as jnp

Words = tuple[jax.Array, jax.Array]
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
INVERSE_ERF = (  # coefficients of Giles, "Approximating the erfinv function" (2012): w < 5, w >= 5
    (2.81022636e-08, -0.000200214257), (3.43273939e-07, 0.000100950558),
    (-3.5233877e-06, 0.00134934322), (-4.39150654e-06, -0.00367342844),
    (0.00021858087, 0.00573950773), (-0.00125372503, -0.0076224613),
    (-0.00417768164, 0.00943887047), (0.246640727, 1.00167406), (1.50140941, 2.83297682),
)  # fmt: skip


def threefry(key: Words, first: jax.Array, second: jax.Array) -> Words:
    """Two words u32[...] of a key and a counter of two words u32[...]."""
    keys = [*key, key[0] ^ key[1] ^ jnp.uint32(PARITY)]
    x, y = first + keys[0], second + keys[1]
    for block in range(5):
        for turn in ROTATIONS[block % 2]:
            x = x + y
            y = (y << jnp.uint32(turn)) | (y >> jnp.uint32(32 - turn))
            y = x ^ y
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + jnp.uint32(block + 1)
    return x, y


def fold_in(first: jax.Array, second: jax.Array, data: jax.Array) -> Words:
    """The words of the key of `jax.random.fold_in`, for those of a key and data u32[...]."""
    return threefry((first, second), jnp.zeros_like(data), data)


def random_bits(first: jax.Array, second: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """u32[..., *shape] of `jax.random.bits`, for the words u32[...] of keys."""
    counter = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    key = [word.reshape(*word.shape, *[1] * len(shape)) for word in (first, second)]
    x, y = threefry(key, jnp.uint32(0), counter)
    return x ^ y


def inverse_erf(x: jax.Array) -> jax.Array:
    """The inverse of the error function, f32[...] in (-1, 1), within 2e-7 of its size."""
    w = -jnp.log((1 - x) * (1 + x))
    near = w < 5
    v = jnp.where(near, w - 2.5, jnp.sqrt(jnp.maximum(w, 0)) - 3)
    p = jnp.where(near, *map(jnp.float32, INVERSE_ERF[0]))
    for pair in INVERSE_ERF[1:]:
        p = p * v + jnp.where(near, *map(jnp.float32, pair))
    return p * x
