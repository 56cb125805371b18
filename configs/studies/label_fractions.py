"""How many labels are needed, and what denoising pretraining brings for each number of them.

python -m diffseg_jax.study --config=configs/studies/label_fractions.py:scenes --workdir=runs/study

Presets: scenes (default), camvid: small networks, for a laptop; folder: classifiers on
features of a network from ImageNet, for your own images, with --config.data.path=mine.
The paper's figure is configs/studies/denoising_bars.py:cityscapes.
"""

PRESETS = ("scenes", "camvid", "folder")

TITLES = {
    "data.count": "labelled images", "data.fraction": "share of the labels",
    "calibration.ECE": "ECE",
}  # fmt: skip
PRETRAINING = {                           # columns: the first is what others are compared with
    "none": {"pretrain": "none", "run": ("finetune",)},
    "DeP": {"pretrain": "dep", "run": ("pretrain", "finetune")},
}
UNREAD = {"pretrain": ("data", "evaluate", "seed")}   # one pretraining for all numbers and seeds


def get_study(preset="scenes"):
    if preset == "folder":
        return dict(
            about="How many labels classifiers on ImageNet features need.",
            base="configs/ddpm_seg_folder.py",
            axes={"data.fraction": (0.125, 0.25, 0.5, 1.0)},
            seeds={"seed": (0, 1, 2), "data.subset_seed": (0, 1, 2)},   # nested subsets per seed
            options={"evaluate.pictures": 0},
            collect=("mIoU", "calibration.ECE"), titles=TITLES,
            seconds=dict(start=25, fit=60, image=1.0, images=50), device="one CPU core",
        )
    small = dict(
        about="What denoising pretraining of the same network brings, by the number of labels.",
        base="configs/ddep_scenes.py:dep",
        axes={"pretraining": PRETRAINING, "data.count": (6, 24)},
        seeds={"seed": (0, 1), "data.subset_seed": (0, 1)},
        options={"evaluate.pictures": 0},
        shared=UNREAD, collect=("mIoU", "calibration.ECE"), titles=TITLES,
        seconds=dict(start=25, pretrain=0.29, finetune=0.29, image=0.03, images=100),
        device="one CPU core",
    )
    if preset == "camvid":
        small |= dict(
            base="configs/ddep_camvid.py",
            axes={"pretraining": PRETRAINING, "data.count": (20, 80)},
            seconds=dict(start=30, pretrain=0.29, finetune=0.29, image=0.1, images=101),
        )
    return small
