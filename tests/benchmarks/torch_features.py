"""A plain PyTorch EfficientNet-Lite0, timed: the alternative of a user for its features.

python torch_features.py [--channels-last]

Random weights; names of states are those of the published file. --channels-last is NHWC in memory.
It needs torch and nothing of this package.
"""

from functools import partial

import torch
from timing import compiled, layout, torch_program
from torch import nn

HEIGHT, WIDTH = 360, 480
STAGES = (  # kernel, stride of the first block, expansion, channels, blocks
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
)  # fmt: skip
TAPS = (0, 2, 4, 10, 15)


def batch_norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


def padded(x, size, stride):
    """x with the zeros that a convolution of this size adds around an image of even sides."""
    before, after = (size - stride) // 2, (size - 1) // 2
    return nn.functional.pad(x, (before, after, before, after))


class Block(nn.Module):
    def __init__(self, channels_in, channels, size, stride, expansion, adds):
        super().__init__()
        inner = expansion * channels_in
        self.size, self.stride, self.expands, self.adds = size, stride, expansion > 1, adds
        if self.expands:
            self._expand_conv = nn.Conv2d(channels_in, inner, 1, bias=False)
            self._bn0 = batch_norm(inner)
        self._depthwise_conv = nn.Conv2d(inner, inner, size, stride, groups=inner, bias=False)
        self._bn1 = batch_norm(inner)
        self._project_conv = nn.Conv2d(inner, channels, 1, bias=False)
        self._bn2 = batch_norm(channels)

    def forward(self, x):
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._depthwise_conv(padded(y, self.size, self.stride))
        y = self._bn2(self._project_conv(nn.functional.relu6(self._bn1(y))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), batch_norm(32)
        blocks, channels_in = [], 32
        for size, stride, expansion, channels, count in STAGES:
            for i in range(count):
                s = 1 if i else stride
                blocks.append(Block(channels_in, channels, size, s, expansion, i > 0))
                channels_in = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), batch_norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = nn.functional.relu6(self._bn0(self._conv_stem(padded(x, 3, 2))))
        maps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in TAPS:
                maps.append(x)
        return maps


def make_step(args):
    """The maps of an image."""
    form = layout(args)
    network = compiled(args, EfficientNetLite0().eval().to(memory_format=form))
    image = (2 * torch.rand(1, 3, HEIGHT, WIDTH) - 1).contiguous(memory_format=form)
    return torch.inference_mode()(partial(network, image))


if __name__ == "__main__":
    torch_program(__doc__, ("maps",), make_step)
