"""Real training images against generated ones, as many of each, measured on the same real images.

python -m diffseg_jax.study --config=configs/studies/training_images.py:scenes --workdir=runs/a

The question of Baranchuk et al. (ICLR 2022), section 4: does a method lose when it learns from
images that a diffusion model, or another generator, drew? Presets:

  scenes     (default) DeepLabV3 on drawn scenes of 32x48 pixels, and on made/scenes, which two
             commands write: 120 images, of which the filter keeps 108
                 python -m diffseg_jax.main --config=configs/ddpm_seg_scenes.py:whole \
                     --workdir=runs/ddpm_seg_whole
                 python -m diffseg_jax.synthesise --checkpoint=runs/ddpm_seg_whole \
                     --output=made/scenes --count=120 --certain=0 --steps=50
  camvid     the same with squares of 64x64 pixels, as the diffusion model sees CamVid, which lies
             in the folder camvid, and made/camvid
                 python -m diffseg_jax.main --config=configs/ddpm_seg_camvid.py \
                     --workdir=runs/ddpm_seg_64 --config.data.path=camvid \
                     --config.unlabelled.path=camvid --config.features.short=64
                 python -m diffseg_jax.synthesise --checkpoint=runs/ddpm_seg_64 --size=64,64 \
                     --output=made/camvid --count=120 --certain=0 --steps=100
  folder     DeepLabV3 on images/real, images/diffusion and images/other, folders of your own
             (.docs/data.md; images/real has a split val); .docs/synthetic_data.md says how the
             second one is made
  published  the paper's classifiers on the annotated sets of FFHQ-34: real/train and ddpm; give
             --config.data.path=datasets, with weights/ffhq.pt. Images of a GAN with labels of
             people are not published

For scenes and camvid, images are drawn at the size at which the diffusion model learned: larger
ones would measure that it never saw any; those of your folders should have one size. Every column
has the same number of images: 100 of each, which every seed draws anew, of 400 or more real ones
but of some 108 that are made, so that the deviation of these is nearly that of the network alone;
of published all, so that its seeds differ in the networks only.
"""

PRESETS = ("scenes", "camvid", "folder", "published")
MADE = {  # the commands above, for the error where a folder is missing
    "made/scenes": (
        "python -m diffseg_jax.main --config=configs/ddpm_seg_scenes.py:whole "
        "--workdir=runs/ddpm_seg_whole && python -m diffseg_jax.synthesise "
        "--checkpoint=runs/ddpm_seg_whole --output=made/scenes --count=120 --certain=0 --steps=50"
    ),
    "made/camvid": (
        "python -m diffseg_jax.main --config=configs/ddpm_seg_camvid.py "
        "--workdir=runs/ddpm_seg_64 --config.data.path=camvid --config.unlabelled.path=camvid "
        "--config.features.short=64 && python -m diffseg_jax.synthesise "
        "--checkpoint=runs/ddpm_seg_64 --size=64,64 --output=made/camvid --count=120 --certain=0 "
        "--steps=100"
    ),
}


def get_study(preset="scenes"):
    study = dict(
        about="The same method trained on real and on generated images, measured on real ones.",
        base="configs/deeplab_folder.py",
        axes={
            "training images": {
                "real": {"data.path": "images/real"},
                "by diffusion": {"data.path": "images/diffusion"},
                "by another generator": {"data.path": "images/other"},
            },
        },
        seeds={"seed": (0, 1, 2), "data.subset_seed": (0, 1, 2)},
        options={"data.validation.path": "images/real", "data.count": 100,
                 "evaluate.pictures": 0},
        collect=("mIoU", "calibration.ECE"),
        plot="bars", made=MADE,
        titles={"calibration.ECE": "ECE"},
        seconds=dict(start=30, train=0.6, image=0.2, images=100),
        device="one CPU core",
    )
    if preset == "scenes":
        drawn = {"data.options.size": (32, 48)}
        made = {"data.source": "folder", "data.path": "made/scenes", "data.options.images": 0,
                "data.options.size": (0, 0)}
        study |= dict(
            base="configs/deeplab_scenes.py",
            axes={"training images": {"real": drawn, "by diffusion": made}},
            options={
                "data.count": 100, "evaluate.pictures": 0, "data.validation.source": "scenes",
                "data.validation.options.size": (32, 48), "evaluate.short": 64,   # enlarged twice
                "stages.train.augment.short": 64, "stages.train.augment.crop": (64, 96),
                "stages.train.steps": 350,
            },
            seeds={"seed": (0, 1), "data.subset_seed": (0, 1)},
            seconds=dict(start=12, train=0.08, image=0.03, images=100),
            device="one CPU core, beside about 10 min for made/scenes",
        )
    if preset == "camvid":
        study["axes"] = {
            "training images": {
                "real": {"data.source": "camvid", "data.path": "camvid"},
                "by diffusion": {"data.path": "made/camvid"},
            },
        }
        study["options"] = {
            "data.count": 100, "evaluate.pictures": 0,
            "data.validation.source": "camvid", "data.validation.path": "camvid",
            "evaluate.limit": (85, 64), "stages.train.augment.limit": (85, 64),
            "stages.train.augment.crop": (64, 64), "stages.train.steps": 600,
        }  # fmt: skip
        study["seconds"] = dict(start=30, train=0.15, image=0.1, images=101)
        study["device"] = "one CPU core, beside about 65 min for made/camvid"
    if preset == "published":
        study |= dict(
            base="configs/ddpm_seg_published.py:ffhq34",
            axes={
                "training images": {
                    "real": {"data.train": "train"}, "by diffusion": {"data.train": "ddpm"},
                },
            },
            options={"evaluate.pictures": 0, "weights": "weights/ffhq.pt"},
            collect=("mIoU", "ddpm_seg.mIoU"),
            titles={"ddpm_seg.mIoU": "mIoU by the paper's convention"},
            seconds=dict(start=60, fit=1800, image=0.2, images=20),
            device="one A100, a guess; none was measured",
        )
    return study
