"""A plain PyTorch DINOv2 ViT-S/14, timed: the alternative of a user to our extraction of features.

python torch_dino.py --what=one|eight|large

The benchmark runs this file and our program in the same minutes and reports the quotient. It needs
torch and nothing of this package, and is PyTorch as one writes it by hand: without gradients, the
attention of torch.nn.functional. State names are those of the published checkpoints. Random
weights.

one     an image of 224x224
eight   eight of them in one batch
large   an image of 518x518, for which the table of positions was made
"""

from functools import partial

import torch
import torch.nn.functional as F
from timing import autocast, compiled, torch_program
from torch import nn

WIDTH, DEPTH, HEADS, PATCH, GRID = 384, 12, 6, 14, 37
TAPS = (2, 5, 8, 11)
WHATS = dict(one=(1, 224), eight=(8, 224), large=(1, 518))  # batch, size
LayerNorm = partial(nn.LayerNorm, WIDTH, eps=1e-6)


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.ls1 = LayerNorm(), Attention(), LayerScale()
        self.norm2, self.mlp, self.ls2 = LayerNorm(), Mlp(), LayerScale()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DinoV2(nn.Module):
    """f32[B, 3, H, W] -> the normalised maps f32[B, C, H/14, W/14] of the taps."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + GRID**2, WIDTH))
        self.patch_embed = nn.ModuleDict(dict(proj=nn.Conv2d(3, WIDTH, PATCH, PATCH)))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = LayerNorm()

    def positions(self, height, width):
        if height == width == GRID:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        scale = ((height + 0.1) / GRID, (width + 0.1) / GRID)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    def forward(self, x):
        x = self.patch_embed["proj"](x)
        size = x.shape[2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + self.positions(*size)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                maps.append(self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, size))
        return maps


def make_step(args):
    """The features of a batch."""
    batch, size = WHATS[args.what]
    run = compiled(args, DinoV2().eval())
    return torch.inference_mode()(autocast(args)(partial(run, torch.randn(batch, 3, size, size))))


if __name__ == "__main__":
    torch_program(__doc__, WHATS, make_step)
