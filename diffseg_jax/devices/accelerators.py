"""The published peaks of some accelerators, and the time of matrix products at them.

Sources: NVIDIA: data sheets of A100 80GB SXM, H100 SXM and H200 SXM, dense
rates, NVLink in one direction, which is half of what is printed there. TPU v4, v5e, v5p and v6e:
cloud.google.com/tpu/docs, a page for each, interconnect of a chip in one direction. TPU v3:
Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural Networks" (CACM 2020), of
one of the two cores of a chip. How float32 is multiplied: docs.jax.dev, "Matmul precision".
"""

import dataclasses
from collections.abc import Mapping

EXACT_FLOAT32 = "exact float32"  # products whose precision is "highest"


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A device as jax counts them: a GPU, a chip of a TPU v4 or later, a core of a TPU v3.

    bfloat16   FLOP/s of matrix products
    float32    as jax multiplies by default: TF32 on GPUs, one pass of bfloat16 on TPUs
    exact      float32 in full: without TF32 on GPUs, six passes on TPUs
    memory     bytes
    bandwidth  of the memory, bytes/s
    link       bytes/s that it sends to other devices, over all of its links together
    """

    bfloat16: float
    float32: float
    exact: float
    memory: float
    bandwidth: float
    link: float

    def product_seconds(self, operations: Mapping[str, float]) -> float:
        """The time of matrix products at the peak; dtype or EXACT_FLOAT32 -> FLOP."""
        peaks = {"bfloat16": self.bfloat16, "float16": self.bfloat16, EXACT_FLOAT32: self.exact}
        return sum(flop / peaks.get(dtype, self.float32) for dtype, flop in operations.items())


ACCELERATORS = {  # name -> the fields of Accelerator in their order
    "a100": Accelerator(312e12, 156e12, 19.5e12, 80e9, 2039e9, 300e9),
    "h100": Accelerator(989e12, 494e12, 67e12, 80e9, 3350e9, 450e9),
    "h200": Accelerator(989e12, 494e12, 67e12, 141e9, 4800e9, 450e9),
    "tpu_v3": Accelerator(61.5e12, 61.5e12, 61.5e12 / 6, 16e9, 450e9, 164e9),
    "tpu_v4": Accelerator(275e12, 275e12, 275e12 / 6, 32e9, 1200e9, 300e9),
    "tpu_v5e": Accelerator(197e12, 197e12, 197e12 / 6, 16e9, 819e9, 200e9),
    "tpu_v5p": Accelerator(459e12, 459e12, 459e12 / 6, 95e9, 2765e9, 600e9),
    "tpu_v6e": Accelerator(918e12, 918e12, 918e12 / 6, 32e9, 1638e9, 400e9),
}
