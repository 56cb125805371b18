"""The four bars of denoising pretraining: none, supervised, DeP and DDeP, by the share of labels.

python -m diffseg_jax.study --config=configs/studies/denoising_bars.py:scenes --workdir=runs/bars

supervised starts the encoder from --config.weights, and so does DDeP, which then trains the decoder
alone (Brempong et al., 2022). Presets: cityscapes: all four, with
--config.weights=R50+ViT-B_16.npz and the paper's fractions of labels. The others have no weights,
so that supervised would be none again, and the encoder that DDeP freezes is a random one: scenes
(default); camvid (--config.data.path=camvid --config.unlabelled.path=camvid): 1/8 and all of the
labels, two seeds; camvid_full: 1/16, 1/8, 1/4 and all, three seeds; folder: none and DeP on your
own images (--config.data.path=mine --config.unlabelled.path=photos), 1/4 and all of the labels,
three seeds.
"""

PRESETS = ("scenes", "camvid", "camvid_full", "folder", "cityscapes")

NONE = {"pretrain": "none", "run": ("finetune",)}
DEP = {"pretrain": "dep", "run": ("pretrain", "finetune")}
DDEP = {"pretrain": "ddep", "run": ("pretrain", "finetune")}
WITHOUT_WEIGHTS = {"none": NONE, "DeP": DEP, "DDeP, random encoder": DDEP}
BARS = {
    "none": NONE, "supervised": {"pretrain": "supervised", "run": ("finetune",)}, "DeP": DEP,
    "DDeP": DDEP,
}  # fmt: skip


def get_study(preset="scenes"):
    study = dict(
        about="No encoder has weights, so there is no column supervised.",
        base="configs/ddep_scenes.py:dep",
        axes={"pretraining": WITHOUT_WEIGHTS, "data.count": (6, 24)},
        seeds={"seed": (0, 1), "data.subset_seed": (0, 1)},
        options={"evaluate.pictures": 0},
        shared={"pretrain": ("data", "evaluate", "seed")},
        plot="bars", titles={"data.count": "labelled images", "data.fraction": "share of labels"},
        seconds=dict(start=25, pretrain=0.29, finetune=0.29, image=0.03, images=100),
        device="one CPU core",
    )
    if preset == "scenes":                             # of 160 and 140, for 15 minutes
        study["options"] |= {"stages.pretrain.steps": 120, "stages.finetune.steps": 120}
    if preset in ("camvid", "camvid_full"):
        study |= dict(
            base="configs/ddep_camvid.py:dep",
            axes={"pretraining": WITHOUT_WEIGHTS, "data.fraction": (0.125, 1.0)},
            seconds=dict(start=30, pretrain=0.29, finetune=0.29, image=0.1, images=101),
        )
    if preset == "camvid_full":
        study["axes"]["data.fraction"] = (1 / 16, 1 / 8, 1 / 4, 1.0)
    if preset == "folder":
        study |= dict(
            base="configs/ddep_folder.py:dep",
            axes={"pretraining": {"none": NONE, "DeP": DEP}, "data.fraction": (0.25, 1.0)},
            seconds=dict(start=30, pretrain=0.29, finetune=0.29, image=0.1, images=50),
        )
    if preset == "cityscapes":
        study |= dict(
            about="Without --config.weights, none and supervised are the same.",
            base="configs/ddep_cityscapes.py:ddep",
            axes={"pretraining": BARS, "data.fraction": (1 / 30, 1 / 8, 1 / 4, 1.0)},
            seconds=dict(start=120, pretrain=0.47, finetune=0.9, image=0.2, images=500),
            device="a device of 100 TFLOP/s, by operations; none was measured",
        )
    if preset in ("camvid_full", "folder", "cityscapes"):
        study["seeds"] = {"seed": (0, 1, 2), "data.subset_seed": (0, 1, 2)}
    return study
