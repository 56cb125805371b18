"""Records what networks of timm, torchvision and transformers compute with random weights.

python record.py FOLDER [NAME ...]

Needs torch, timm and torchvision; `hugging_hybrid` needs transformers 4.46, the others any later
version. Of the weights only names and shapes are recorded: `draw` makes them from their names, and
the tests call it too.
"""

import functools
import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

SWIN = dict(channels=(4, 8, 16, 32), depths=(2, 1, 1, 1), heads=(1, 2, 2, 4), window=3)
CONVNEXT = dict(channels=(8, 12, 16, 20), depths=(1, 2, 1, 1))
HYBRID = dict(width=32, units=(2, 1, 1), hidden=32, layers=2, heads=4, mlp=48, grid=(4, 4))
DEEPLAB = dict(width=4, depths=(2, 1, 2, 1), classes=3)


def draw(name: str, shape) -> np.ndarray:
    """The weights f32 of an entry: kernels by their width, scales near 1, the rest small."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("running_var"):
        return np.exp(noise)
    if not name.endswith("weight"):
        return 0.3 * noise
    return noise / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1 + 0.3 * noise


def image(side: int) -> np.ndarray:
    """f32[1, side, side, 3]"""
    return np.random.default_rng(side).standard_normal((1, side, side, 3), np.float32)


# ---- models: (network, image side, name -> module whose output is recorded) ----------------------


def timm_swin():
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=96, embed_dim=SWIN["channels"][0], depths=SWIN["depths"],
        num_heads=SWIN["heads"], window_size=SWIN["window"], num_classes=3,
    )
    return model, 96, {f"stage{i}": layer for i, layer in enumerate(model.layers)}


def timm_convnext():
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(depths=CONVNEXT["depths"], dims=CONVNEXT["channels"], num_classes=3)
    return model, 64, {f"stage{i}": stage for i, stage in enumerate(model.stages)}


def torchvision_swin():
    from torchvision.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        [4, 4], SWIN["channels"][0], list(SWIN["depths"]), list(SWIN["heads"]),
        [SWIN["window"]] * 2, num_classes=3,
    )
    return model, 96, {f"stage{i}": model.features[2 * i + 1] for i in range(4)}


def torchvision_convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    channels = (*CONVNEXT["channels"], None)
    blocks = [CNBlockConfig(*c) for c in zip(channels, channels[1:], CONVNEXT["depths"])]
    model = ConvNeXt(blocks, num_classes=3)
    return model, 64, {f"stage{i}": model.features[2 * i + 1] for i in range(4)}


def torchvision_deeplab():
    from torch import nn
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.resnet import Bottleneck, ResNet
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

    width = DEEPLAB["width"]

    class Narrow(ResNet):
        def _make_layer(self, block, planes, *arguments, **options):
            self.inplanes = width if planes == 64 else self.inplanes
            return super()._make_layer(block, planes * width // 64, *arguments, **options)

    resnet = Narrow(
        Bottleneck, list(DEEPLAB["depths"]), replace_stride_with_dilation=[False, True, True]
    )
    resnet.conv1, resnet.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
    backbone = IntermediateLayerGetter(resnet, {"layer4": "out"})
    model = DeepLabV3(backbone, DeepLabHead(32 * width, DEEPLAB["classes"]))
    return model, 56, {"layer4": backbone.layer4, "logits": model.classifier, "enlarged": model}


def hugging_swin():
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=96, embed_dim=SWIN["channels"][0], depths=list(SWIN["depths"]),
        num_heads=list(SWIN["heads"]), window_size=SWIN["window"], num_labels=3,
    )
    model = SwinForImageClassification(config)
    return model, 96, {f"stage{i}": l.blocks[-1] for i, l in enumerate(model.swin.encoder.layers)}


def hugging_convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        hidden_sizes=list(CONVNEXT["channels"]), depths=list(CONVNEXT["depths"]), num_labels=3
    )
    model = ConvNextForImageClassification(config)
    stages = model.convnext.encoder.stages
    return model, 64, {f"stage{i}": stage for i, stage in enumerate(stages)}


def timm_hybrid():
    from timm.layers import StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import HybridEmbed
    from torch import nn

    width = HYBRID["width"]
    resnet = ResNetV2(
        HYBRID["units"], [4 * width, 8 * width, 16 * width], num_classes=0, global_pool="",
        preact=False, stem_type="same", stem_chs=width,
        conv_layer=functools.partial(StdConv2dSame, eps=1e-8),
    )
    model = VisionTransformer(
        img_size=64, patch_size=1, num_classes=3, embed_dim=HYBRID["hidden"],
        depth=HYBRID["layers"], num_heads=HYBRID["heads"],
        mlp_ratio=HYBRID["mlp"] / HYBRID["hidden"],
        act_layer=functools.partial(nn.GELU, approximate="tanh"),
        embed_layer=functools.partial(HybridEmbed, backbone=resnet),
    )
    parts = model.patch_embed, model.pos_embed, list(model.blocks), model.norm
    return WithoutToken(model, *parts), 64, {"block3": resnet.stages[2]}


def hugging_hybrid():
    from transformers import BitConfig
    from transformers.models.deprecated.vit_hybrid import (
        ViTHybridConfig,
        ViTHybridForImageClassification,
    )

    width = HYBRID["width"]
    resnet = BitConfig(
        embedding_size=width, hidden_sizes=[4 * width, 8 * width, 16 * width],
        depths=list(HYBRID["units"]), layer_type="bottleneck", global_padding="same",
        embedding_dynamic_padding=True, out_features=["stage3"],
    )
    config = ViTHybridConfig(
        backbone_config=resnet.to_dict(), backbone=None, image_size=64, patch_size=1,
        hidden_size=HYBRID["hidden"], num_hidden_layers=HYBRID["layers"], num_labels=3,
        num_attention_heads=HYBRID["heads"], intermediate_size=HYBRID["mlp"],
        hidden_act="gelu_new", layer_norm_eps=1e-6,
        backbone_featmap_shape=[1, 16 * width, *HYBRID["grid"]],
    )
    model = ViTHybridForImageClassification(config)
    vit = model.vit
    bit = vit.embeddings.patch_embeddings.backbone.bit
    parts = vit.embeddings.patch_embeddings, vit.embeddings.position_embeddings
    layers = [lambda x, layer=layer: layer(x)[0] for layer in vit.encoder.layer]
    return WithoutToken(model, *parts, layers, vit.layernorm), 64, {"block3": bit.encoder.stages[2]}


class WithoutToken:
    """A ViT as in TransUNet, without class token; GroupNorm's epsilon as in the ViT authors' code.

    The weights that these libraries publish were trained by that code, whose GELU is the tanh form.
    """

    def __init__(self, model, embed, positions, layers, norm):
        self.model, self.embed, self.positions = model, embed, positions
        self.layers, self.norm = layers, norm
        for module in model.modules():
            if type(module).__name__.startswith(("GroupNorm", "BitGroupNorm")):
                module.eps = 1e-6

    def __call__(self, x):
        x = self.embed(x) + self.positions[:, 1:]
        for layer in self.layers:
            x = layer(x)
        self.encoded = self.norm(x)


MODELS = {
    make.__name__: make
    for make in (
        timm_swin, timm_convnext, timm_hybrid, torchvision_swin, torchvision_convnext,
        torchvision_deeplab, hugging_swin, hugging_convnext, hugging_hybrid,
    )
}  # fmt: skip


# ---- recording -----------------------------------------------------------------------------------


def entries(model) -> dict:
    """Name -> array of a network's file, of transformers as `save_pretrained` writes it."""
    if not hasattr(model, "save_pretrained"):
        return model.state_dict()
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        return load_file(f"{folder}/model.safetensors")


