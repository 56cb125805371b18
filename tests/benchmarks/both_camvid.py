"""The features of EfficientNet-Lite0 and of a diffusion model of CamVid, side by side.

A config for few_labels.py: the preset pretrained of configs/ddpm_seg_camvid.py, to which the
diffusion model of its preset adm is added. Give the checkpoint as stages.fit.start.
"""

import runpy
from pathlib import Path

CAMVID = Path(__file__).parents[2] / "configs" / "ddpm_seg_camvid.py"


def get_config():
    get_preset = runpy.run_path(str(CAMVID))["get_config"]
    c, pretrained = get_preset("adm"), get_preset("pretrained")
    del c.samples, c.unlabelled
    lite = pretrained.features
    c.features.update(sources=("adm", *lite.sources), taps=lite.taps, scales=lite.scales)
    c.ensemble, c.evaluate, c.run = pretrained.ensemble, pretrained.evaluate, pretrained.run
    c.stages = dict(fit=dict(pretrained.stages.fit, start="pretrain"))
    return c
