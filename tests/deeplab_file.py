"""The file that torchvision would save of a DeepLabV3."""

import re

import numpy as np
from flax.traverse_util import flatten_dict

TORCH = (  # our layers -> torchvision's convolution and norm, by plain replacement
    (r"^backbone\.stem", "backbone.conv1", "backbone.bn1"),
    (r"^backbone\.layer(\d)\.block(\d)\.conv(\d)", r"backbone.layer\1.\2.conv\3",
     r"backbone.layer\1.\2.bn\3"),
    (r"^backbone\.layer(\d)\.block(\d)\.shortcut", r"backbone.layer\1.\2.downsample.0",
     r"backbone.layer\1.\2.downsample.1"),
    (r"^pyramid\.point", "classifier.0.convs.0.0", "classifier.0.convs.0.1"),
    (r"^pyramid\.atrous0", "classifier.0.convs.1.0", "classifier.0.convs.1.1"),
    (r"^pyramid\.atrous1", "classifier.0.convs.2.0", "classifier.0.convs.2.1"),
    (r"^pyramid\.atrous2", "classifier.0.convs.3.0", "classifier.0.convs.3.1"),
    (r"^pyramid\.pooled", "classifier.0.convs.4.1", "classifier.0.convs.4.2"),
    (r"^pyramid\.join", "classifier.0.project.0", "classifier.0.project.1"),
    (r"^head", "classifier.1", "classifier.2"),
    (r"^logits", "classifier.4", ""),
    (r"^auxiliary\.conv", "aux_classifier.0", "aux_classifier.1"),
    (r"^auxiliary\.logits", "aux_classifier.4", ""),
)  # fmt: skip
ENTRIES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(path):
    """torchvision's name of one of our arrays, such as "backbone.stem.norm.scale"."""
    layer, _, entry = path.rpartition(".")
    norm = layer.endswith(".norm")
    for pattern, conv_name, norm_name in TORCH:
        if re.search(pattern, layer):
            found = re.sub(pattern, norm_name if norm else conv_name, layer.removesuffix(".norm"))
            return f"{found}.{ENTRIES[entry] if norm else entry.replace('kernel', 'weight')}"
    raise AssertionError(path)


def torch_arrays(values):
    """Our {"params", "stats"} under torchvision's names, with the counters of its norms."""
    file = {}
    for tree in values.values():
        for path, array in flatten_dict(tree, sep=".").items():
            name, array = torch_name(path), np.asarray(array)
            file[name] = array.transpose(3, 2, 0, 1) if path.endswith("kernel") else array
            if name.endswith("running_mean"):
                file[name.replace("running_mean", "num_batches_tracked")] = np.array(7)
    return file
