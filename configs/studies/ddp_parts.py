"""What the parts of DDP bring: label codes and their scale, schedule, depth of the decoder.

python -m diffseg_jax.study --config=configs/studies/ddp_parts.py:code --workdir=runs/code

Presets: code: how labels are encoded, and the scale of the code; schedule: of the noise; depth:
layers of the map decoder; diffusion: the same decoder without it, with a learned vector in place of
the noisy map, and a convolutional head; each with _camvid (--config.data.path=camvid) and
_cityscapes (--config.data.path=cityscapes --config.weights=convnext_tiny_1k_224.pth) at the end of
its name.
table.md also has what a prediction takes: parameters, operations, milliseconds, images per second.
Published for comparison: Ji et al. (2023), section 4.4. Reverse steps are studied by
configs/studies/steps.py.
"""

PRESETS = (
    "code", "code_camvid", "code_cityscapes", "schedule", "schedule_camvid", "schedule_cityscapes",
    "depth", "depth_camvid", "depth_cityscapes",
    "diffusion", "diffusion_camvid", "diffusion_cityscapes",
)  # fmt: skip
AXES = {
    "code": {
        "diffusion.code": ("embedding", "one_hot", "bits"),
        "diffusion.code_scale": (0.01, 0.001, 0.1),
    },
    "schedule": {"diffusion.schedule": ("cosine", "linear")},
    "depth": {"model.layers": (6, 3, 1)},
    "diffusion": {
        "decoder": {
            "with diffusion": {"stages.train.kind": "train"},
            "without": {"stages.train.kind": "decoder"},
            "convolutional head": {"stages.train.kind": "plain"},
        },
    },
}


def get_study(preset="code"):
    axis, _, data = preset.partition("_")
    study = dict(
        about="Parts of DDP, each compared with the published choice in the first column.",
        base="configs/ddp_scenes.py",
        axes=AXES[axis],
        seeds={"seed": (0,) if axis == "code" else (0, 1)},
        options={"run": ("train",), "evaluate.pictures": 0},
        plot="bars", costs=True,
        titles={
            "diffusion.code": "code", "diffusion.code_scale": "scale", "model.layers": "layers",
            "diffusion.schedule": "schedule",
        },
        seconds=dict(start=20, train=0.3, image=0.05, images=100), device="two CPU cores",
    )  # fmt: skip
    if data == "camvid":
        study["base"] = "configs/ddp_camvid.py"
        study["options"] |= {"stages.train.steps": 400}
        study["seconds"] = dict(start=30, train=0.9, image=0.4, images=101)
    if data == "cityscapes":
        study |= dict(
            base="configs/ddp_cityscapes.py:convnext_t", seeds={"seed": (0, 1, 2)},
            seconds=dict(start=120, train=0.23, image=0.5, images=500),
            device="a device of 100 TFLOP/s, by operations; none was measured",
        )
    return study
