"""A plain PyTorch TransUNet, timed: the alternative of a user, against which our speed is measured.

python torch_transunet.py --what=forward|train|ddep --batch=4 --size=224 [--remat]

Seconds alone say little: the benchmark runs this file and our program in the same minutes and
reports the quotient. It needs torch and nothing of this package, and is PyTorch as one writes it by
hand: NCHW, attention spelled out, kernels standardised at every call. Arithmetic (`port`) and state
names are those of the public PyTorch TransUNet: its checkpoints load strictly, and both programs
can be held to the same outputs. Initial values are the framework's.

forward   evaluation mode, from an image to class probabilities, no gradients
train     train mode: forward, cross-entropy, backward and Adam for the entire network
ddep      the decoder learns the noise in the image; the encoder is frozen, without backward pass
--remat   residual units, transformer layers and stages of the decoder are computed again in the
          backward pass, by torch.utils.checkpoint, which updates running averages of batch norms
          there once more
"""

from collections import OrderedDict
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from timing import autocast, compiled, layout, torch_program
from torch import nn
from torch.utils.checkpoint import checkpoint

SIGMA = 0.22  # noise of `ddep`, for images in [-1, 1]
LayerNorm = partial(nn.LayerNorm, eps=1e-6)
GroupNorm = partial(nn.GroupNorm, 32, eps=1e-6)
PUBLISHED = dict(
    size=224,  # height = width of the image, a multiple of 16
    width=1.0,  # of the ResNet part; 64 * width is a multiple of 32
    units=(3, 4, 9),  # bottleneck units of the three stages
    hidden=768,
    mlp=3072,
    heads=12,
    layers=12,
    bridge=512,  # channels between transformer and first decoder block
    decoder=(256, 128, 64, 16),
    outputs=19,
    dropout=0.1,
    remat=False,  # blocks are computed again in the backward pass
)


def run(remat, function, *given):
    """function(*given), computed again in the backward pass if `remat` is set."""
    return checkpoint(function, *given, use_reentrant=False) if remat else function(*given)


class Blocks(nn.Sequential):
    """Named modules in turn."""

    def __init__(self, modules, remat):
        super().__init__(OrderedDict(modules))
        self.remat = remat

    def forward(self, x):
        for module in self:
            x = run(self.remat, module, x)
        return x


class StdConv2d(nn.Conv2d):
    """Convolution without bias; its kernel has mean 0 and variance 1 per output channel at use."""

    def __init__(self, c_in, c_out, kernel, stride=1):
        super().__init__(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, x):
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        kernel = (self.weight - mean) / torch.sqrt(var + 1e-5)
        return F.conv2d(x, kernel, None, self.stride, self.padding)


class Bottleneck(nn.Module):
    """f32[B, c_in, H, W] -> f32[B, 4 features, H / stride, W / stride]; the 3x3 strides."""

    def __init__(self, c_in, features, stride=1):
        super().__init__()
        c_out = 4 * features
        self.conv1, self.gn1 = StdConv2d(c_in, features, 1), GroupNorm(features)
        self.conv2, self.gn2 = StdConv2d(features, features, 3, stride), GroupNorm(features)
        self.conv3, self.gn3 = StdConv2d(features, c_out, 1), GroupNorm(c_out)
        self.project = stride != 1 or c_in != c_out
        if self.project:
            self.downsample = StdConv2d(c_in, c_out, 1, stride)
            self.gn_proj = nn.GroupNorm(c_out, c_out, eps=1e-5)  # the port: one group per channel

    def forward(self, x):
        shortcut = self.gn_proj(self.downsample(x)) if self.project else x
        x = F.relu(self.gn1(self.conv1(x)))
        x = F.relu(self.gn2(self.conv2(x)))
        return F.relu(shortcut + self.gn3(self.conv3(x)))


def stage(c_in, features, units, stride, remat):
    """`units` bottlenecks named unit1, unit2, ...; only the first one strides and projects."""
    first = Bottleneck(c_in, features, stride)
    rest = [Bottleneck(4 * features, features) for _ in range(units - 1)]
    return Blocks(((f"unit{i}", u) for i, u in enumerate([first, *rest], 1)), remat)


class ResNet(nn.Module):
    """image f32[B, 3, H, W] -> f32[B, 16w, H/16, W/16], skips at strides 8, 4, 2; w = 64 width."""

    def __init__(self, sizes):
        super().__init__()
        w, (one, two, three) = int(64 * sizes.width), sizes.units
        root = OrderedDict(conv=StdConv2d(3, w, 7, 2), gn=GroupNorm(w), relu=nn.ReLU())
        self.root, self.body = nn.Sequential(root), nn.Module()
        self.body.block1 = stage(w, w, one, 1, sizes.remat)
        self.body.block2 = stage(4 * w, 2 * w, two, 2, sizes.remat)
        self.body.block3 = stage(8 * w, 4 * w, three, 2, sizes.remat)

    def forward(self, image):
        half = self.root(image)
        quarter = self.body.block1(F.max_pool2d(half, 3, 2))  # the port pads neither here ...
        eighth = self.body.block2(quarter)
        height, width = image.shape[2] // 4, image.shape[3] // 4
        padding = (0, width - quarter.shape[3], 0, height - quarter.shape[2])
        return self.body.block3(eighth), (eighth, F.pad(quarter, padding), half)  # ... but the skip


