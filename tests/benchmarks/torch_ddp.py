"""DDP's segmentation with ConvNeXt-T in plain PyTorch, timed: the alternative of a user.

python torch_ddp.py [--steps 1 3] [--rounds 3] [--threads 2]

prints one JSON line per number of steps with "steps", "seconds" of every round, "peak_rss_mb" (of
the process so far, so give steps in rising order) and "parameters". One image of 512x1024, 19
classes, float32, random weights (time does not depend on them). It needs torch and nothing of this
package, and is PyTorch as one writes it by hand: eager, the sampling of the attention by
`grid_sample`, the noisy map concatenated with the image's and projected in every step, as the
published program does.

Measured 2026-11-21 with PyTorch 2.13.0 on 2 cores (Intel Xeon of family 6, model 207, with
AVX-512), nothing else running: 4.5 s for 1 step, 11.1 s for 3, 1.1 GB.
"""

import argparse
import json
import math
import resource
import timeit
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS, DEPTHS = (96, 192, 384, 768), (3, 3, 9, 3)  # ConvNeXt-T
WIDTH, LAYERS, HEADS, POINTS, HIDDEN = 256, 6, 8, 4, 1024
GROUPS, CLASSES, CODE_SCALE = 32, 19, 0.01
SIZE = (512, 1024)
bilinear = partial(F.interpolate, mode="bilinear", align_corners=False)


def as_channels_last(norm, x):
    """A layer norm over the channels of f32[B, C, H, W]."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """ConvNeXt's residual block."""

    def __init__(self, c):
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
        self.gamma = nn.Parameter(torch.ones(c))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.mlp(y)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """f32[B, 3, H, W] -> four normalised maps, strides 4, 8, 16 and 32."""

    def __init__(self):
        super().__init__()
        sources, patches = (3, *CHANNELS), (4, 2, 2, 2)
        self.down = nn.ModuleList(
            nn.Conv2d(sources[i], c, patches[i], patches[i]) for i, c in enumerate(CHANNELS)
        )
        # after the stem, but before every later convolution
        self.down_norms = nn.ModuleList(
            nn.LayerNorm(c, eps=eps)
            for c, eps in zip((CHANNELS[0], *CHANNELS[:3]), (1e-6, *[1e-5] * 3))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(c) for _ in range(depth))) for c, depth in zip(CHANNELS, DEPTHS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in CHANNELS)

    def forward(self, x):
        maps = []
        for i, stage in enumerate(self.stages):
            down, norm = self.down[i], partial(as_channels_last, self.down_norms[i])
            x = stage(down(norm(x)) if i else norm(down(x)))
            maps.append(as_channels_last(self.norms[i], x))
        return maps


def conv_norm(c_in, c_out, size):
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, c_out))


class Neck(nn.Module):
    """Four maps -> one of the finest size: a feature pyramid, and its levels side by side."""

    def __init__(self):
        super().__init__()
        self.lateral = nn.ModuleList(conv_norm(c, WIDTH, 1) for c in CHANNELS)
        self.out = nn.ModuleList(conv_norm(WIDTH, WIDTH, 3) for _ in CHANNELS)
        self.merge = conv_norm(4 * WIDTH, WIDTH, 1)

    def forward(self, maps):
        laterals = [lateral(x) for lateral, x in zip(self.lateral, maps)]
        for fine, coarse in ((2, 3), (1, 2), (0, 1)):
            size = laterals[fine].shape[2:]
            laterals[fine] = laterals[fine] + F.interpolate(laterals[coarse], size=size)
        levels = [out(x) for out, x in zip(self.out, laterals)]
        size = levels[0].shape[2:]
        return self.merge(torch.cat([levels[0], *(bilinear(x, size) for x in levels[1:])], dim=1))


