"""A plain PyTorch ADM UNet, timed: the alternative of a user, against which our speed is measured.

python torch_adm.py --what=forward|taps|train|train_lsun [--size=256] [--batch=1] [--remat]

Seconds alone say little: the benchmark runs this file and our program in the same minutes and
reports the quotient. It needs torch and nothing of this package, and is PyTorch as one writes it by
hand: the attention and norms of torch.nn.functional. State names are those of the published ADM
checkpoints, which load strictly, so both programs can be held to the same outputs. Initial values
are the framework's, so no layer starts at zero and nothing is skipped.

forward     the LSUN network, 256x256, without gradients
taps        the same up to output block 12, all that DDPM-Seg reads, without gradients
train       a smaller network on 64x64 images: forward, loss, backward and AdamW
train_lsun  the same of the LSUN network
--remat     blocks are computed again in the backward pass, by torch.utils.checkpoint
"""

import math
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from timing import autocast, compiled, layout, torch_program
from torch import nn
from torch.utils.checkpoint import checkpoint

TAPS = (5, 6, 7, 8, 12)  # output blocks that DDPM-Seg reads
LSUN = dict(
    channels=256,
    channel_mult=(1, 1, 2, 2, 4, 4),
    res_blocks=2,
    attention_factors=(8, 16, 32),  # attention where the image is this many times smaller
    heads=4,  # counts where head_channels is -1
    heads_up=-1,  # heads of the output blocks; -1 means as many as elsewhere
    head_channels=64,
    new_order=False,  # channels of qkv: (3, heads, d) instead of (heads, 3, d)
    resample_in_blocks=True,  # else a strided convolution down, nearest and a convolution up
    scale_shift=True,  # the timestep scales and shifts instead of being added
    num_classes=0,
    learn_sigma=True,  # three more outputs
    dropout=0.1,
)
SMALLER = LSUN | dict(
    channels=128, channel_mult=(1, 2, 3, 4), attention_factors=(4, 8), dropout=0.0
)
WHATS = dict(  # network, image size, batch
    forward=(LSUN, 256, 1), taps=(LSUN, 256, 1), train=(SMALLER, 64, 8), train_lsun=(LSUN, 256, 2)
)  # fmt: skip
GroupNorm = partial(nn.GroupNorm, 32, eps=1e-5)
conv_3x3 = partial(nn.Conv2d, kernel_size=3, padding=1)
enlarge = partial(F.interpolate, scale_factor=2, mode="nearest")
shrink = partial(F.avg_pool2d, kernel_size=2)
keep = nn.Identity()


def sinusoid(t, channels):
    """Timesteps [B] -> f32[B, channels]: cosines first, then sines."""
    half = channels // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * k / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, channels % 2))


class ResBlock(nn.Module):
    """f32[B, c_in, H, W] -> f32[B, c_out, H', W']; `resample` acts on both branches."""

    def __init__(self, sizes, c_in, c_out, resample=keep):
        super().__init__()
        self.resample, self.scale_shift = resample, sizes.scale_shift
        modulation = nn.Linear(4 * sizes.channels, 2 * c_out if sizes.scale_shift else c_out)
        dropout = nn.Dropout(sizes.dropout)
        self.in_layers = nn.Sequential(GroupNorm(c_in), nn.SiLU(), conv_3x3(c_in, c_out))
        self.emb_layers = nn.Sequential(nn.SiLU(), modulation)
        last = conv_3x3(c_out, c_out)
        self.out_layers = nn.Sequential(GroupNorm(c_out), nn.SiLU(), dropout, last)
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else keep

    def forward(self, x, emb):
        h = self.in_layers[2](self.resample(self.in_layers[:2](x)))
        a = self.emb_layers(emb)[:, :, None, None]
        norm, rest = self.out_layers[0], self.out_layers[1:]
        if self.scale_shift:
            scale, shift = a.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + a)
        return self.skip_connection(self.resample(x)) + rest(h)


class Attention(nn.Module):
    """Self-attention among the pixels of f32[B, C, H, W], added to them."""

    def __init__(self, sizes, c, heads):
        super().__init__()
        self.heads = c // sizes.head_channels if sizes.head_channels > 0 else heads
        self.new_order = sizes.new_order
        self.norm = GroupNorm(c)
        self.qkv, self.proj_out = nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

    def forward(self, x):
        qkv = self.qkv(self.norm(x).flatten(2))  # [B, 3C, N]
        outer = (3, self.heads) if self.new_order else (self.heads, 3)
        qkv = qkv.unflatten(1, (*outer, -1)).transpose(3, 4)
        q, k, v = qkv.unbind(1 if self.new_order else 2)  # each [B, heads, N, d]
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(attended.transpose(2, 3).flatten(1, 2)).view_as(x)


