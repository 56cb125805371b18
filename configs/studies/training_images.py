"""Real training images against generated ones, as many of each, measured on the same real images.

python -m diffseg_jax.study --config=configs/studies/training_images.py:scenes --workdir=runs/a

The question of Baranchuk et al. (ICLR 2022), section 4: does a method lose when it learns from
images that a diffusion model, or another generator, drew? Presets:

  scenes     (default) DeepLabV3 on drawn scenes, and on made/scenes, which two commands write in
             some minutes: 120 images, of which the filter keeps 108
                 python -m diffseg_jax.main --config=configs/ddpm_seg_scenes.py \
                     --workdir=runs/ddpm_seg_scenes
                 python -m diffseg_jax.synthesise --checkpoint=runs/ddpm_seg_scenes --stage=fit \
                     --output=made/scenes --count=120 --certain=0 --steps=50
  folder     DeepLabV3 on images/real, images/diffusion and images/other, folders of your own
             (.docs/data.md; images/real has a split val), which .docs/synthetic_data.md makes
  published  the paper's classifiers on the annotated sets of FFHQ-34: real/train and ddpm; give
             --config.data.path=datasets, with weights/ffhq.pt. Images of a GAN with labels of
             people are not published

Every column has the same number of images: 100 of each, which every seed draws anew; of published
all, so that its seeds differ in the networks only.
"""

PRESETS = ("scenes", "folder", "published")
MADE = (  # the two commands above, for the error where made/scenes is missing
    "python -m diffseg_jax.main --config=configs/ddpm_seg_scenes.py --workdir=runs/ddpm_seg_scenes "
    "&& python -m diffseg_jax.synthesise --checkpoint=runs/ddpm_seg_scenes --stage=fit "
    "--output=made/scenes --count=120 --certain=0 --steps=50"
)


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
        plot="bars",
        titles={"calibration.ECE": "ECE"},
        seconds=dict(start=60, train=0.6, image=0.2, images=100),
        device="two CPU cores",
    )
    if preset == "scenes":
        made = {"data.source": "folder", "data.path": "made/scenes", "data.options.images": 0,
                "data.options.size": (0, 0)}
        study |= dict(
            base="configs/deeplab_scenes.py",
            axes={"training images": {"real": {}, "by diffusion": made}},
            options={
                "data.count": 100, "evaluate.pictures": 0, "data.validation.source": "scenes",
            },
            seeds={"seed": (0, 1), "data.subset_seed": (0, 1)}, made={"made/scenes": MADE},
            seconds=dict(start=60, train=0.4, image=0.1, images=100),
        )
        study["options"]["stages.train.steps"] = 350
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
            seconds=dict(start=600, fit=7_200, image=4, images=20),
        )
    return study
