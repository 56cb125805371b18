"""DDP's segmentation with ConvNeXt-T in plain PyTorch, timed: the alternative of a user.

python torch_ddp.py --what=steps_1|steps_3|train [--backbone=convnext_l]

Images of 512x1024, 19 classes, random weights (time does not depend on them). It needs torch and
nothing of this package, and is PyTorch as one writes it by hand: the sampling of the attention by
`grid_sample`, the noisy map concatenated with the image's and projected in every step, as the
published program does.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timing import autocast, compiled, layout, torch_program
from torch import nn

BACKBONES = dict(  # channels, depths
    convnext_t=((96, 192, 384, 768), (3, 3, 9, 3)),
    convnext_l=((192, 384, 768, 1536), (3, 3, 27, 3)),
)
DROP_PATH = 0.4  # rate of the last block in training
WIDTH, LAYERS, HEADS, POINTS, HIDDEN = 256, 6, 8, 4, 1024
GROUPS, CLASSES, CODE_SCALE = 32, 19, 0.01
bilinear = partial(F.interpolate, mode="bilinear", align_corners=False)


def as_channels_last(norm, x):
    """A layer norm over the channels of f32[B, C, H, W]."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """ConvNeXt's residual block, skipped for some images in training."""

    def __init__(self, c, rate):
        super().__init__()
        self.rate = rate
        self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
        self.gamma = nn.Parameter(torch.ones(c))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = (self.gamma * self.mlp(y)).permute(0, 3, 1, 2)
        if self.training and self.rate:
            kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.rate
            y = y * kept / (1 - self.rate)
        return x + y


class ConvNeXt(nn.Module):
    """f32[B, 3, H, W] -> four normalised maps, strides 4, 8, 16 and 32."""

    def __init__(self, channels, depths):
        super().__init__()
        sources, patches = (3, *channels), (4, 2, 2, 2)
        rates = iter(torch.linspace(0, DROP_PATH, sum(depths), device="cpu").tolist())
        self.down = nn.ModuleList(
            nn.Conv2d(sources[i], c, patches[i], patches[i]) for i, c in enumerate(channels)
        )
        # after the stem, but before every later convolution
        self.down_norms = nn.ModuleList(
            nn.LayerNorm(c, eps=eps)
            for c, eps in zip((channels[0], *channels[:3]), (1e-6, *[1e-5] * 3))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(c, next(rates)) for _ in range(depth)))
            for c, depth in zip(channels, depths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in channels)

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

    def __init__(self, channels):
        super().__init__()
        self.lateral = nn.ModuleList(conv_norm(c, WIDTH, 1) for c in channels)
        self.out = nn.ModuleList(conv_norm(WIDTH, WIDTH, 3) for _ in channels)
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


def sine_positions(h, w, device):
    """f32[h w, E]: the row in sines and cosines, then the column."""
    k = torch.arange(WIDTH // 2, device=device)
    wave = 10000 ** (2 * (k // 2) / (WIDTH // 2))

    def axis(size):
        at = torch.arange(size, device=device)
        angles = ((at + 0.5) / (size + 1e-6) * 2 * math.pi)[:, None] / wave
        return torch.where(k % 2 == 0, angles.sin(), angles.cos())

    rows, columns = axis(h)[:, None].expand(h, w, -1), axis(w)[None].expand(h, w, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def cell_centres(h, w, device):
    """f32[h w, 2]: (x, y) in [0, 1]."""
    centres = [(torch.arange(side, device=device) + 0.5) / side for side in (h, w)]
    y, x = torch.meshgrid(*centres, indexing="ij")
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
        positions, reference = (f(h, w, feature.device) for f in (sine_positions, cell_centres))
        for layer in self.layers:
            query = layer(query, time, positions, reference, (h, w))
        return query.transpose(1, 2).unflatten(2, (h, w))


class DDP(nn.Module):
    """Diffusion over label maps, for one image at a time."""

    def __init__(self, channels, depths):
        super().__init__()
        self.backbone, self.neck = ConvNeXt(channels, depths), Neck(channels)
        self.transform = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.embedding = nn.Embedding(CLASSES + 1, WIDTH)
        self.decoder = MapDecoder()
        self.head = nn.Conv2d(WIDTH, CLASSES, 1)

    def codes(self, labels):
        """i64[B, h, w] -> f32[B, E, h, w]."""
        table = (2 * self.embedding.weight.sigmoid() - 1) * CODE_SCALE
        return F.embedding(labels, table).permute(0, 3, 1, 2)

    def forward(self, image, steps):
        """f32[1, 3, H, W] -> class logits f32[1, K, H, W], by DDIM with time difference 1."""
        feature = self.neck(self.backbone(image))
        state = torch.randn(1, WIDTH, *feature.shape[2:], device=image.device)
        for i in range(steps):
            now, after = 1 - i / steps, max(1 - (i + 2) / steps, 0.0)
            now, after = log_snr(torch.tensor([now, after], device=image.device)).split(1)
            mixed = self.transform(torch.cat([feature, state], dim=1))
            logits = self.head(self.decoder(mixed, now))
            code = self.codes(logits.argmax(1))
            noise = (state - now.sigmoid().sqrt() * code) / (-now).sigmoid().sqrt().clamp(min=1e-8)
            state = after.sigmoid().sqrt() * code + (-after).sigmoid().sqrt() * noise
        return bilinear(logits, image.shape[2:])


class Training(nn.Module):
    """DDP's loss: of labels that were noised, and 0.4 times that of a head without noise."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.auxiliary = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(),
            nn.Dropout2d(0.1), nn.Conv2d(WIDTH, CLASSES, 1),
        )  # fmt: skip

    def forward(self, image, labels):
        """f32[B, 3, H, W] and i64[B, H, W] -> f32[]."""
        model = self.network
        feature = model.neck(model.backbone(image))
        small = F.interpolate(labels[:, None].float(), size=feature.shape[2:])[:, 0].long()
        code = model.codes(small)
        level = log_snr(0.999 * torch.rand(len(image), device=image.device))
        alpha, sigma = (sign.sigmoid().sqrt()[:, None, None, None] for sign in (level, -level))
        noisy = alpha * code + sigma * torch.randn_like(code)
        mixed = model.transform(torch.cat([feature, noisy], dim=1))
        maps = model.head(model.decoder(mixed, level)), self.auxiliary(feature)
        noised, plain = (
            F.cross_entropy(bilinear(each, labels.shape[1:]), labels, ignore_index=255)
            for each in maps
        )
        return noised + 0.4 * plain


def make_step(args):
    """The prediction or train step."""
    height, width = args.size, 2 * args.size
    network = DDP(*BACKBONES[args.backbone]).to(memory_format=layout(args))
    if args.what != "train":
        steps, image = int(args.what.removeprefix("steps_")), torch.randn(1, 3, height, width)
        run = compiled(args, network.eval())
        return torch.no_grad()(autocast(args)(partial(run, image, steps)))
    model, image = Training(network), torch.randn(args.batch, 3, height, width)
    labels = torch.randint(CLASSES, (args.batch, height, width))
    options = dict(lr=1e-4, weight_decay=0.0, fused=args.device == "gpu")
    optimizer = torch.optim.AdamW(model.train().parameters(), **options)
    loss_of = autocast(args)(compiled(args, model))

    def step():
        loss = loss_of(image, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    whats = ("steps_1", "steps_3", "train")
    torch_program(__doc__, whats, make_step, backbone="convnext_t", batch=2, size=512)
