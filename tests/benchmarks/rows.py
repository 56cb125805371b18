"""The rows of the benchmark, most important first: those of the guides and of GPUs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement, by a program of ours and a plain PyTorch one of the same arithmetic.

    what      what is measured, in a line
    guide     the page that tells of it and names the command
    here      file in this folder and options of our program; {folder} is one that all share
    torch     those of PyTorch's; () where there is none
    seconds   device -> expected seconds of one process on a quiet machine, of two cores or one GPU;
              it runs on these devices alone
    flop      operations of a call, two for a multiply-add, of the matrix products and convolutions
              that it cannot do without, so without those that --remat repeats; 0: not counted. By
              torch.utils.flop_counter on PyTorch's program, with attention as products
              (SDPBackend.MATH), where nothing else is said
    bytes     that a call must move where memory limits it; 0: not counted
    variants  other options -> name, with which PyTorch may be faster
    torch_flop  those of PyTorch's program, where it makes more; 0: as many as ours
    exact     whether float32 is multiplied in full, without the TF32 of GPUs; their shares are of a
              product of the same kind
    compiles  whether torch.compile is another program
    """

    name: str
    what: str
    guide: str
    here: tuple[str, ...]
    torch: tuple[str, ...]
    seconds: dict[str, float]
    dtype: str = "float32"
    flop: float = 0
    bytes: float = 0
    variants: dict[str, str] = dataclasses.field(default_factory=dict)
    torch_flop: float = 0
    exact: bool = False
    compiles: bool = True


def twins(name, what, guide, program, *options, here=(), **fields):
    """A row of bench_{program}.py and torch_{program}.py with the same options."""
    dtype = fields.get("dtype", "float32")
    options = (*options, *[f"--dtype={dtype}"] * (dtype != "float32"))
    ours, torch = (f"bench_{program}.py", *options, *here), (f"torch_{program}.py", *options)
    return Row(name, what, guide, ours, torch, **fields)


def product(name, size, device, dtype="float32", exact=False):
    what = f"product of two matrices of {size}x{size}" + ", without TF32" * exact
    return twins(
        name, what, "contributing", "matmul",
        "--what=product", f"--size={size}", *["--exact"] * exact, seconds={device: 15}, dtype=dtype,
        flop=2 * size**3, exact=exact, compiles=False,
    )  # fmt: skip


def copy(name, size, device):
    return twins(
        name, f"copy of {size // 64} MiB, plus one", "contributing", "matmul", "--what=copy",
        f"--size={size}", seconds={device: 15}, bytes=2 * 4 * 4096 * size, compiles=False,
    )  # fmt: skip


def transunet(name, what, *options, **fields):
    return twins(
        f"transunet_{name}", f"TransUNet, {what}", "denoising_pretraining", "transunet", *options,
        **fields,
    )  # fmt: skip


def adm(name, what, *options, **fields):
    return twins(f"adm_{name}", what, "diffusion_models", "adm", *options, **fields)


def ddp(name, what, *options, size="512x1024", **fields):
    what = f"DDP with {what}, {size}"
    return twins(f"ddp_{name}", what, "ddp", "ddp", *options, **fields)


def deformable(what, **fields):
    options, title = f"--what={what}", what.replace("_", ", ").replace("both", "with gradients")
    return Row(
        f"deformable_{what}", f"deformable attention on 128x256 cells: {title}", "ddp",
        ("bench_deformable.py", options), ("bench_deformable.py", "torch", options),
        seconds=dict(cpu=20, gpu=20), **fields,
    )  # fmt: skip


