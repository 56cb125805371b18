"""Which noise denoising pretraining needs: its strength, target and formula, and decoder widths.

python -m diffseg_jax.study --config=configs/studies/denoising_noise.py:scenes --workdir=runs/sigma

Presets: scenes (default), camvid (--config.data.path=camvid --config.unlabelled.path=camvid),
cityscapes: the strength sigma, fixed or drawn from [0.2, 0.3]; target_scenes, target_camvid: what
the network predicts, and how noise and image are mixed; widths_scenes, widths_camvid: factors of
the decoder's widths, with and without pretraining (Brempong et al., 2022). Those of scenes have
fewer points and steps.

Each point is pretrained once for all seeds. The two formulas differ by a factor of the input, to
which the first layers of this network are invariant, so at equal strength they learn the same
function, and a difference between their rows is rounding.
"""

PRESETS = (
    "scenes", "camvid", "cityscapes", "target_scenes", "target_camvid", "widths_scenes",
    "widths_camvid",
)  # fmt: skip


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
        costs=axes is WIDTHS,                          # other points are the same network
        seconds=dict(start=25, pretrain=0.29, finetune=0.29, image=0.03, images=100),
        device="one CPU core",
    )
    if axes is not WIDTHS:
        study["options"]["run"] = ("pretrain", "finetune")
    if preset.endswith("scenes"):                      # fewer steps and points, for 15 minutes
        study["options"] |= {"stages.pretrain.steps": 100, "stages.finetune.steps": 100}
    if preset == "scenes":
        study["axes"] = {"noise": {k: v for k, v in SIGMA["noise"].items() if k != "0.05"}}
    if preset == "widths_scenes":
        study["axes"] = {**WIDTHS, "model.decoder_width": (1.0, 2.0)}
    if preset.endswith("camvid"):
        study |= dict(
            base="configs/ddep_camvid.py:dep",
            seconds=dict(start=30, pretrain=0.29, finetune=0.29, image=0.1, images=101),
        )
        study["options"]["data.count"] = 46
    if preset == "widths_camvid":
        study["options"] |= {"stages.pretrain.steps": 300, "stages.finetune.steps": 300}
    if axes is WIDTHS:                                 # by operations: 1, 2.8, 5.5 at 1, 2, 3
        step = 0.29 * (1.9 if preset == "widths_scenes" else 3.1)
        study["seconds"] |= dict(pretrain=step, finetune=step)
    if preset == "cityscapes":
        study |= dict(
            base="configs/ddep_cityscapes.py:ddep",
            seconds=dict(start=120, pretrain=0.47, finetune=0.9, image=0.2, images=500),
            device="a device of 100 TFLOP/s, by operations; none was measured",
        )
        del study["options"]["data.count"]
    return study
