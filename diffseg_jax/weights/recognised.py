"""Names what a file, a folder or a state dict is where it is not what was asked for."""

import json
import os
import re
import shlex
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import in_bucket, open_path

# ---- networks ------------------------------------------------------------------------------------

NETWORKS = (  # pattern of one of its names, and what has it; the first match counts
    (r".*\.?lora_(A|B|up|down|embedding_A)\..*", "a LoRA adapter, which holds no network"),
    (r".*time_mlp\.0\.weights", "a network of DDP (python -m diffseg_jax.convert --source=ddp)"),
    (r"(model\.)?diffusion_model\.input_blocks\..*", "a latent diffusion model (Stable Diffusion)"),
    (r"input_blocks\.0\.0\.weight",
     "a UNet of guided diffusion (python -m diffseg_jax.convert --source=adm)"),
    (r"down_blocks\.\d+\..*", "a network of diffusers"),
    (r"transformer\.embeddings\.hybrid_model\..*",
     "a TransUNet (python -m diffseg_jax.convert --source=transunet)"),
    (r"(.*\.)?patch_embed\.backbone\..*|conv_root/kernel|(.*\.)?backbone\.bit\..*",
     "a ViT on a ResNet, the encoder of a TransUNet "
     "(python -m diffseg_jax.convert --source=transunet)"),
    (r"layers\.6\.weight",
     "a pixel classifier of DDPM-Seg (python -m diffseg_jax.convert --source=ddpm_seg)"),
    (r".*\.(logit_scale|cpb_mlp\..*|continuous_position_bias_mlp\..*)", "a Swin Transformer V2"),
    (r".*\.grn\..*", "a ConvNeXt V2"),
    (r"(.*\.)?(visual|vision_model|text_model)\..*", "a CLIP or another model of images and text"),
    (r"(image_encoder|mask_decoder)\..*", "a Segment Anything model"),
    (r"(.*\.)?(embed_tokens|lm_head|word_embeddings|wte)\.weight", "a language model"),
    (r"(.*\.)?(patch_embed1|block1)\..*|segformer\..*", "a SegFormer"),
    (r"(.*\.)?layer1\.0\.conv1\.weight|resnet\..*", "a ResNet"),
    (r"(.*\.)?(blocks\.0\.0\.conv_(dw|pw)|_blocks\.0\._depthwise_conv"
     r"|features\.1\.0\.block\.0\.0)\..*", "an EfficientNet"),
    (r"(.*\.)?blocks\.0\.attn\.qkv\.weight|Transformer/encoderblock_0/.*"
     r"|(.*\.)?encoder\.layer\.0\.attention\..*|encoder\.layers\.encoder_layer_0\..*",
     "a plain vision transformer (ViT, DeiT, DINO or MAE)"),
)  # fmt: skip


def described(names: Iterable[str]) -> str:
    """What a state dict is, by its names, or its first name: a clause about "it"."""
    names = list(names)
    for pattern, network in NETWORKS:
        if any(re.fullmatch(pattern, name) for name in names):
            return f"it is {network}; its first entry is {names[0]}"
    return f"its first entry is {names[0] if names else 'missing'}"


# ---- files ---------------------------------------------------------------------------------------

