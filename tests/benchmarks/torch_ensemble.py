"""Ten pixel classifiers in plain PyTorch, timed: the alternative of a user.

python torch_ensemble.py --what=step|heads [--members=10] [--threads=2]

prints one JSON line. It needs torch and nothing of this package, and is PyTorch as one writes it by
hand after Baranchuk et al. (ICLR 2022): eager, float32, one classifier after another on vectors of
8448 numbers, which stand enlarged in memory. Features are random.

step    one step of all classifiers: 64 rows taken from a matrix, forward, loss, backward and Adam.
        They learn one after another, so it is the time of one times their number. The matrix is a
        part of the features of the images, which would take 2.2 GB each
heads   one image of 256x256: fifteen maps enlarged and joined, then every classifier, the vote,
        the mean of the softmaxes and the Jensen-Shannon divergence
"""

import argparse
import json
import resource
import timeit
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

TAPS = ((1024, 32), (512, 32), (512, 32), (512, 64), (256, 128))  # channels, side
STEPS = 3  # noise levels
SIDE = 256  # pixels; side of the image
FEATURES = STEPS * sum(channels for channels, _ in TAPS)  # 8448 a pixel
HIDDEN, CLASSES = (128, 32), 29
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


def make_step(members):
    """(function that makes 32 steps of one classifier, the equivalent number of steps of all)."""
    rows, classes = torch.randn(ROWS, FEATURES), torch.randint(CLASSES, (ROWS,))
    member = make_member()
    optimizer = torch.optim.Adam(member.parameters(), lr=1e-3)

    def steps():
        for chosen in torch.randperm(ROWS)[: STEPS_PER_CALL * BATCH].split(BATCH):
            loss = F.cross_entropy(member(rows[chosen]), classes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps, STEPS_PER_CALL / members


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


def make_heads(members):
    maps = [torch.randn(1, c, side, side) for _ in range(STEPS) for c, side in TAPS]
    ensemble = [make_member().eval() for _ in range(members)]
    return torch.no_grad()(partial(predict, ensemble, maps)), 1


def memory_mb(key):
    """The current (VmRSS) or peak (VmHWM) resident memory; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("step", "heads"), required=True)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    run, parts = (make_step if args.what == "step" else make_heads)(args.members)
    before = memory_mb("VmRSS")
    run()  # warm-up
    seconds = timeit.repeat(run, number=1, repeat=args.repeats)
    line = dict(what=args.what, seconds=[second / parts for second in seconds])
    line["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from KiB
    line["more_mb"] = memory_mb("VmHWM") - before
    print(json.dumps(line))


if __name__ == "__main__":
    main()
