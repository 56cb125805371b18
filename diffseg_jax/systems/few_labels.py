"""DDPM-Seg's second stage: pixel classifiers learn from the features of frozen networks.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section
4, with features of any source.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from diffseg_jax.config.options import FIT
from diffseg_jax.models.descriptor import image_descriptor
from diffseg_jax.models.pixel_mlp import HEAD_WIDTH, widths_for
from diffseg_jax.sources.diffusion import make_settings, noise_setting
from diffseg_jax.sources.feature_source import joined
from diffseg_jax.systems.feature_sources import FROM_STAGES, chosen_sources, source_names
from diffseg_jax.systems.pixel_ensemble import ensemble_maps, linear_probs, make_member
from diffseg_jax.systems.pixel_fit import PixelFit
from diffseg_jax.systems.recipes import PROBE, RECIPES
from diffseg_jax.systems.task import Task


def fit_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """Classifiers learn from the features of the sources in config.features.

    The network's tree is that of the sources, such as {"params": {"unet"}, "stats": {"noise"}} of
    "adm", to which the fit adds {"params": {"ensemble"}, "stats": {"ensemble", "probe"}}, the last
    unless config.ensemble.probe is False or the ensemble is linear itself.
    """
    features, options = config.features.to_dict(), config.ensemble
    source = joined(chosen_sources(config, crop))
    image = jax.ShapeDtypeStruct((1, *crop, 3), jnp.uint8)
    valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    network = jax.eval_shape(source.init, jax.random.key(0))
    maps = source.files.example if source.files else ()
    features_per_pixel = jax.eval_shape(source.extract, network, image, valid, *maps).width
    recipe = RECIPES[options.recipe]
    usual = {0: (), 1: (HEAD_WIDTH,), 2: widths_for(num_classes)}[recipe.layers]
    widths = tuple(options.widths) or usual
    member = make_member(features_per_pixel, num_classes, widths)
    meta = {
        "kind": kind,
        "features": features,
        "features_per_pixel": features_per_pixel,
        "widths": list(widths),
        "seed": config.seed,
        "size": list(crop),
        "normalisation": source.normalisation,
    }
    if set(source_names(features)) & set(FROM_STAGES):
        meta["model"] = dataclasses.asdict(make_settings(config.model))
        meta["diffusion"] = config.diffusion.to_dict()
    fit = PixelFit(
        source.extract, member, options.members, recipe, options.small_objects,
        on_host=features["place"] == "host", classifiers=options.classifiers, files=source.files,
        own_seeds=draws_fresh_noise(features),
    )  # fmt: skip
    if recipe.layers and options.get("probe", True):
        linear = make_member(features_per_pixel, num_classes, ())
        probe = dataclasses.replace(fit, member=linear, members=1, recipe=PROBE)
        fit = dataclasses.replace(fit, probe=probe)
    exact = config.copy_and_resolve_references()
    exact.features.dtype = "float32"  # a prediction stores no features
    extract = joined(chosen_sources(exact, crop)).extract
    predict = functools.partial(vote, extract, member, votes=recipe.votes, seed=config.seed)
    return Task(
        init=source.init,
        fit=fit,
        predict=predict,
        measured=functools.partial(predict, probed=True),
        features=source.named,
        short=source.short,
        meta=meta,
        recorded=_noise_of(config),
    )  # fmt: skip


def draws_fresh_noise(features: Mapping) -> bool:
    """Whether every copy of a training image has a noise of its own, and predictions another."""
    return "adm" in source_names(features) and noise_setting(features) == "fresh"


def _noise_of(config) -> dict:
    """What stands beside the results of a config that names its noise: {} of another one."""
    features = config.features.to_dict()
    if "noise" not in features or "adm" not in source_names(features):
        return {}
    fits = [stage for stage in config.stages.values() if stage.kind == FIT]
    copies = 1 + max(stage.augment.get("variants", 0) for stage in fits)
    fresh = {"copies": copies} if draws_fresh_noise(features) else {}
    return {"features": {"noise": noise_setting(features), **fresh}}


def features_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """No stage learns: the features of the sources in config.features can be read."""
    source = joined(chosen_sources(config, crop))
    return Task(
        init=source.init,
        features=source.named,
        short=source.short,
        meta={
            "kind": kind,
            "features": config.features.to_dict(),
            "size": list(crop),
            "normalisation": source.normalisation,
        },
    )


def vote(extract, member, values, images, valid, *maps, seed, votes=True, probed=False):
    """The maps of the ensemble, and "descriptor"; an image per device at a time to bound memory.

    votes   as of `Recipe`
    probed  whether there is a map "baseline" too, the probabilities of the linear probe, if one
            was fitted
    """
    ensemble = {part: values[part]["ensemble"] for part in ("params", "stats")}
    share = jax.local_device_count()
    share = 1 if len(images) % share else share

    def of_each_device(inputs):
        features = extract(values, *inputs, other_seed=seed)
        found = ensemble_maps(member, ensemble, features)
        found["descriptor"] = image_descriptor(
            features.maps, inputs[1], features.size, features.covered
        )  # fmt: skip
        if not votes:
            del found["votes"]
        if probed and "probe" in values["stats"]:
            found["baseline"] = linear_probs(values["stats"]["probe"], features)
        return found

    def in_turns(x):  # [B, ...] -> [B / share, share, ...]; a device keeps its neighbouring rows
        return x.reshape(share, -1, *x.shape[1:]).swapaxes(0, 1)

    voted = jax.lax.map(of_each_device, tuple(map(in_turns, (images, valid, *maps))))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(len(images), *x.shape[2:]), voted)
