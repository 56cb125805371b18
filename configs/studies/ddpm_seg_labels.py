"""How few labels DDPM-Seg needs: the same test images, nested subsets of the labelled ones.

python -m diffseg_jax.study --config=configs/studies/ddpm_seg_labels.py:scenes --workdir=runs/labels

Every seed draws another order of the labelled images; a smaller subset is the beginning of a larger
one. Presets: scenes (default), camvid (--config.data.path=camvid --config.unlabelled.path=camvid):
a small diffusion model that is trained first; bedroom28, ffhq34, cat15: numbers of images as in the
paper's draft (--config.data.path=datasets; weights/lsun_bedroom.pt or --config.weights=FILE), five
subsets each.
"""

COUNTS = {  # numbers of labelled images of the published sets
    "bedroom28": (40, 30, 20, 10), "ffhq34": (20, 16, 12, 8), "cat15": (30, 24, 16, 8),
}  # fmt: skip
WEIGHTS = {
    "bedroom28": "weights/lsun_bedroom.pt", "ffhq34": "weights/ffhq.pt",
    "cat15": "weights/lsun_cat.pt",
}  # fmt: skip
PRESETS = ("scenes", "camvid", "bedroom28", "ffhq34", "cat15")


def get_study(preset="scenes"):
    published = preset in COUNTS
    study = dict(
        about="DDPM-Seg with fewer labelled images, compared with the largest subset.",
        base="configs/ddpm_seg_scenes.py",
        axes={"data.count": COUNTS.get(preset, (24, 12, 6))},
        seeds={"seed": (0, 1, 2), "data.subset_seed": (0, 1, 2)},
        options={
            "run": ("pretrain", "fit"), "evaluate.pictures": 0, "evaluate.images": 40,
            "ensemble.members": 3,
        },
        shared={
            "pretrain": ("data", "evaluate", "features", "ensemble", "seed"),
            "features": ("ensemble", "seed", "data.count", "data.subset_seed"),
        },
        features={"data.count": 0},                     # of all labelled images, once
        collect=("mIoU", "linear_probe.mIoU", "ddpm_seg.mIoU"),
        titles={"data.count": "labelled images", "linear_probe.mIoU": "mIoU of a linear probe",
                "ddpm_seg.mIoU": "mIoU by the paper's convention"},
        seconds=dict(start=8, pretrain=0.33, fit=10, features=10, image=0.15, images=40),
        device="one CPU core",
    )  # fmt: skip
    if preset == "scenes":
        study["options"]["data.options.images"] = 40    # of which subsets are drawn
    if preset == "camvid":
        study["base"] = "configs/ddpm_seg_camvid.py:adm"
        study["axes"] = {"data.count": (40, 20, 10)}
        study["options"] |= {"stages.pretrain.steps": 1_500, "evaluate.images": 0}
        study["shared"]["features"] = ("ensemble", "seed", "data.count")
        study["features"] = {"data.count": 40}          # of the seeds' largest subsets, not of 367
        study["seconds"] |= dict(
            start=20, pretrain=0.9, fit=120, features=120, image=0.5, images=101
        )
    if published:
        five = tuple(range(5))
        del study["shared"]["pretrain"]
        study |= dict(
            base=f"configs/ddpm_seg_published.py:{preset}",
            seeds={"seed": five, "data.subset_seed": five},
            collect=("ddpm_seg.mIoU", "mIoU", "linear_probe.mIoU"),
            seconds=dict(start=60, fit=1800, features=60, image=0.2, images=20),
            device="one A100, a guess; none was measured",
        )
        study["options"] = {"evaluate.pictures": 0, "weights": WEIGHTS[preset]}
    return study
