"""Which noise denoising pretraining needs: its strength, target and formula, and decoder widths.

python -m diffseg_jax.study --config=configs/studies/denoising_noise.py:scenes --workdir=runs/sigma

Presets: scenes (default), camvid (--config.data.path=camvid --config.unlabelled.path=camvid),
cityscapes: the strength sigma, fixed or drawn from [0.2, 0.3]; target, target_camvid: what the
network predicts, and how noise and image are mixed; widths, widths_camvid: factors of the decoder's
widths, with and without pretraining (Brempong et al., 2022).
"""

PRESETS = ("scenes", "camvid", "cityscapes", "target", "target_camvid", "widths", "widths_camvid")


def level(low, high=None):
    return {"noise.low": low, "noise.high": low if high is None else high}


SIGMA = {
    "noise": {
        "0.22": level(0.22), "0.05": level(0.05), "0.1": level(0.1), "0.4": level(0.4),
        "0.8": level(0.8), "uniform 0.2 to 0.3": level(0.2, 0.3),
    },
}  # fmt: skip
TARGET = {
    "noise.target": ("noise", "image"),
    "noise.kind": ("scaled", "simple"),
}  # fmt: skip
WIDTHS = {
    "pretraining": {
        "none": {"pretrain": "none", "run": ("finetune",)},
        "DeP": {"pretrain": "dep", "run": ("pretrain", "finetune")},
    },
    "model.decoder_width": (1.0, 2.0, 3.0),
}  # fmt: skip

TITLES = {
    "noise": "strength of the noise", "noise.target": "target", "noise.kind": "formula",
    "model.decoder_width": "factor of the decoder's widths",
}  # fmt: skip


def get_study(preset="scenes"):
    axes = TARGET if "target" in preset else WIDTHS if "widths" in preset else SIGMA
    study = dict(
        about="What denoising pretraining learns from, measured after the same fine-tuning.",
        base="configs/ddep_scenes.py:dep",
        axes=axes,
        seeds={"seed": (0, 1), "data.subset_seed": (0, 1)},
        options={"evaluate.pictures": 0, "data.count": 24},
        shared={"pretrain": ("data", "evaluate", "seed")},
        plot="bars", titles=TITLES,
        seconds=dict(start=20, pretrain=0.12, finetune=0.12, image=0.02, images=100),
        device="two CPU cores",
    )
    study["costs"] = axes is WIDTHS                    # other points are the same network
    if axes is not WIDTHS:
        study["options"]["run"] = ("pretrain", "finetune")
    if preset.endswith("camvid"):
        study |= dict(
            base="configs/ddep_camvid.py:dep",
            seconds=dict(start=30, pretrain=0.45, finetune=0.45, image=0.1, images=101),
        )
        study["options"] |= {
            "data.count": 46, "stages.pretrain.steps": 300, "stages.finetune.steps": 300,
        }  # fmt: skip
    if preset == "cityscapes":
        study |= dict(
            base="configs/ddep_cityscapes.py:ddep",
            seconds=dict(start=120, pretrain=0.47, finetune=0.9, image=0.2, images=500),
            device="a device of 100 TFLOP/s, by operations; none was measured",
        )
        del study["options"]["data.count"]
    return study
