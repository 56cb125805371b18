"""DDPM-Seg on its published few-label sets, with the paper's recipe.

python -m diffseg_jax.main --config=configs/ddpm_seg_published.py:bedroom28 --workdir=runs/a \
    --config.data.path=datasets --config.weights=lsun_bedroom.pt

Presets               weights          labelled  validation images   published mIoU, %
  bedroom28 (default) lsun_bedroom.pt        40         20           49.4 ± 1.9
  ffhq34              ffhq.pt                20         20           59.1 ± 1.4
  cat15               lsun_cat.pt            30         20           53.7 ± 3.3
  horse21             lsun_horse.pt          30         30           65.0 ± 0.8
  celeba19            ffhq.pt                20        500           59.9 ± 1.0
  ade_bedroom30       lsun_bedroom.pt        50        650           34.6 ± 1.7
  tiny                (untrained)             4          4           built-in scenes, a minute

datasets/bedroom_28/real/{train,test} holds NAME.png beside NAME.npy, as published; the others
likewise. Baranchuk et al. (ICLR 2022) report the mIoU in their convention ("ddpm_seg" in
results.json); not confirmed here. For a network of your own in place of the published one give
--config.stages.fit.start=runs/b/checkpoints/pretrain. The paper's rows of MAE (45.0 for bedroom28)
take --config.features.sources="mae=FILE", the last 12 blocks of a ViT-L/8, in place of weights.
"""

from ml_collections import config_dict

SOURCES = dict(
    bedroom28="bedroom_28", ffhq34="ffhq_34", cat15="cat_15", horse21="horse_21",
    celeba19="celeba_19", ade_bedroom30="ade_bedroom_30", tiny="scenes",
)
PRESETS = tuple(SOURCES)


def get_config(preset="bedroom28"):
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "float32"                   # computation; bfloat16 is faster on accelerators
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source=SOURCES[preset], path="", options=dict(), train="train", val="test",
        fraction=1.0, count=0, subset_seed=0, list_path="",               # all labels
        threads=2, workers=0, cache=False,
    )

    c.weights = ""                        # of the published network
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.weights_order = "legacy"            # order of its attention channels: legacy | new
    c.model = dict(                       # 552,814,086 parameters
        channels=256, channel_mult=(1, 1, 2, 2, 4, 4), res_blocks=2, attention_factors=(8, 16, 32),
        heads=4, heads_up=-1, head_channels=64, resample_in_blocks=True, scale_shift=True,
        num_classes=0, learn_sigma=True, dropout=0.1,
    )
    c.diffusion = dict(
        schedule="linear", steps=1000, rescale_timesteps=False, target="noise",
        variance="learned", loss="hybrid", timesteps="uniform",
    )

    c.features = dict(                    # 8448 features per pixel
        sources=("adm",),                 # adm: this network | colour (and position)
        steps=(50, 150, 250),             # noise levels in 0..diffusion.steps - 1
        blocks=(5, 6, 7, 8, 12),          # output blocks of the network
        short=0,                          # short side of the network's input; 0: as it is
        share_noise=True, noise_file="", draws=1,
        dtype="float16", place="device",  # of stored features; device | host
    )
    c.ensemble = dict(
        recipe="paper",                   # paper | fast
        members=10, widths=(),            # () = 128, 32 below 30 classes, else 256, 128
        small_objects=20,                 # pixels; smaller objects are ignored in the fit
        classifiers="",                   # folder of published model_0.pth, ...: no fit
        probe=True,                       # a linear classifier beside it, as a baseline
    )

    c.run = ("fit",)
    c.stages = dict(
        fit=dict(
            kind="fit", start="weights",
            augment=dict(limit=(0, 0), short=0, crop=(256, 256)),         # the set's size
            every=dict(log=1_000, checkpoint=20_000),                     # steps
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(0, 0), short=0, batch_size=1,
        images=0, quick_images=10, absent="skip", checkpoint="last", pictures=4,
    )
    if preset == "tiny":
        c.data.update(options=dict(images=4, size=(64, 96), seed=0), val="val")
        c.model.update(channels=32, channel_mult=(1, 2), res_blocks=1, attention_factors=(2,))
        c.features.blocks = (1, 2, 3)
        c.stages.fit.update(
            start="random", augment=dict(crop=(64, 96)), every=dict(log=100, checkpoint=500),
        )
        c.evaluate.update(images=4, quick_images=2)
    return c
