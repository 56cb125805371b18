"""Does it matter which noise the images get? The noise settings of DDPM-Seg.

python -m diffseg_jax.study --config=configs/studies/ddpm_seg_noise.py:scenes --workdir=runs/noise

shared: one noise for all steps and images; per_step: one for each step; fresh: a new one for each
of eight copies of an image, and unseen ones in prediction; per_image: one for each image and step,
the released program's share_noise=False. The paper expects no difference. All columns are fitted
with the recipe fast, whose steps do not grow with the copies, so that only the noise differs; the
features of fresh take eight times the memory and time. Presets: scenes (default), camvid
(--config.data.path=camvid --config.unlabelled.path=camvid), bedroom28, ffhq34
(--config.data.path=datasets; weights/lsun_bedroom.pt or --config.weights=FILE).
"""

WEIGHTS = {"bedroom28": "weights/lsun_bedroom.pt", "ffhq34": "weights/ffhq.pt"}
PRESETS = ("scenes", "camvid", "bedroom28", "ffhq34")
SPLIT = "All learn from the published split, so that seeds differ in chance only."


def get_study(preset="scenes"):
    published = preset in WEIGHTS
    study = dict(
        about="Noise settings of DDPM-Seg, in equally many steps; the paper expects no difference.",
        base="configs/ddpm_seg_scenes.py",
        axes={
            "noise": {
                "shared": {"features.noise": "shared"},
                "per_step": {"features.noise": "per_step"},
                "fresh": {"features.noise": "fresh", "stages.fit.augment.variants": 7},
                "per_image": {"features.noise": "per_image"},
            },
        },
        seeds={"seed": (0, 1, 2), "data.subset_seed": (0, 1, 2)},
        options={
            "run": ("pretrain", "fit"), "data.count": 12, "evaluate.images": 40,
            "evaluate.pictures": 0, "ensemble.members": 3, "ensemble.probe": False,
        },
        shared={"pretrain": ("data", "evaluate", "features", "ensemble", "seed")},
        plot="bars",
        seconds=dict(start=8, pretrain=0.33, fit=17, image=0.2, images=40),
        device="one CPU core",
    )  # fmt: skip
    if preset == "camvid":
        study["base"] = "configs/ddpm_seg_camvid.py:adm"
        study["options"] |= {"stages.pretrain.steps": 1_500, "evaluate.images": 0}
        study["seconds"] |= dict(start=20, pretrain=0.9, fit=150, image=1.2, images=101)
    if published:
        study |= dict(
            base=f"configs/ddpm_seg_published.py:{preset}",
            options={
                "evaluate.pictures": 0, "weights": WEIGHTS[preset], "ensemble.recipe": "fast",
            },
            shared={},
            about=f"{study['about']} {SPLIT}", collect=("ddpm_seg.mIoU", "mIoU"),
            seconds=dict(start=60, fit=1800, image=0.3, images=20),
            device="one A100, a guess; none was measured",
        )
    return study
