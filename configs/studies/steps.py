"""How many reverse steps DDP needs: one trained network, measured with each number of them.

python -m diffseg_jax.study --config=configs/studies/steps.py:scenes --workdir=runs/steps

Columns are before and after self-aligned denoising (Ji et al., 2023, section 3.4), which continues
the same network. Presets: scenes (default) and camvid (--config.data.path=camvid), small networks
for two CPU cores; cityscapes: the paper's.
"""

PRESETS = ("scenes", "camvid", "cityscapes")


def get_study(preset="scenes"):
    study = dict(
        about="Reverse steps of DDP before and after it learns from its own predictions.",
        base="configs/ddp_scenes.py",
        axes={
            "stage": {"train": {"run": ("train",)}, "align": {"run": ("train", "align")}},
            "sampling.steps": (1, 2, 3, 5, 10),
        },
        seeds={"seed": (0, 1)},
        options={"evaluate.pictures": 0},
        shared={"train": ("evaluate", "sampling")},   # align continues from it
        evaluated=("sampling.steps",),                # nothing is trained again
        collect=("mIoU", "calibration.ECE"), costs=True,
        titles={"sampling.steps": "reverse steps", "calibration.ECE": "ECE", "stage": "after"},
        seconds=dict(start=25, train=0.3, align=0.5, image=0.1, images=100),
        device="two CPU cores",
    )
    if preset == "scenes":
        study["axes"]["sampling.steps"] = (1, 3, 10)
    if preset == "camvid":
        study |= dict(
            base="configs/ddp_camvid.py", seeds={"seed": (0,)},
            seconds=dict(start=30, train=0.9, align=1.5, image=0.4, images=101),
        )
    if preset == "cityscapes":
        study |= dict(
            base="configs/ddp_cityscapes.py",
            seconds=dict(start=120, train=0.23, align=0.9, image=0.5, images=500),
            device="a device of 100 TFLOP/s, by operations; none was measured",
        )
    return study
