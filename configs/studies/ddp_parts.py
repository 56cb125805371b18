"""What the parts of DDP bring: label codes and their scale, schedule, depth of the decoder.

python -m diffseg_jax.study --config=configs/studies/ddp_parts.py:scenes --workdir=runs/parts

Presets: scenes (default), camvid (--config.data.path=camvid) and cityscapes
(--config.data.path=cityscapes --config.weights=convnext_tiny_1k_224.pth): the same decoder without
diffusion, with a learned vector in place of the noisy map, and a convolutional head. With code_ in
front: how labels are encoded, and the scale of the code, with one seed and a part of the steps but
on cityscapes; schedule_: of the noise; depth_: layers of the map decoder. Where points are
different networks, table.md also has what a prediction takes: parameters, operations,
milliseconds, images per second.
Published for comparison: Ji et al. (2023), section 4.4. Reverse steps are studied by
configs/studies/steps.py.
"""

PRESETS = (
    "scenes", "camvid", "cityscapes", "code_scenes", "code_camvid", "code_cityscapes",
    "schedule_scenes", "schedule_camvid", "schedule_cityscapes",
    "depth_scenes", "depth_camvid", "depth_cityscapes",
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


def get_study(preset="scenes"):
    axis, _, data = preset.rpartition("_")
    study = dict(
        about="Parts of DDP; the published choice is first.",
        base="configs/ddp_scenes.py",
        axes=AXES[axis or "diffusion"],
        seeds={"seed": (0,) if axis == "code" else (0, 1)},
        options={"run": ("train",), "evaluate.pictures": 0},
        plot="bars", costs=axis != "schedule",        # another schedule is the same network
        titles={
            "diffusion.code": "code", "diffusion.code_scale": "scale", "model.layers": "layers",
            "diffusion.schedule": "schedule",
        },
        seconds=dict(start=25, train=0.34, image=0.05, images=100), device="one CPU core",
    )  # fmt: skip
    if preset in ("scenes", "schedule_scenes"):        # few points, so that three seeds fit
        study["seeds"] = {"seed": (0, 1, 2)}
        study["seconds"]["start"] = 15
    if preset == "code_scenes":
        study["options"]["stages.train.steps"] = 150   # of 200, as there are nine cells
    if data == "camvid":
        study["base"] = "configs/ddp_camvid.py"
        study["seconds"] = dict(start=30, train=0.56, image=0.3, images=101)
    if preset == "code_camvid":
        study["options"]["stages.train.steps"] = 400   # of 1,200
    if data == "cityscapes":
        study |= dict(
            base="configs/ddp_cityscapes.py:convnext_t", seeds={"seed": (0, 1, 2)},
            seconds=dict(start=120, train=0.23, image=0.5, images=500),
            device="a device of 100 TFLOP/s, by operations; none was measured",
        )
    return study
