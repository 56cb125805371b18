"""DDP on Cityscapes (19 classes): every published preset, by the name of its backbone.

python -m diffseg_jax.main --config=configs/ddp_cityscapes.py:convnext_t \
    --workdir=runs/ddp_cityscapes --config.data.path=cityscapes \
    --config.weights=convnext_tiny_1k_224.pth

Presets: convnext_t (default), convnext_s, convnext_b, convnext_l, swin_t, swin_s, swin_b, swin_l;
convnext_t_aligned and convnext_l_aligned continue with 5,000 steps of self-aligned denoising and
then predict in ten steps. Weights are the ImageNet files of the backbones' authors: 1k of 224
pixels, but 22k for ConvNeXt-L, and 22k of 384 pixels for Swin-L. Of ConvNeXt-T, -S and -B the
published runs took the weights without moving average (in OpenMMLab's names, noema); files with
_ema in their name and those of the Hugging Face hub, timm and torchvision are averages, which also
work. tiny is convnext_t_aligned for a laptop: a narrow network, a few steps on the built-in scenes,
no data or weights needed, about a minute.

Time, estimated at 100 TFLOP/s per device, not measured: 160,000 steps of 16 crops
through ConvNeXt-T, forward and backward, are 3.7e18 operations, 10 device-hours; ConvNeXt-L takes
2.4 times that.
Published (Ji et al., 2023), mIoU of one scale with three steps: ConvNeXt-T 82.60, -S 82.69, -B
82.78, -L 83.21; aligned, ten steps: -T 82.6, -L 83.2. Not reproduced here.
"""

from ml_collections import config_dict

CONVNEXT = dict(backbone="convnext", heads=(), window=0)
SWIN = dict(backbone="swin", drop_path=0.3)
BACKBONES = dict(
    convnext_t=dict(CONVNEXT, channels=(96, 192, 384, 768), depths=(3, 3, 9, 3), drop_path=0.4),
    convnext_s=dict(CONVNEXT, channels=(96, 192, 384, 768), depths=(3, 3, 27, 3), drop_path=0.3),
    convnext_b=dict(CONVNEXT, channels=(128, 256, 512, 1024), depths=(3, 3, 27, 3), drop_path=0.4),
    convnext_l=dict(CONVNEXT, channels=(192, 384, 768, 1536), depths=(3, 3, 27, 3), drop_path=0.4),
    tiny=dict(CONVNEXT, channels=(8, 16, 24, 32), depths=(1, 1, 1, 1), drop_path=0.4),
    swin_t=dict(SWIN, channels=(96, 192, 384, 768), depths=(2, 2, 6, 2), heads=(3, 6, 12, 24),
                window=7),
    swin_s=dict(SWIN, channels=(96, 192, 384, 768), depths=(2, 2, 18, 2), heads=(3, 6, 12, 24),
                window=7),
    swin_b=dict(SWIN, channels=(128, 256, 512, 1024), depths=(2, 2, 18, 2), heads=(4, 8, 16, 32),
                window=7),
    swin_l=dict(SWIN, channels=(192, 384, 768, 1536), depths=(2, 2, 18, 2), heads=(6, 12, 24, 48),
                window=12),
)
PRESETS = (*BACKBONES, "convnext_t_aligned", "convnext_l_aligned")
# Only the norms of the backbone are not decayed: in the original the decoder's are, by the order
# in which its rules match, and so are the neck's and those between the stages of ConvNeXt.
NO_DECAY = dict(
    convnext=(r"backbone\.stage.*\.norm\.", r"backbone\.norm\d\."),
    swin=(r"backbone\..*norm",),
)


def get_config(preset="convnext_t"):
    aligned = preset.endswith("_aligned") or preset == "tiny"
    backbone = BACKBONES[preset.removesuffix("_aligned")]
    c = config_dict.ConfigDict()
    c.system = "ddp"
    c.seed = 0
    c.dtype = "float32"                   # as published; bfloat16 takes half the memory
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="cityscapes", path="", options=dict(), train="train", val="val",
        fraction=1.0, count=0, subset_seed=0, list_path="",
        threads=16, workers=0, cache=False,
    )

    c.weights = ""                        # of the backbone, or an official DDP checkpoint
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.new_head = False                    # True: the classes differ from the start's
    c.model = dict(
        backbone, down_epsilon=1e-5, width=256, layers=6, decoder_heads=8, points=4, mlp=1024,
        groups=32, auxiliary_dropout=0.1,
    )
    c.diffusion = dict(                   # t ~ U[0, high); loss + auxiliary * auxiliary head's loss
        schedule="cosine", code="embedding", code_scale=0.01, high=0.999, auxiliary=0.4,
    )
    c.sampling = dict(
        steps=10 if aligned else 3, sampler="ddim", draws=1, time_difference=1, start=0.0,
        accumulate=False,
    )
    c.sweep = dict(steps=(1, 2, 3, 5, 10), draws=(1,))                    # for --mode=steps

    augment = dict(
        limit=(2048, 1024), short=0, scale=(0.5, 2.0), crop=(512, 1024), max_class_share=0.75,
        flip=True, photometric=True,
    )
    adamw = dict(
        name="adamw", schedule="polynomial", peak_lr=6e-5, warmup_steps=1_500, warmup_ratio=1e-6,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01, no_decay=NO_DECAY[backbone["backbone"]],
        clip_norm=0.0,
    )
    c.run = ("train", "align") if aligned else ("train",)
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=160_000, batch_size=16, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw),
            every=dict(log=50, checkpoint=2_000, evaluate=16_000),        # steps
        ),
        align=dict(
            kind="align", start="train", steps=5_000, batch_size=16, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw, peak_lr=6e-6),
            every=dict(log=50, checkpoint=500, evaluate=500),
        ),
    )
    c.evaluate = dict(                    # one scale; published with several: 0.5, 0.75, ... 1.75
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(2048, 1024), short=0, batch_size=1,
        images=0, quick_images=500, absent="skip", checkpoint="best", pictures=4,
    )
    if preset == "tiny":
        c.data.update(
            source="scenes", options=dict(images=16, size=(64, 128), seed=0), count=8, threads=2,
        )
        c.model.update(width=32, layers=2, decoder_heads=4, points=2, mlp=64, groups=8)
        few = dict(
            steps=10, batch_size=4, augment=dict(limit=(128, 64), crop=(64, 64)),
            optim=dict(warmup_steps=2), every=dict(log=5, checkpoint=5, evaluate=10),
        )
        c.stages.train.update(few)
        c.stages.align.update(few)
        c.evaluate.update(limit=(128, 64), images=4, quick_images=2)
    return c
