"""MAE of CamVid's unlabelled images, then DDPM-Seg's classifiers from 20 labelled images.

python -m diffseg_jax.main --config=configs/mae_camvid.py --workdir=runs/mae_camvid \
    --config.data.path=camvid --config.unlabelled.path=camvid

The folder holds images/{train,val} and masks/{train,val}. First a small vision transformer learns
to reconstruct hidden patches of the 367 unlabelled images (He et al., CVPR 2022), then ten
classifiers learn from its features. No result was measured yet. All numbers here are ours;
the published recipe is in mae_published.py.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="camvid", path="", options=dict(), train="train", val="val",
        fraction=1.0, count=20, subset_seed=0, list_path="",              # 20 labelled images
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )
    c.unlabelled = dict(
        source="unlabelled", path="", split="train", options=dict(),
        threads=2, workers=0, cache=True,
    )

    c.weights = ""                        # an official MAE file, for start="weights" of mae
    c.weights_part = ""                   # of a file of several networks
    c.weights_order = "legacy"            # of diffusion models; MAE has no such order
    c.mae = dict(                         # 3.0 million parameters, 0.3 million in the decoder
        patch=8, width=192, depth=6, heads=3, mlp=768,
        decoder_width=96, decoder_depth=2, decoder_heads=3, decoder_mlp=384,
    )
    c.masking = dict(ratio=0.75, normalise=True)   # hidden patches; targets normalised in each

    c.features = dict(
        sources=("mae",),                 # of the stage to start from | mae=FILE or DIR
        taps=(),                          # () = the last half of the blocks
        scales=(1.0,),                    # factors by which images are enlarged first
        dtype="float16", place="device",  # of stored features; device | host
    )
    c.ensemble = dict(
        recipe="fast",                    # fast | paper
        members=10, widths=(),            # () = 128, 32 below 30 classes, else 256, 128
        small_objects=20,                 # pixels; smaller objects are ignored in the fit
        classifiers="",                   # folder of published model_0.pth, ...: no fit
        probe=True,                       # a linear classifier beside it, as a baseline
    )

    c.run = ("mae", "fit")
    c.stages = dict(
        mae=dict(
            kind="mae", start="random", steps=1_000, batch_size=8, accumulate=1, ema=(),
            augment=dict(
                limit=(240, 180), short=0, scale=(1.0, 1.5), crop=(176, 240), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="cosine_after_warmup", peak_lr=5e-4, warmup_steps=100,
                warmup_ratio=0.0, b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.05,
                no_decay=(r"\.(bias|scale)$",), clip_norm=0.0,
            ),
            every=dict(log=50, checkpoint=500, evaluate=500),             # steps
        ),
        fit=dict(
            kind="fit", start="mae",
            augment=dict(limit=(240, 180), short=0, crop=(180, 240)),     # half the image's sides
            every=dict(log=200, checkpoint=1_000),                        # steps
        ),
    )
    c.evaluate = dict(                    # all 101 images, probabilities enlarged to 360 x 480
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(240, 180), short=0, batch_size=1,
        images=0, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    return c
