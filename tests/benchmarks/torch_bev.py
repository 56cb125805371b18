"""The camera encoder of DDP's BEV network in plain PyTorch, timed: the alternative of a user.

python torch_bev.py --what=encoder|pool --cells=cells.npy

One set of six images of 256x704, float32, random weights; the file holds i32[6, 118, 32, 88], the
cells of all points. It needs torch and nothing of this package, and is PyTorch as one writes it by
hand: Swin-T in windows of 7, features times depths as one volume
[6, 118, 32, 88, 80] that `index_add_` sums into 256x256 cells.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from timing import compiled, torch_program
from torch import nn

CHANNELS, DEPTHS, HEADS, WINDOW = (96, 192, 384, 768), (2, 2, 6, 2), (3, 6, 12, 24), 7
NECK, LIFTED, BINS, CELLS = 256, 80, 118, 256
STAGES, FEATURES = ((2, 160, 2), (2, 320, 2), (2, 640, 1)), 256
SIZE, CAMERAS = (256, 704), 6


class Attention(nn.Module):
    """Attention within windows of f32[B, H, W, C], shifted or not."""

    def __init__(self, dim, heads, shift):
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.randn((2 * WINDOW - 1) ** 2, heads) * 0.02)
        self.heads, self.shift = heads, shift
        y, x = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
        y, x = (a.reshape(-1)[:, None] - a.reshape(-1) + WINDOW - 1 for a in (y, x))
        self.index = y * (2 * WINDOW - 1) + x

    def forward(self, x):
        batch, height, width, dim = x.shape
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        h, w = x.shape[1:3]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = split(x)
        tokens = windows.shape[1]
        qkv = self.qkv(windows).reshape(len(windows), tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index].permute(2, 0, 1)
        if self.shift:
            scores = scores + self.mask(h, w, x.device).repeat(batch, 1, 1)[:, None]
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(len(windows), tokens, dim)
        y = joined(self.out(y), batch, h, w)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        return y[:, :height, :width]

    def mask(self, h, w, device):
        at = partial(torch.arange, device=device)
        region = lambda n: (at(n) >= n - WINDOW).int() + (at(n) >= n - self.shift)
        ids = (3 * region(h)[:, None] + region(w)[None]).float()[None, ..., None]
        ids = split(ids)[..., 0]
        return torch.where(ids[:, :, None] != ids[:, None], -100.0, 0.0)


def split(x):
    batch, h, w, dim = x.shape
    x = x.reshape(batch, h // WINDOW, WINDOW, w // WINDOW, WINDOW, dim)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, dim)


def joined(windows, batch, h, w):
    x = windows.reshape(batch, h // WINDOW, w // WINDOW, WINDOW, WINDOW, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, h, w, -1)


class Block(nn.Module):
    def __init__(self, dim, heads, shift):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, shift)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        parts = [x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]
        return self.reduction(self.norm(torch.stack(parts, -1).flatten(-2)))


class Swin(nn.Module):
    """f32[B, 3, H, W] -> normalised maps of the stages from `first` on, of strides 4, 8, 16, 32."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        self.embed, self.norm = nn.Conv2d(3, CHANNELS[0], 4, 4), nn.LayerNorm(CHANNELS[0])
        self.stages = nn.ModuleList(
            nn.Sequential(*[Block(c, heads, WINDOW // 2 * (j % 2)) for j in range(depth)])
            for c, heads, depth in zip(CHANNELS, HEADS, DEPTHS)
        )
        self.merges = nn.ModuleList(map(Merge, CHANNELS[:3]))
        self.norms = nn.ModuleList(map(nn.LayerNorm, CHANNELS[first:]))

    def forward(self, image):
        x, maps = self.norm(self.embed(image).permute(0, 2, 3, 1)), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i >= self.first:
                maps.append(self.norms[i - self.first](x).permute(0, 3, 1, 2))
            if i < 3:
                x = self.merges[i](x)
        return maps


def conv_norm(c_in, c_out, size, stride=1, active=True):
    layers = [nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, nn.ReLU()) if active else nn.Sequential(*layers)


class Residual(nn.Module):
    def __init__(self, c_in, c, stride):
        super().__init__()
        self.conv1, self.conv2 = conv_norm(c_in, c, 3, stride), conv_norm(c, c, 3, active=False)
        changes = stride > 1 or c_in != c
        self.shortcut = conv_norm(c_in, c, 1, stride, False) if changes else nn.Identity()

    def forward(self, x):
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Encoder(nn.Module):
    """Images f32[6, 3, 256, 704], cells i32[6, 118, 32, 88] -> features f32[1, 256, 128, 128]."""

    def __init__(self):
        super().__init__()
        self.swin = Swin(first=1)
        self.lateral1 = conv_norm(CHANNELS[3] + CHANNELS[2], NECK, 1)
        self.lateral0 = conv_norm(NECK + CHANNELS[1], NECK, 1)
        self.out1, self.out0 = conv_norm(NECK, NECK, 3), conv_norm(NECK, NECK, 3)
        self.depth = nn.Conv2d(NECK, BINS + LIFTED, 1)
        self.down = nn.Sequential(*[conv_norm(LIFTED, LIFTED, 3, s) for s in (1, 2, 1)])
        c_in, stages = LIFTED, []
        for blocks, c, stride in STAGES:
            chain = [Residual(c_in if j == 0 else c, c, 1 if j else stride) for j in range(blocks)]
            stages.append(nn.Sequential(*chain))
            c_in = c
        self.stages = nn.ModuleList(stages)
        self.fuse = nn.Sequential(
            conv_norm(STAGES[2][1] + STAGES[0][1], FEATURES, 1), conv_norm(FEATURES, FEATURES, 3)
        )
        self.up = conv_norm(FEATURES, FEATURES, 3)

    def forward(self, images, cells):
        a, b, c = self.swin(images)
        bilinear = lambda x, like: F.interpolate(x, size=like.shape[-2:], mode="bilinear")
        b = self.out1(self.lateral1(torch.cat([b, bilinear(c, b)], 1)))
        a = self.out0(self.lateral0(torch.cat([a, bilinear(b, a)], 1)))
        x = self.down(self.pool(self.depth(a), cells))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        aligned = dict(mode="bilinear", align_corners=True)
        x = F.interpolate(x, size=maps[0].shape[-2:], **aligned)
        x = self.fuse(torch.cat([x, maps[0]], 1))
        return self.up(F.interpolate(x, scale_factor=2, **aligned))

    def pool(self, y, cells):
        depth, lifted = y[:, :BINS].softmax(1), y[:, BINS:]
        volume = depth[:, None] * lifted[:, :, None]  # [6, 80, 118, 32, 88]
        volume = volume.permute(0, 2, 3, 4, 1).reshape(-1, LIFTED)
        sums = volume.new_zeros(CELLS * CELLS + 1, LIFTED)
        sums = sums.index_add_(0, cells.reshape(-1), volume)
        return sums[:-1].reshape(1, CELLS, CELLS, LIFTED).permute(0, 3, 1, 2).contiguous()


def make_step(args):
    """The encoder of a set of images, or the pooling alone."""
    images, lifted = torch.randn(CAMERAS, 3, *SIZE), torch.randn(CAMERAS, BINS + LIFTED, 32, 88)
    cells = torch.from_numpy(np.load(args.cells)).to(images.device)
    model, pools = Encoder().eval(), args.what == "pool"
    run = compiled(args, model.pool if pools else model)
    return torch.inference_mode()(partial(run, lifted if pools else images, cells))


if __name__ == "__main__":
    torch_program(__doc__, ("encoder", "pool"), make_step, cells="cells.npy")
