"""The product and the copy of bench_matmul.py in PyTorch.

python tests/benchmarks/torch_matmul.py --what=product|copy --size=4096 [--dtype=bfloat16] [--exact]
"""

import torch
from timing import compiled, torch_program


def make_call(args):
    product = args.what == "product"
    if args.exact:
        torch.set_float32_matmul_precision("highest")
    x = torch.randn(args.size if product else 4096, args.size).to(getattr(torch, args.dtype))
    run = compiled(args, torch.matmul if product else lambda x, y: x + 1)
    return lambda: run(x, x)


if __name__ == "__main__":
    torch_program(__doc__, ("product", "copy"), make_call, size=4096, exact=False)
