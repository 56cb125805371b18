"""The four bars of denoising pretraining: none, supervised, DeP and DDeP, by the share of labels.

python -m diffseg_jax.study --config=configs/studies/denoising_bars.py:scenes --workdir=runs/bars

supervised starts the encoder from --config.weights, and so does DDeP, which then trains the decoder
alone (Brempong et al., 2022); without a file both start at random, as in the presets scenes
(default) and camvid (--config.data.path=camvid --config.unlabelled.path=camvid). cityscapes:
--config.weights=R50+ViT-B_16.npz and the paper's fractions of labels.
"""

PRESETS = ("scenes", "camvid", "cityscapes")

BARS = {
    "none": {"pretrain": "none", "run": ("finetune",)},
    "supervised": {"pretrain": "supervised", "run": ("finetune",)},
    "DeP": {"pretrain": "dep", "run": ("pretrain", "finetune")},
    "DDeP": {"pretrain": "ddep", "run": ("pretrain", "finetune")},
}


def get_study(preset="scenes"):
    study = dict(
        about="Without --config.weights, none and supervised are the same.",
        base="configs/ddep_scenes.py:dep",
        axes={"pretraining": BARS, "data.count": (6, 24)},
        seeds={"seed": (0, 1), "data.subset_seed": (0, 1)},
        options={"evaluate.pictures": 0},
        shared={"pretrain": ("data", "evaluate", "seed")},
        plot="bars", titles={"data.count": "labelled images", "data.fraction": "share of labels"},
        seconds=dict(start=20, pretrain=0.12, finetune=0.12, image=0.02, images=100),
        device="two CPU cores",
    )
    if preset == "camvid":
        study |= dict(
            base="configs/ddep_camvid.py:dep",
            axes={"pretraining": BARS, "data.fraction": (0.125, 1.0)},
            options={
                "evaluate.pictures": 0, "stages.pretrain.steps": 300, "stages.finetune.steps": 300,
            },
            seconds=dict(start=30, pretrain=0.45, finetune=0.45, image=0.1, images=101),
        )  # fmt: skip
    if preset == "cityscapes":
        study |= dict(
            base="configs/ddep_cityscapes.py:ddep",
            axes={"pretraining": BARS, "data.fraction": (1 / 30, 1 / 8, 1 / 4, 1.0)},
            seeds={"seed": (0, 1, 2), "data.subset_seed": (0, 1, 2)},
            seconds=dict(start=120, pretrain=0.47, finetune=0.9, image=0.2, images=500),
            device="a device of 100 TFLOP/s, by operations; none was measured",
        )
    return study
