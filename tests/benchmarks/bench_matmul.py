"""A large matrix product and a copy: the arithmetic and the memory that others are measured by.

python tests/benchmarks/bench_matmul.py --what=product|copy --size=4096 [--dtype=bfloat16] [--exact]

product  of two square matrices of `size`; --exact: of float32 in full, without the TF32 of GPUs
copy     of 4096 * `size` numbers to ones that are larger by one: read once and written once
"""

import functools

from timing import jax_program


def make_call(args):
    import jax
    import jax.numpy as jnp

    product = args.what == "product"
    x = jnp.ones((args.size if product else 4096, args.size), args.dtype)
    if product:
        x = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    multiply = functools.partial(jnp.matmul, precision="highest" if args.exact else None)
    run = jax.jit(multiply if product else lambda x, y: x + 1)
    return lambda: run(x, x)


if __name__ == "__main__":
    jax_program(__doc__, ("product", "copy"), make_call, size=4096, exact=False)