HEAD = 1024  # bytes at the start of a file that tell what it is
LFS, GZIP = b"version https://git-lfs", b"\x1f\x8b"
FIRST_BYTES = (  # first bytes, what they tell, what to do; FILE stands for the path in quotes
    (
        LFS,
        "a Git LFS pointer, not the file it stands for. Run git lfs pull in its repository, or "
        "download it from an address with /resolve/ in place of /raw/ or /blob/",
    ),
    (GZIP, "packed with gzip. Unpack it with gzip -dc FILE > weights.pth"),
    (b"BZh", "packed with bzip2. Unpack it with bzip2 -dc FILE > weights.pth"),
    (b"\xfd7zXZ", "packed with xz. Unpack it with xz -dc FILE > weights.pth"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd. Unpack it with zstd -dc FILE > weights.pth"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive. Unpack it with 7z x FILE"),
    (b"Rar!", "a RAR archive. Unpack it with unrar x FILE"),
    (b"GGUF", "a GGUF file of quantised numbers. Give the weights that it was made from"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it. Give the PyTorch or safetensors file"),
    (b"\x93NUMPY", "one NumPy array without names. Save named arrays with numpy.savez"),
    (b"MATLAB", "a MATLAB file. Give the PyTorch or NumPy file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (
        b"\0\5\x16\7",
        "what macOS stores beside a file that it copies. Give the file without ._ before its name",
    ),
)
PATTERNS = (  # the same by a pattern
    (
        rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!|html|head|body|meta|title|script).*",
        "a web page, not the file behind its link. Download "
        "it again with the link of the download button, and open the page in a browser if it asks "
        "for consent",
    ),
    (rb"\s*<\?xml.*", "an XML text, mostly the error of a server. Download it again"),
    (rb".{4}TFL3.*", "a TensorFlow Lite file. Give the PyTorch or safetensors file"),
    (
        rb"\x08.{1,3}(pytorch|\x12).*|\x08.\x12.{0,40}(pytorch|onnx|tf2onnx|keras).*",
        "an ONNX file, whose names are lost. Give the PyTorch file that it was exported from",
    ),
    (
        rb"\(dp\d+\n.*",
        "a pickle of protocol 0, which is not read here. In Python, save its arrays with "
        "numpy.savez",
    ),
    (
        rb"model_checkpoint_path:.*",
        "the list of a TensorFlow checkpoint. Give the PyTorch or NumPy file of the same weights",
    ),
    (
        rb"\s*[{\[].*",
        "a JSON text, such as a network's config. Give the weights beside it",
    ),
    (rb"[\x09\x0a\x0d\x20-\x7e\x80-\xff]*", "a text. Download the file again"),
)
SUFFIXES = {
    ".onnx": "an ONNX file, whose names are lost. Give the PyTorch file that it was exported from",
    ".msgpack": "a file of Flax. Give the PyTorch or safetensors file of the same network",
    ".pb": "a TensorFlow graph. Give the PyTorch or safetensors file",
    ".index": "a part of a TensorFlow checkpoint. Give the PyTorch or NumPy file",
    ".meta": "a part of a TensorFlow checkpoint. Give the PyTorch or NumPy file",
    ".mlmodel": "a Core ML file. Give the PyTorch file that it was exported from",
}
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".pkl")


def file_type(path: Path, head: bytes, size: int) -> str:
    """What a file that is not read here is, and what to do, as a clause; "" if unknown."""
    quoted = shlex.quote(str(path))
    if head[:2] == b"PK":
        return _archive(path, zipfile.ZipFile, "namelist", f"unzip {quoted} -d unpacked")
    if head[257:262] == b"ustar":
        return _archive(path, tarfile.open, "getnames", f"tar -xf {quoted}")
    if re.fullmatch(r"\.data-\d+-of-\d+", path.suffix):
        return SUFFIXES[".index"]
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix]
    if head.startswith(GZIP) and zlib.decompressobj(31).decompress(head, HEAD)[257:262] == b"ustar":
        return f"a packed tar archive. Unpack it with tar -xzf {quoted}, then give the file in it"
    for start, what in FIRST_BYTES:
        if head.startswith(start):
            return what.replace("FILE", quoted)
    for pattern, what in PATTERNS:
        if re.fullmatch(pattern, head, re.DOTALL | re.IGNORECASE):
            return what
    return ""


def _archive(path, opener, listing, unpack):
    """A clause about a zip or tar archive, by what lies in it."""
    with opener(path) as file:
        names = file.namelist() if listing == "namelist" else file.getnames()
    if {"sys_info", "pickle", "storages"} <= set(names):
        return (
            "in PyTorch's tar format from before 2017. Save it again where PyTorch is: "
            f"torch.save(torch.load({str(path)!r}, weights_only=False), 'weights.pth')"
        )
    if {"archive_format", "serialized_exported_program.json"} & {Path(name).name for name in names}:
        return (
            "a program of torch.export. Where PyTorch is: "
            f"torch.save(dict(torch.export.load({str(path)!r}).state_dict), 'weights.pth')"
        )
    if "model.weights.h5" in names:
        return "a file of Keras. Give the PyTorch or safetensors file"
    weights = [name for name in names if Path(name).suffix in WEIGHTS and "._" not in name]
    if weights:
        return f"an archive that holds {weights[0]}. Unpack it with {unpack}, then give that file"
    return f"an archive without weights; it holds {', '.join(names[:3]) or 'nothing'}"