class Attention(nn.Module):
    """Self-attention over tokens f32[B, N, E] with every product written out."""

    def __init__(self, heads, e):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(e, e) for _ in range(4))

    def forward(self, x):
        layers = (self.query, self.key, self.value)
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in layers)  # [B,h,N,d]
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """One pre-norm transformer layer on tokens f32[B, N, E]."""

    def __init__(self, sizes):
        super().__init__()
        e, hidden = sizes.hidden, sizes.mlp
        self.attention_norm, self.ffn_norm = LayerNorm(e), LayerNorm(e)
        self.attn = Attention(sizes.heads, e)
        mlp = OrderedDict(fc1=nn.Linear(e, hidden), gelu=nn.GELU(), drop1=nn.Dropout(sizes.dropout))
        mlp.update(fc2=nn.Linear(hidden, e), drop2=nn.Dropout(sizes.dropout))
        self.ffn = nn.Sequential(mlp)

    def forward(self, x):
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    """The encoder: image f32[B, 3, H, W] -> grid f32[B, hidden, H/16, W/16] and the three skips."""

    def __init__(self, sizes):
        super().__init__()
        e, tokens = sizes.hidden, (sizes.size // 16) ** 2
        self.embeddings, self.encoder = nn.Module(), nn.Module()  # they only give names to the rest
        self.embeddings.hybrid_model = ResNet(sizes)
        self.embeddings.patch_embeddings = nn.Conv2d(int(1024 * sizes.width), e, 1)
        self.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, tokens, e))
        self.dropout = nn.Dropout(sizes.dropout)
        layers = ((str(i), Layer(sizes)) for i in range(sizes.layers))
        self.encoder.layer = Blocks(layers, sizes.remat)
        self.encoder.encoder_norm = LayerNorm(e)

    def forward(self, image):
        x, skips = self.embeddings.hybrid_model(image)
        grid = self.embeddings.patch_embeddings(x)
        x = self.dropout(grid.flatten(2).transpose(1, 2) + self.embeddings.position_embeddings)
        x = self.encoder.encoder_norm(self.encoder.layer(x))
        return x.transpose(1, 2).unflatten(2, grid.shape[2:]), skips


def conv_norm_relu(c_in, c_out):
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Decoder(nn.Module):
    """Grid and skips -> f32[B, decoder[-1], H, W]; each block doubles height and width."""

    def __init__(self, sizes):
        super().__init__()
        self.remat = sizes.remat
        w, inputs = int(64 * sizes.width), (sizes.bridge, *sizes.decoder[:-1])
        self.conv_more, self.blocks = conv_norm_relu(sizes.hidden, sizes.bridge), nn.ModuleList()
        for c_in, skip, c in zip(inputs, (8 * w, 4 * w, w, 0), sizes.decoder, strict=True):
            convs = OrderedDict(conv1=conv_norm_relu(c_in + skip, c), conv2=conv_norm_relu(c, c))
            self.blocks.append(nn.Sequential(convs))

    def forward(self, grid, skips):
        x = self.conv_more(grid)
        for block, skip in zip(self.blocks, (*skips, None), strict=True):
            x = run(self.remat, partial(self._double, block), x, skip)
        return x

    @staticmethod
    def _double(block, x, skip):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return block(x if skip is None else torch.cat([x, skip], dim=1))


class TransUNet(nn.Module):
    """image f32[B, 3, H, W] in [-1, 1] -> f32[B, outputs, H, W] (Chen et al. 2021)."""

    def __init__(self, **sizes):
        super().__init__()
        sizes = SimpleNamespace(**{**PUBLISHED, **sizes})
        self.transformer, self.decoder = Transformer(sizes), Decoder(sizes)
        self.segmentation_head = nn.Sequential(nn.Conv2d(sizes.decoder[-1], sizes.outputs, 3, 1, 1))

    def forward(self, image):
        return self.segmentation_head(self.decoder(*self.transformer(image)))


def denoising_loss(model, image):
    """Mean squared error of the noise in (x + sigma eps) / sqrt(1 + sigma^2), encoder frozen."""
    noise = torch.randn_like(image)
    with torch.no_grad():
        encoded = model.transformer((image + SIGMA * noise) / (1 + SIGMA**2) ** 0.5)
    return F.mse_loss(model.segmentation_head(model.decoder(*encoded)), noise)


def make_step(args):
    """The forward pass or train step."""
    frozen = args.what == "ddep"
    outputs = 3 if frozen else PUBLISHED["outputs"]
    model = TransUNet(size=args.size, outputs=outputs, remat=args.remat)
    model.to(memory_format=layout(args))
    image = torch.rand(args.batch, 3, args.size, args.size) * 2 - 1
    if args.what == "forward":
        probabilities = lambda image: model(image).softmax(1)
        model.eval()
        return torch.no_grad()(autocast(args)(partial(compiled(args, probabilities), image)))
    model.train().transformer.train(not frozen).requires_grad_(not frozen)
    labels = torch.randint(model.segmentation_head[0].out_channels, image[:, 0].shape)
    segmentation_loss = lambda model, image: F.cross_entropy(model(image), labels, ignore_index=255)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=1e-4, fused=args.device == "gpu")
    loss_of = partial(denoising_loss if frozen else segmentation_loss, model)
    loss_of = autocast(args)(compiled(args, loss_of))

    def step():
        loss = loss_of(image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    torch_program(__doc__, ("forward", "train", "ddep"), make_step, batch=4, size=224, remat=False)