class Attention(nn.Module):
    """Deformable attention of one level, with the query added: f32[B, N, E] -> f32[B, N, E]."""

    def __init__(self):
        super().__init__()
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.offsets = nn.Linear(WIDTH, HEADS * POINTS * 2)
        self.weights = nn.Linear(WIDTH, HEADS * POINTS)

    def forward(self, query, positions, reference, size):
        (batch, count, _), (h, w) = query.shape, size
        asking = query + positions
        offsets = self.offsets(asking).view(batch, count, HEADS, POINTS, 2)
        weights = self.weights(asking).view(batch, count, HEADS, POINTS).softmax(-1)
        points = reference[:, None, None] + offsets / offsets.new_tensor([w, h])
        values = self.value(query).transpose(1, 2).reshape(batch * HEADS, -1, h, w)
        grid = (2 * points - 1).transpose(1, 2).flatten(0, 1)  # [B heads, N, P, 2]
        samples = F.grid_sample(values, grid, "bilinear", "zeros", align_corners=False)
        shares = weights.transpose(1, 2).flatten(0, 1)[:, None]
        sampled = (samples * shares).sum(-1).view(batch, WIDTH, count)
        return query + self.out(sampled.transpose(1, 2))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)
        )  # fmt: skip
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(4 * WIDTH, 2 * WIDTH))

    def forward(self, query, time, positions, reference, size):
        query = self.norm1(self.attention(query, positions, reference, size))
        query = self.norm2(query + self.mlp(query))
        scale, shift = self.time(time)[:, None].chunk(2, dim=-1)
        return query * (1 + scale) + shift


def sine_positions(h, w):
    """f32[h w, E]: the row in sines and cosines, then the column."""
    k = torch.arange(WIDTH // 2)
    wave = 10000 ** (2 * (k // 2) / (WIDTH // 2))

    def axis(size):
        angles = ((torch.arange(size) + 0.5) / (size + 1e-6) * 2 * math.pi)[:, None] / wave
        return torch.where(k % 2 == 0, angles.sin(), angles.cos())

    rows, columns = axis(h)[:, None].expand(h, w, -1), axis(w)[None].expand(h, w, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def cell_centres(h, w):
    """f32[h w, 2]: (x, y) in [0, 1]."""
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def log_snr(t):
    """The cosine schedule, t f32[...] in [0, 1]; 1 is noise."""
    angle = (t + 0.0002) / 1.00025 * math.pi * 0.5
    return -torch.log((angle.cos() ** -2 - 1).clamp(min=1e-5))


class MapDecoder(nn.Module):
    """Layers over a map whose noise level is announced, one number per image."""

    def __init__(self):
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(8))
        self.time = nn.Sequential(
            nn.Linear(17, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, 4 * WIDTH)
        )  # fmt: skip
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def embed_time(self, level):
        phases = level[:, None] * self.frequencies * 2 * math.pi
        return self.time(torch.cat([level[:, None], phases.sin(), phases.cos()], dim=1))

    def forward(self, feature, level):
        """f32[1, E, h, w] and f32[1] -> f32[1, E, h, w]."""
        h, w = feature.shape[2:]
        query, time = feature.flatten(2).transpose(1, 2), self.embed_time(level)
        positions, reference = sine_positions(h, w), cell_centres(h, w)
        for layer in self.layers:
            query = layer(query, time, positions, reference, (h, w))
        return query.transpose(1, 2).unflatten(2, (h, w))


class DDP(nn.Module):
    """Diffusion over label maps, for one image at a time."""

    def __init__(self):
        super().__init__()
        self.backbone, self.neck = ConvNeXt(), Neck()
        self.transform = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.embedding = nn.Embedding(CLASSES + 1, WIDTH)
        self.decoder = MapDecoder()
        self.head = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, image, steps):
        """f32[1, 3, H, W] -> class logits f32[1, K, H, W], by DDIM with time difference 1."""
        feature = self.neck(self.backbone(image))
        state = torch.randn(1, WIDTH, *feature.shape[2:])
        for i in range(steps):
            now, after = 1 - i / steps, max(1 - (i + 2) / steps, 0.0)
            now, after = log_snr(torch.tensor([now, after])).split(1)
            mixed = self.transform(torch.cat([feature, state], dim=1))
            logits = self.head(self.decoder(mixed, now))
            table = (2 * self.embedding.weight.sigmoid() - 1) * CODE_SCALE
            code = F.embedding(logits.argmax(1), table).permute(0, 3, 1, 2)
            noise = (state - now.sigmoid().sqrt() * code) / (-now).sigmoid().sqrt().clamp(min=1e-8)
            state = after.sigmoid().sqrt() * code + (-after).sigmoid().sqrt() * noise
        return bilinear(logits, image.shape[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="height and width")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, image = DDP().eval(), torch.randn(1, 3, *args.size)
    with torch.no_grad():
        model(image, 1)  # warm-up
        for steps in args.steps:
            run = partial(model, image, steps)
            line = dict(steps=steps, seconds=timeit.repeat(run, number=1, repeat=args.rounds))
            line["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            line["parameters"] = sum(p.numel() for p in model.parameters())
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