WAYS_OUT = (  # pattern of a name that a pickle asks for, and what to do
    (
        r"__torch__.*",
        "It is a TorchScript program. Where PyTorch is: "
        "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
    ),
    (
        r"torch\.storage\._load_from_bytes",
        "It was written by pickle. Where PyTorch is: "
        "torch.save(pickle.load(open(FILE, 'rb')), 'weights.pth')",
    ),
    (
        r".*(_rebuild_qtensor|\.Q\w+Storage|torch\.qu?int\d+|bitsandbytes).*",
        "It holds quantised numbers. Give the weights from before the quantisation",
    ),
    (
        r"torch\._utils\._rebuild_tensor_v3",
        "It holds numbers of a newer type, such as 8-bit floats. Where PyTorch is, save every "
        "tensor as tensor.float()",
    ),
    (
        r".*[Ss]torage.*|.*_rebuild_\w*tensor.*",
        "Where PyTorch is, save dense float32 tensors",
    ),
    (
        r"a tensor that is a negative or conjugate view",
        "Where PyTorch is, save every tensor as tensor.resolve_neg().resolve_conj()",
    ),
)
CODE = r"(torch\.nn|timm|torchvision|__main__|models?|networks?|src|ultralytics)\..*"
WHOLE_NETWORK = (
    "It is a whole network with its code. Where that code is: "
    "torch.save(torch.load(FILE, weights_only=False).state_dict(), 'weights.pth')"
)
OBJECT_IN_DICT = (
    "One of its entries is a whole network with its code, or another object of its program. Where "
    "that code is: torch.save(torch.load(FILE, weights_only=False)[KEY], 'weights.pth'), where KEY "
    "is the entry of the weights, such as 'state_dict'; write [KEY].state_dict() for a network"
)


def way_out(asked: str, path: Path, in_dict: bool) -> str:
    """A sentence for a pickle that asks for this name, with what to do; "" if unknown.

    in_dict  as of `Refused`
    """
    for pattern, sentence in (*WAYS_OUT, (CODE, OBJECT_IN_DICT if in_dict else WHOLE_NETWORK)):
        if re.fullmatch(pattern, asked):
            return f" {sentence.replace('FILE', repr(str(path)))}."
    return ""


# ---- folders -------------------------------------------------------------------------------------

USUAL = (  # files that hold the weights in a folder, the first that exists counts
    "model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors",
    "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "mp_rank_00_model_states.pt",
)  # fmt: skip
FOLDERS = (  # a pattern of the files, what such a folder is and what to do; FOLDER is its path
    (
        ".metadata",
        "a distributed checkpoint of PyTorch. Where PyTorch is: python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth",
    ),
    (
        "*zero_pp_rank_*_model_states.pt",
        "a DeepSpeed checkpoint whose parameters are split. Join "
        "them with the zero_to_fp32.py beside it, and give the file that it writes",
    ),
    (
        "data.pkl",
        "an unpacked PyTorch file. Pack it again beside itself, without compression: "
        '(cd FOLDER/.. && zip -0 -r weights.pth "$(basename FOLDER)")',
    ),
    ("saved_model.pb", "a TensorFlow model. Give the PyTorch or safetensors file"),
    ("*.index", "a TensorFlow checkpoint. Give the PyTorch or NumPy file"),
    (
        "_CHECKPOINT_METADATA",
        "a checkpoint of Orbax or of this package. A stage starts from it "
        "with --config.stages.STAGE.start=FOLDER, not as weights",
    ),
    ("*.msgpack", "a folder of Flax. Give the PyTorch or safetensors file"),
    (
        "model_0.pt*",
        "a folder of pixel classifiers of DDPM-Seg "
        "(python -m diffseg_jax.convert --source=ddpm_seg)",
    ),
)


def local_path(path: str | os.PathLike, what: str) -> Path:
    """A `Path` on this machine; UserError for an address, as `what` are not read from one."""
    if "://" in str(path):
        how = f", as with gcloud storage cp -r {path} ." if in_bucket(path) else "."
        raise UserError(
            f"{path} is an address, but {what} are read from this machine. Give a local copy{how}"
        )
    return open_path(path)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the arrays of a path: itself, shares of an index, or in a folder.

    Raises UserError for a folder without weights, or with several files that could be meant.
    """
    if path.suffix == ".distcp" or path.name == ".metadata":
        path = path.parent
    if path.is_dir():
        path = _file_in(path)
    if path.name.endswith(".index.json") and path.is_file():
        return _shares(path)
    return [path]


def _file_in(folder: Path) -> Path:
    latest = folder / "latest"  # of DeepSpeed
    if latest.is_file() and (folder / latest.read_text().strip()).is_dir():
        folder = folder / latest.read_text().strip()
    for name in USUAL:
        if (folder / name).is_file():
            return folder / name
    for pattern, what in FOLDERS:
        if any(folder.glob(pattern)) or any(folder.glob(f"*/{pattern}")):
            what = what.replace("FOLDER", shlex.quote(str(folder)))
            raise UserError(f"{folder} is a folder: {what}.")
    files = [file for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS]
    files = [file for file in files if not file.name.startswith(".")]
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:5])
        raise UserError(f"{folder} is a folder with several files: {names}. Give one of them.")
    raise UserError(f"{folder} is a folder without weights. Give the path of one checkpoint file.")


def _shares(index: Path) -> list[Path]:
    """The files that an index of Hugging Face names."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is no index of weights ({error}). Download it again.") from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{index} names {missing[0]}, which is not beside it ({len(missing)} of {len(files)} "
            "files are missing). Download it too."
        )
    return files
