"""Ten pixel classifiers in plain PyTorch, timed: the alternative of a user.

python torch_ensemble.py --what=step|heads [--threads=1]

It needs torch and nothing of this package, and is PyTorch as one writes it by hand after Baranchuk
et al. (ICLR 2022): float32, one classifier after another on vectors of
8448 numbers, which stand enlarged in memory. Features are random.

step    one step of all classifiers: 64 rows taken from a matrix, forward, loss, backward and Adam.
        They learn one after another, so it is the time of one times their number. The matrix is a
        part of the features of the images, which would take 2.2 GB each
heads   one image of 256x256: fifteen maps enlarged and joined, then every classifier, the vote,
        the mean of the softmaxes and the Jensen-Shannon divergence
"""

from functools import partial

import torch
import torch.nn.functional as F
from timing import compiled, torch_program
from torch import nn

TAPS = ((1024, 32), (512, 32), (512, 32), (512, 64), (256, 128))  # channels, side
STEPS = 3  # noise levels
SIDE = 256  # pixels; side of the image
FEATURES = STEPS * sum(channels for channels, _ in TAPS)  # 8448 a pixel
MEMBERS, HIDDEN, CLASSES = 10, (128, 32), 29
BATCH = 64
ROWS = 16_384  # rows of the matrix that `step` reads
STEPS_PER_CALL = 32


def make_member():
    """f32[n, 8448] -> logits f32[n, 29]; weights start normal with deviation 0.02."""
    layers, inputs = [], FEATURES
    for outputs in HIDDEN:
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs)]
        inputs = outputs
    member = nn.Sequential(*layers, nn.Linear(inputs, CLASSES))
    for layer in member[::3]:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return member


def make_step(args):
    """32 steps of one classifier, whose seconds times MEMBERS / 32 are those of a step of all."""
    rows, classes = torch.randn(ROWS, FEATURES), torch.randint(CLASSES, (ROWS,))
    member = make_member()
    optimizer = torch.optim.Adam(member.parameters(), lr=1e-3, fused=args.device == "gpu")
    loss_of = compiled(args, lambda x, y: F.cross_entropy(member(x), y))

    def steps():
        order = torch.randperm(ROWS, device=rows.device)
        for chosen in order[: STEPS_PER_CALL * BATCH].split(BATCH):
            loss = loss_of(rows[chosen], classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps, MEMBERS / STEPS_PER_CALL


def enlarge(maps):
    """Maps f32[1, c, h, w] -> one vector per pixel, f32[65536, 8448]."""
    resize = partial(F.interpolate, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return torch.cat([resize(values) for values in maps], dim=1)[0].flatten(1).t()


def predict(members, maps):
    """Labels i64[65536], mean softmax f32[65536, 29], divergence f32[65536], its top tenth."""
    rows = enlarge(maps)
    labels, mean, entropy = [], 0, 0
    for member in members:
        log_probs = F.log_softmax(member(rows), dim=1)
        probs = log_probs.exp()
        labels.append(probs.argmax(1))
        mean = mean + probs / len(members)
        entropy = entropy - (probs * log_probs).sum(1) / len(members)
    divergence = -torch.special.xlogy(mean, mean).sum(1) - entropy
    top = divergence.topk(len(divergence) // 10).values.mean()
    return torch.stack(labels).mode(dim=0).values, mean, divergence, top


def make_heads(args):
    maps = [torch.randn(1, c, side, side) for _ in range(STEPS) for c, side in TAPS]
    ensemble = [make_member().eval() for _ in range(MEMBERS)]
    return torch.no_grad()(partial(compiled(args, predict), ensemble, maps))


CALLS = dict(step=make_step, heads=make_heads)


def make_call(args):
    """A call in full float32, without the TF32 of GPUs, as our classifiers are computed."""
    torch.set_float32_matmul_precision("highest")
    return CALLS[args.what](args)


if __name__ == "__main__":
    torch_program(__doc__, CALLS, make_call)
