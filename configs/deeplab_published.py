"""DeepLabV3 on the published generated sets, with the recipe of DatasetGAN and DatasetDDPM.

python -m diffseg_jax.main --config=configs/deeplab_published.py:ffhq34 --workdir=runs/a \
    --config.data.path=synthetic/ddpm/ffhq_34 --config.data.validation.path=datasets \
    --config.weights=resnet101.pth

Presets               labels of      real validation and test images   published mIoU, %
                                                              by a diffusion model, by a GAN
  bedroom28 (default) bedroom_28       40 and 20                 47.9 ± 2.9    31.3 ± 2.7
  ffhq34              ffhq_34          20 and 20                 56.0 ± 0.9    57.0 ± 1.0
  cat15               cat_15           30 and 20                 47.6 ± 1.5    36.5 ± 2.3
  horse21             horse_21         30 and 30                 60.8 ± 1.0    45.4 ± 1.4
  tiny                (scenes)          4 and 4                  untrained, a minute

There are no generated images of celeba_19 and ade_bedroom_30. The folder of data.path holds one
samples_256x256x3.npz: 50,000 images, their labels and their uncertainty, of either generator, or
what DatasetGAN's program wrote (.docs/synthetic_data.md). The epoch with the best mIoU on
real/train counts. Its result on real/test, which the paper reports in its own convention
("ddpm_seg" in results_eval.json), takes afterwards the same command with --mode=eval
--config.data.val=test

DatasetGAN's own protocol takes no validation images: --config.data.val=test
--config.evaluate.step_folds=5 cuts the test images into five, each of which chooses the epoch that
the others test; "step_folds" in results.json has their mean and standard deviation.

resnet101.pth is torchvision's, trained on ImageNet with labels, which the paper's row uses too.
Nothing of this was run at full size: 112,500 steps on an accelerator. Not confirmed here.
"""

from ml_collections import config_dict

SOURCES = dict(
    bedroom28="bedroom_28", ffhq34="ffhq_34", cat15="cat_15", horse21="horse_21", tiny="scenes",
)
PRESETS = tuple(SOURCES)


def get_config(preset="bedroom28"):
    c = config_dict.ConfigDict()
    c.system = "deeplab"
    c.seed = 0
    c.dtype = "float32"                   # computation; bfloat16 is faster on accelerators
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="generated", path="", train="", val="train",
        options=dict(
            classes=SOURCES[preset],      # the set whose classes the labels have
            images=50_000,                # the first ones; 0: all
            portion=0.1, certain=30,      # of them dropped by uncertainty; of those, most certain
        ),
        fraction=1.0, count=0, subset_seed=0, list_path="",
        validation=dict(source=SOURCES[preset], path="", options=dict()),
        threads=8, workers=0, cache=False,
    )

    c.weights = ""                        # of the backbone; "": from scratch
    c.weights_part = ""
    c.new_head = False
    c.model = dict(                       # 58,633,053 parameters with 29 classes
        width=64, depths=(3, 4, 23, 3),   # ResNet-101
        output_stride=8, rates=(12, 24, 36), channels=256, dropout=0.5,
        auxiliary=0.0,                    # no auxiliary head
    )

    c.run = ("train",)
    c.stages = dict(
        train=dict(                       # 45,000 images x 20 epochs / 8
            kind="train", start="weights", steps=112_500, batch_size=8, accumulate=1, ema=(),
            augment=dict(                 # none
                limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(256, 256), max_class_share=1.0,
                flip=False, photometric=False,
            ),
            optim=dict(
                name="adam", schedule="constant", peak_lr=1e-3, warmup_steps=0, warmup_ratio=0.0,
                b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0, no_decay=(), clip_norm=0.0,
            ),
            every=dict(log=100, checkpoint=5_625, evaluate=5_625),        # an epoch
        ),
    )
    c.evaluate = dict(                    # the best epoch counts
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(0, 0), short=0, batch_size=1,
        images=0, quick_images=40, absent="zero", checkpoint="best", pictures=4,
        step_folds=0,                     # parts of val, each chooses the epoch others test; 0: no
    )
    if preset == "tiny":
        scenes = dict(images=4, size=(64, 96), seed=0)
        c.data.update(source="scenes", options=scenes, train="train", val="val", threads=1)
        c.data.validation.update(source="", options=dict())
        c.model.update(width=4, depths=(1, 1, 1, 1), rates=(1, 2), channels=8)
        c.stages.train.update(
            steps=4, batch_size=2, augment=dict(c.stages.train.augment, crop=(64, 96)),
            every=dict(log=1, checkpoint=2, evaluate=2),
        )
        c.evaluate.update(images=4, quick_images=2)
    return c
