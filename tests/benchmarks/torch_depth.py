"""DDP's depth with Swin-T in plain PyTorch, timed: the alternative of a user.

python torch_depth.py [--save=case.npz]

One image of 352x1216 pixels, the part of a photograph of KITTI that is measured, random weights,
three steps, one draw of noise, no mirrored view. It needs torch and the networks of torch_ddp.py
and torch_bev.py beside it, and is PyTorch as one writes it by hand, see there. `--save` writes the
weights under their published names, with image, noise and depth, so that another program can be
compared.
"""

import math
import re
from functools import partial

import torch
from timing import autocast, compiled, torch_program
from torch import nn
from torch_bev import CHANNELS, Swin
from torch_ddp import WIDTH, MapDecoder, Neck, bilinear

LOW, HIGH, CODE_SCALE = 0.001, 80.0, 0.1  # metres; of normalised depth
SIZE, STEPS = (352, 1216), 3
BLOCK, PUBLISHED_BLOCK = r"backbone\.stages\.(\d)\.(\d+)\.", r"backbone.stages.\1.blocks.\2."
LAYER, PUBLISHED_LAYER = r"decoder\.layers\.(\d+)\.", r"decode_head.encoder.layers.\1."
PUBLISHED = (  # how a name begins here, and in the published checkpoints
    (r"backbone\.embed", "backbone.patch_embed.projection"),
    (r"backbone\.norm\b", "backbone.patch_embed.norm"),
    (r"backbone\.norms\.(\d)", r"backbone.norm\1"),
    (r"backbone\.merges\.(\d)", r"backbone.stages.\1.downsample"),
    (BLOCK + "norm", PUBLISHED_BLOCK + "norm"),
    (BLOCK + r"attention\.table", PUBLISHED_BLOCK + "attn.w_msa.relative_position_bias_table"),
    (BLOCK + r"attention\.qkv", PUBLISHED_BLOCK + "attn.w_msa.qkv"),
    (BLOCK + r"attention\.out", PUBLISHED_BLOCK + "attn.w_msa.proj"),
    (BLOCK + r"mlp\.0", PUBLISHED_BLOCK + "ffn.layers.0.0"),
    (BLOCK + r"mlp\.2", PUBLISHED_BLOCK + "ffn.layers.1"),
    (r"neck\.lateral\.(\d)\.0", r"neck.0.lateral_convs.\1.conv"),
    (r"neck\.lateral\.(\d)\.1", r"neck.0.lateral_convs.\1.gn"),
    (r"neck\.out\.(\d)\.0", r"neck.0.fpn_convs.\1.conv"),
    (r"neck\.out\.(\d)\.1", r"neck.0.fpn_convs.\1.gn"),
    (r"neck\.merge\.0", "neck.1.down.conv"),
    (r"neck\.merge\.1", "neck.1.down.gn"),
    (r"decoder\.frequencies", "time_mlp.0.weights"),
    (r"decoder\.time\.0", "time_mlp.1"),
    (r"decoder\.time\.2", "time_mlp.3"),
    (LAYER + r"attention\.value", PUBLISHED_LAYER + "attentions.0.value_proj"),
    (LAYER + r"attention\.out", PUBLISHED_LAYER + "attentions.0.output_proj"),
    (LAYER + r"attention\.offsets", PUBLISHED_LAYER + "attentions.0.sampling_offsets"),
    (LAYER + r"attention\.weights", PUBLISHED_LAYER + "attentions.0.attention_weights"),
    (LAYER + "norm1", PUBLISHED_LAYER + "norms.0"),
    (LAYER + "norm2", PUBLISHED_LAYER + "norms.1"),
    (LAYER + r"mlp\.0", PUBLISHED_LAYER + "ffns.0.layers.0.0"),
    (LAYER + r"mlp\.2", PUBLISHED_LAYER + "ffns.0.layers.1"),
    (LAYER + r"time\.1", PUBLISHED_LAYER + "time_mlp.1"),
    ("down", "down.conv"),
    ("head", "decode_head.conv_depth"),
)


class Depth(nn.Module):
    """Diffusion over depth maps, for one image at a time."""

    def __init__(self):
        super().__init__()
        self.backbone, self.neck, self.decoder = Swin(first=0), Neck(CHANNELS), MapDecoder()
        self.down = nn.Conv2d(WIDTH + 1, WIDTH, 1)
        self.head = nn.Conv2d(WIDTH, 1, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.1)  # depths of 20 metres, give or take 5
        nn.init.constant_(self.head.bias, 20.0)

    def forward(self, image, noise, steps):
        """f32[1, 3, H, W] and f32[1, 1, H/4, W/4] -> metres f32[1, 1, H, W]."""
        feature, state = self.neck(self.backbone(image)), noise
        for i in range(steps):
            times = [1 - i / steps, max(1 - (i + 2) / steps, 0.0)]
            times = torch.tensor(times, device=image.device)
            now, after = torch.cos((times + 0.0002) / 1.00025 * math.pi / 2) ** 2
            mixed = self.down(torch.cat([feature, state], dim=1))
            depth = self.head(self.decoder(mixed, times[:1])).relu() + LOW
            code = (2 * (depth - LOW) / (HIGH - LOW) - 1) * CODE_SCALE
            code = code.clamp(-CODE_SCALE, CODE_SCALE)
            eps = (state - now.sqrt() * code) / (1 - now).sqrt()
            state = after.sqrt() * code + (1 - after).sqrt() * eps
        return bilinear(depth.clamp(LOW, HIGH), image.shape[2:])


def published(name):
    """The name of a parameter in the published checkpoints."""
    for pattern, other in PUBLISHED:
        if match := re.match(pattern, name):
            return match.expand(other) + name[match.end() :]
    raise ValueError(name)


def save(path, model, image, noise, depth):
    """Weights f32 by published name, and the arrays of one run."""
    import numpy as np

    state = {published(name): values.numpy() for name, values in model.state_dict().items()}
    np.savez(path, **state, image=image.numpy(), noise=noise.numpy(), depth=depth.numpy())


def make_step(args):
    """The depths of an image, in three steps; with --save, what they come from is written."""
    model, image = Depth().eval(), torch.randn(1, 3, *SIZE)
    noise = torch.randn(1, 1, *(side // 4 for side in SIZE))
    if args.save:
        with torch.inference_mode():
            save(args.save, model, image, noise, model(image, noise, STEPS))
    run = compiled(args, model)
    return torch.inference_mode()(autocast(args)(partial(run, image, noise, STEPS)))


if __name__ == "__main__":
    torch_program(__doc__, ("steps_3",), make_step, save="")