class Downsample(nn.Module):
    """A strided convolution; it pads one pixel on all four sides."""

    def __init__(self, c):
        super().__init__()
        self.op = conv_3x3(c, c, stride=2)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour and a convolution."""

    def __init__(self, c):
        super().__init__()
        self.conv = conv_3x3(c, c)

    def forward(self, x):
        return self.conv(enlarge(x))


class Block(nn.Sequential):
    """Layers in turn; the residual blocks among them are told the timestep."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ADMUNet(nn.Module):
    """x f32[B, 3, H, W], t [B] (0 is the least noise), y i64[B] -> f32[B, 3 or 6, H, W].

    Dhariwal and Nichol 2021; y is given if and only if there are classes.
    """

    def __init__(self, remat=False, **sizes):
        super().__init__()
        self.remat = remat
        s = self.sizes = SimpleNamespace(**{**LSUN, **sizes})
        self.widths = [int(mult * s.channels) for mult in s.channel_mult]
        self.time_embed = nn.Sequential(
            nn.Linear(s.channels, 4 * s.channels), nn.SiLU(),
            nn.Linear(4 * s.channels, 4 * s.channels),
        )  # fmt: skip
        if s.num_classes:
            self.label_emb = nn.Embedding(s.num_classes, 4 * s.channels)
        skips, c = self._make_inputs(), self.widths[-1]
        heads = s.heads if s.heads_up == -1 else s.heads_up
        self.middle_block = Block(ResBlock(s, c, c), Attention(s, c, s.heads), ResBlock(s, c, c))
        self._make_outputs(skips, heads)
        last = conv_3x3(self.widths[0], 6 if s.learn_sigma else 3)
        self.out = nn.Sequential(GroupNorm(self.widths[0]), nn.SiLU(), last)

    def _make_inputs(self):
        """Adds input_blocks; returns the channels that each of them leaves."""
        s, c = self.sizes, self.widths[0]
        blocks, skips = [Block(conv_3x3(3, c))], [c]
        for level, width in enumerate(self.widths):
            for _ in range(s.res_blocks):
                blocks.append(Block(*self._residual(c, width, level, s.heads)))
                skips.append(c := width)
            if level + 1 < len(self.widths):
                down = ResBlock(s, c, c, shrink) if s.resample_in_blocks else Downsample(c)
                blocks.append(Block(down))
                skips.append(c)
        self.input_blocks = nn.ModuleList(blocks)
        return skips

    def _make_outputs(self, skips, heads):
        s, c, blocks = self.sizes, self.widths[-1], []
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(s.res_blocks + 1):
                layers = self._residual(c + skips.pop(), width, level, heads)
                c = width
                if level and i == s.res_blocks:
                    up = ResBlock(s, c, c, enlarge) if s.resample_in_blocks else Upsample(c)
                    layers.append(up)
                blocks.append(Block(*layers))
        self.output_blocks = nn.ModuleList(blocks)

    def _residual(self, c_in, c_out, level, heads):
        layers = [ResBlock(self.sizes, c_in, c_out)]
        if 2**level in self.sizes.attention_factors:
            layers.append(Attention(self.sizes, c_out, heads))
        return layers

    def decode(self, x, t, y=None):
        """Yields what each output block makes, so that a caller may stop early."""
        emb = self.time_embed(sinusoid(t, self.sizes.channels))
        if self.sizes.num_classes:
            emb = emb + self.label_emb(y)
        skips = []
        for block in self.input_blocks:
            x = self._run(block, x, emb)
            skips.append(x)
        x = self._run(self.middle_block, x, emb)
        for block in self.output_blocks:
            x = self._run(block, torch.cat([x, skips.pop()], dim=1), emb)
            yield x

    def _run(self, block, x, emb):
        return checkpoint(block, x, emb, use_reentrant=False) if self.remat else block(x, emb)

    def forward(self, x, t, y=None):
        for h in self.decode(x, t, y):
            last = h
        return self.out(last)

    def taps(self, x, t, y=None, blocks=TAPS):
        """The outputs of some output blocks, {index: f32[B, C, H, W]}; later blocks do not run."""
        outputs = zip(range(max(blocks) + 1), self.decode(x, t, y))
        return {index: h for index, h in outputs if index in blocks}


def training_loss(model, image, t, noise):
    """Mean squares of the error in the noise and of the other outputs: everything gets gradients.

    The variational bound of the published training costs the same next to the network.
    """
    guess, variance = model(0.8 * image + 0.6 * noise, t).chunk(2, dim=1)
    return F.mse_loss(guess, noise) + 1e-3 * variance.square().mean()


def make_step(args):
    """The forward pass, taps or train step."""
    sizes, size, batch = WHATS[args.what]
    size, batch = args.size or size, args.batch or batch
    model = ADMUNet(args.remat, **sizes).to(memory_format=layout(args))
    image = torch.rand(batch, 3, size, size) * 2 - 1
    t = torch.randint(1000, (batch,))
    if not args.what.startswith("train"):
        model.eval()
        run = compiled(args, model.taps if args.what == "taps" else model)
        return torch.no_grad()(autocast(args)(partial(run, image, t)))
    noise = torch.randn_like(image)
    options = dict(lr=1e-4, weight_decay=0.0, fused=args.device == "gpu")
    optimizer = torch.optim.AdamW(model.train().parameters(), **options)
    loss_of = autocast(args)(compiled(args, partial(training_loss, model)))

    def step():
        loss = loss_of(image, t, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    torch_program(__doc__, WHATS, make_step, batch=0, size=0, remat=False)