BF16 = dict(dtype="bfloat16", variants={"--channels-last": "PyTorch, channels last"})
CELLS = "--cells={folder}/cells.npy"
PEAKS = (  # of a device; a run takes those whose dtype or limit its rows have
    product("product_cpu", 4096, "cpu"),
    product("product_gpu", 8192, "gpu"),
    product("product_exact_gpu", 8192, "gpu", exact=True),
    product("product_bf16_gpu", 8192, "gpu", "bfloat16"),
    copy("copy_cpu", 8192, "cpu"),
    copy("copy_gpu", 65536, "gpu"),
)
ROWS = (
    transunet("train_1024_bf16", "training step, 2 of 1024x1024", "--what=train", "--batch=2",
              "--size=1024", seconds=dict(gpu=60), flop=1.088e13, **BF16),
    adm("train_bf16", "LSUN network, training step, 2 of 256x256", "--what=train_lsun",
        seconds=dict(gpu=80), flop=1.344e13, **BF16),
    ddp("t_train_bf16", "ConvNeXt-T, training step, 2 images", "--what=train", "--batch=2",
        seconds=dict(gpu=60), flop=3.94e12, **BF16),
    ddp("t_steps_3_bf16", "ConvNeXt-T, three steps", "--what=steps_3",
        seconds=dict(gpu=40), flop=9.94e11, **BF16),
    adm("taps_bf16", "LSUN network to block 12, 8 of 256x256", "--what=taps", "--batch=8",
        seconds=dict(gpu=50), flop=9.69e12, **BF16),
    transunet("ddep_1024_bf16", "DDeP step, 2 of 1024x1024", "--what=ddep", "--batch=2",
              "--size=1024", seconds=dict(gpu=60), flop=4.86e12, **BF16),
    transunet("forward", "forward pass, 4 of 224x224", "--what=forward",
              seconds=dict(cpu=25), flop=2.344e11),
    ddp("t_steps_3", "ConvNeXt-T, three steps", "--what=steps_3",
        seconds=dict(cpu=45), flop=9.94e11),
    transunet("ddep", "DDeP step, 4 of 224x224", "--what=ddep",
              seconds=dict(cpu=40), flop=3.522e11),
    adm("taps", "LSUN network to block 12, one 256x256", "--what=taps",
        seconds=dict(cpu=45), flop=1.211e12),
    twins("ensemble_step", "step of ten classifiers, 64 pixels each", "ddpm_seg", "ensemble",
          "--what=step", here=("--images=20",), seconds=dict(cpu=40, gpu=30), flop=2.79e9,
          bytes=3.04e8, exact=True, variants={"--threads=1": "PyTorch, 1 thread"}),
    twins("ensemble_heads", "ten classifiers on one 256x256 image", "ddpm_seg", "ensemble",
          "--what=heads", seconds=dict(cpu=40, gpu=30), flop=7.1e10, torch_flop=1.424e12,
          exact=True),
    transunet("train", "training step, 4 of 224x224", "--what=train",
              seconds=dict(cpu=60), flop=7.022e11),
    adm("train", "100 million parameters, training step, 8 of 64x64", "--what=train",
        seconds=dict(cpu=70), flop=1.684e12),
    # of a quarter of the published size, so that a step takes some seconds
    ddp("t_train", "ConvNeXt-T, training step, 2 images", "--what=train", "--batch=2",
        "--size=256", size="256x512", seconds=dict(cpu=90), flop=9.85e11),
    adm("forward", "LSUN network, one 256x256", "--what=forward",
        seconds=dict(cpu=60), flop=2.24e12),
    ddp("t_steps_1", "ConvNeXt-T, one step", "--what=steps_1", seconds=dict(cpu=30), flop=4.41e11),
    twins("depth_3", "DDP for depth with Swin-T, three steps, 352x1216", "ddp", "depth",
          seconds=dict(cpu=45, gpu=40), flop=8.07e11),
    twins("dino_one", "DINOv2 ViT-S/14, one 224x224", "features", "dino", "--what=one",
          seconds=dict(cpu=15, gpu=20), flop=1.225e10),
    twins("features", "EfficientNet-Lite0, one 480x360", "features", "features",
          seconds=dict(cpu=15), flop=2.469e9,
          variants={"--channels-last": "PyTorch, channels last"}),
    twins("bev_encoder", "camera encoder, six 256x704", "bev", "bev", "--what=encoder", CELLS,
          seconds=dict(cpu=60, gpu=40), flop=3.344e11),
    twins("bev_pool", "softmax, two million points of 80 features into 256x256 cells", "bev",
          "bev", "--what=pool", CELLS, seconds=dict(cpu=20, gpu=20), bytes=4.23e7),
    deformable("core_forward", bytes=7.97e7),
    deformable("core_both"),
    deformable("attention_forward", flop=1.02e10),
    deformable("attention_both", flop=3.06e10),
    ddp("l_train_bf16", "ConvNeXt-L, training step, 2 images", "--what=train", "--batch=2",
        "--backbone=convnext_l", seconds=dict(gpu=80), flop=1.515e13, **BF16),
    ddp("l_steps_3_bf16", "ConvNeXt-L, three steps", "--what=steps_3", "--backbone=convnext_l",
        seconds=dict(gpu=50), flop=1.621e12, **BF16),
    # with --remat as in configs/ddep_cityscapes.py and configs/ddpm_published.py
    transunet("train_1024_remat_bf16", "training step with remat, 2 of 1024x1024", "--what=train",
              "--batch=2", "--size=1024", "--remat", seconds=dict(gpu=60), flop=1.088e13, **BF16),
    adm("train_remat_bf16", "LSUN network, training step with remat, 2 of 256x256",
        "--what=train_lsun", "--remat", seconds=dict(gpu=80), flop=1.344e13, **BF16),
    transunet("train_224_bf16", "training step, 32 of 224x224", "--what=train", "--batch=32",
              seconds=dict(gpu=60), flop=5.618e12, **BF16),
    adm("forward_bf16", "LSUN network, 8 of 256x256", "--what=forward", "--batch=8",
        seconds=dict(gpu=60), flop=1.792e13, **BF16),
    ddp("t_steps_1_bf16", "ConvNeXt-T, one step", "--what=steps_1",
        seconds=dict(gpu=40), flop=4.41e11, **BF16),
    ddp("l_steps_1_bf16", "ConvNeXt-L, one step", "--what=steps_1", "--backbone=convnext_l",
        seconds=dict(gpu=50), flop=1.069e12, **BF16),
    twins("dino_eight", "DINOv2 ViT-S/14, eight 224x224", "features", "dino", "--what=eight",
          seconds=dict(cpu=20, gpu=20), flop=9.8e10),
    twins("dino_large", "DINOv2 ViT-S/14, one 518x518", "features", "dino", "--what=large",
          seconds=dict(cpu=20, gpu=20), flop=9.339e10),
    twins("input", "input pipeline, an image of 360x480", "denoising_pretraining", "input",
          "--data={data}", "--workers=2", here=("--scratch={folder}",), seconds=dict(cpu=25),
          variants={"--workers=0": "PyTorch, no workers"}, compiles=False),
    Row("scenes", "packaged network, an image of 96x128", "using", ("bench_scenes.py",), (),
        dict(cpu=20, gpu=40)),
    Row("ensemble_gather", "gathering of the step of ten classifiers", "ddpm_seg",
        ("bench_ensemble.py", "--what=gather", "--images=20"), (), dict(cpu=30, gpu=30),
        bytes=4.3e7),
    Row("ensemble_fit", "fit by the recipe fast, 50 images", "ddpm_seg",
        ("bench_ensemble.py", "--what=fit", "--images=50", "--repeats=0"), (),
        dict(cpu=250, gpu=60)),
)  # fmt: skip
