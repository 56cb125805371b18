"""How many reverse steps DDP needs: one trained network, measured with each number of them.

python -m diffseg_jax.study --config=configs/studies/steps.py:scenes --workdir=runs/steps

Columns are before (train) and after self-aligned denoising (align; Ji et al., 2023, section 3.4),
which continues the last checkpoint of train, and that checkpoint continued as long, at the same
learning rate, on true labels (longer), as align has had more steps than train. Presets: scenes
(default) and camvid (--config.data.path=camvid), small networks for a laptop, with two seeds;
camvid_full: 1, 3 and 10 steps with three seeds, and the same decoder trained and measured without
diffusion, whose numbers are the same in all rows; cityscapes: the paper's sizes
(--config.data.path=cityscapes --config.weights=convnext_tiny_1k_224.pth), the last checkpoint.
"""

PRESETS = ("scenes", "camvid", "camvid_full", "cityscapes")


def get_study(preset="scenes"):
    stages = {
        "train": {"run": ("train",)},
        "align": {"run": ("train", "align")},
        "longer": {"run": ("train", "align"), "stages.align.kind": "train"},
    }
    if preset == "camvid_full":
        stages["without diffusion"] = {"run": ("plain",), "stages.plain.kind": "decoder"}
    study = dict(
        about="Reverse steps of DDP before and after it learns from its own predictions.",
        base="configs/ddp_scenes.py",
        axes={"stage": stages, "sampling.steps": (1, 2, 3, 5, 10)},
        seeds={"seed": (0, 1)},
        options={"evaluate.pictures": 0, "stages.align.start": "train@last"},
        shared={"train": ("evaluate", "sampling")},   # align continues from it
        evaluated=("sampling.steps",),                # nothing is trained again
        collect=("mIoU", "calibration.ECE"), costs=True,
        titles={"sampling.steps": "reverse steps", "calibration.ECE": "ECE", "stage": "after"},
        seconds=dict(start=20, train=0.34, align=0.42, image=0.06, images=100),
        device="one CPU core",
    )
    if preset in ("scenes", "camvid_full"):
        study["axes"]["sampling.steps"] = (1, 3, 10)
    if preset == "scenes":                            # of 200 steps and 100 images
        study["options"] |= {"stages.train.steps": 160, "evaluate.images": 60}
        study["seconds"]["images"] = 60
    if preset.startswith("camvid"):
        study |= dict(
            base="configs/ddp_camvid.py",
            seconds=dict(start=30, train=0.56, align=0.7, plain=0.56, image=0.3, images=101),
        )
    if preset == "camvid_full":
        study["seeds"] = {"seed": (0, 1, 2)}
    if preset == "cityscapes":
        study |= dict(
            base="configs/ddp_cityscapes.py",
            seconds=dict(start=120, train=0.23, align=0.9, image=0.5, images=500),
            device="a device of 100 TFLOP/s, by operations; none was measured",
        )
        study["options"]["evaluate.checkpoint"] = "last"   # as align starts from it
    return study
