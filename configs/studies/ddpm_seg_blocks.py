"""Which blocks and steps of a diffusion model hold what classes need: the block x step grid.

python -m diffseg_jax.study --config=configs/studies/ddpm_seg_blocks.py:scenes --workdir=runs/blocks

One MLP for each output block at each step, one seed, all images with the same noise, mean IoU of
all classes and of small and large ones apart, over those that occur (Baranchuk et al., 2022,
section 3). Features are computed once,
by --mode=features. Presets: scenes (default), camvid (--config.data.path=camvid
--config.unlabelled.path=camvid): a small diffusion model that is trained first, for a laptop;
folder: your own images, with the same options and --config.data.val=val or folds; ffhq34, horse21:
20 images to learn from and 20 others, blocks and steps of the published networks
(--config.data.path=datasets; weights/ffhq.pt or --config.weights=FILE). The steps of the paper's
figure are not stated; those here are ours.
"""

WEIGHTS = {"ffhq34": "weights/ffhq.pt", "horse21": "weights/lsun_horse.pt"}
PRESETS = ("scenes", "camvid", "folder", "ffhq34", "horse21")

TITLES = {
    "features.blocks": "output block", "features.steps": "step",
    "small.mIoU": "mIoU, small classes", "large.mIoU": "mIoU, large classes",
}  # fmt: skip


def get_study(preset="scenes"):
    published = preset in WEIGHTS
    blocks = tuple(range({"scenes": 6, "camvid": 8, "folder": 8}.get(preset, 18)))   # all of them
    steps = tuple(range(50, 1000, 100)) if published else (0, 100, 300, 600)
    if preset == "scenes":
        steps = (0, 100, 400)
    study = dict(
        about="Mean IoU of one MLP on the features of one block at one step.",
        axes={
            "features.blocks": tuple((block,) for block in blocks),
            "features.steps": tuple((step,) for step in steps),
        },
        seeds={"seed": (0,)},
        options={
            "run": ("pretrain", "fit"), "data.count": 20, "evaluate.images": 20,
            "evaluate.pictures": 0, "ensemble.members": 1, "ensemble.probe": False,
        },
        features={"features.blocks": blocks, "features.steps": steps},   # computed once
        shared={
            "pretrain": ("data", "evaluate", "features", "ensemble", "seed"),
            "features": ("ensemble", "seed", "features.blocks", "features.steps"),
        },
        collect=("mIoU", "small.mIoU", "large.mIoU"), plot="grid", titles=TITLES,
        base="configs/ddpm_seg_scenes.py",
        seconds=dict(start=8, pretrain=0.33, fit=1, features=5, image=0.05, images=20),
        device="one CPU core",
    )  # fmt: skip
    if preset in ("camvid", "folder"):
        study["base"] = {
            "camvid": "configs/ddpm_seg_camvid.py:adm", "folder": "configs/ddpm_seg_folder.py:adm",
        }[preset]  # fmt: skip
        study["options"] |= {"stages.pretrain.steps": 1_500, "evaluate.images": 0}
        study["seconds"] |= dict(
            start=20, pretrain=0.9, fit=20, features=120, image=0.5, images=101
        )
    if preset == "folder":
        study["options"] |= {"data.count": 0, "stages.pretrain.probe.every": 0}
    if published:
        del study["shared"]["pretrain"]
        study["base"] = f"configs/ddpm_seg_published.py:{preset}"
        study["options"] |= {
            "run": ("fit",), "ensemble.recipe": "paper", "weights": WEIGHTS[preset],
        }  # fmt: skip
        study["seconds"] = dict(start=60, fit=240, features=300, image=0.2, images=20)
        study["device"] = "one A100, a guess; none was measured"
    return study