def record(name: str, folder: Path):
    """Writes NAME.json (names, shapes, versions) and NAME.npz (outputs, made in float64)."""
    import torch

    call, side, recorded = MODELS[name]()
    model = getattr(call, "model", call).eval()
    found, outputs = entries(model), {}
    drawn = {
        key: torch.tensor(draw(key, tuple(array.shape)))
        for key, array in found.items() if array.is_floating_point()
    }  # fmt: skip
    if hasattr(model, "save_pretrained"):
        load_saved(model, drawn, found)
    else:
        model.load_state_dict({**found, **drawn})
    for key, module in recorded.items():
        module.register_forward_hook(functools.partial(keep, outputs, key))
    model.double()
    with torch.no_grad():
        call(torch.tensor(image(side)).double().permute(0, 3, 1, 2))
    if call is not model:
        outputs["encoded"] = call.encoded
    channels = SWIN["channels"] if "swin" in name else ()
    arrays = {key: np.float32(nhwc(array, channels)) for key, array in outputs.items()}
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    library = sys.modules[{"hugging": "transformers"}.get(name.split("_")[0], name.split("_")[0])]
    shapes = {key: [list(a.shape), str(a.dtype).split(".")[1]] for key, a in found.items()}
    about = {"versions": {m.__name__: m.__version__ for m in (torch, library)}, "side": side}
    (folder / f"{name}.json").write_text(json.dumps({**about, "entries": shapes}, indent=0))
    print(name, {key: array.shape for key, array in arrays.items()})


def load_saved(model, drawn, found):
    """Gives a network of transformers the drawn weights through a file, as a user would."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        save_file({**found, **drawn}, f"{folder}/model.safetensors", metadata={"format": "pt"})
        loaded = type(model).from_pretrained(folder)
    model.load_state_dict(loaded.state_dict())


def keep(outputs, key, module, inputs, output):
    output = output["out"] if isinstance(output, dict) else output
    outputs[key] = output[0] if isinstance(output, tuple) else output


def nhwc(array, channels=()):
    if array.ndim == 4 and array.shape[-1] not in channels:
        return array.permute(0, 2, 3, 1).contiguous()
    return array


if __name__ == "__main__":
    for name in sys.argv[2:] or [name for name in MODELS if name != "hugging_hybrid"]:
        record(name, Path(sys.argv[1]))
