"""Diffusion: the loss of a batch, what is drawn, samples, what a stage takes over, whole runs."""

import functools
import json
import operator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict as flatten
from PIL import Image

from configs import tiny_ddpm
from diffseg_jax import main
from diffseg_jax.config.files import run_config
from diffseg_jax.config.schema import check_options
from diffseg_jax.diffusion import timesteps
from diffseg_jax.diffusion.process import TARGETS, make_process
from diffseg_jax.errors import UserError
from diffseg_jax.figures import layout
from diffseg_jax.sources.diffusion import make_network, make_settings
from diffseg_jax.storage.networks import open_network
from diffseg_jax.systems import ddpm_sampling, ddpm_seg, ddpm_seg_config
from diffseg_jax.training.state import new_state
from diffseg_jax.training.step import train_step

ROOT = Path(__file__).parents[2]
TINY = Path(tiny_ddpm.__file__)
# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)
T, ROWS, SIDE = 6, 24, 4
PROCESS = make_process("cosine", T)
OPTIONS = dict(target="noise", variance="learned", loss="hybrid", timesteps="uniform")
FIXED = OPTIONS | dict(variance="fixed_large", loss="simple")


def make_config(model=None, diffusion=None, **others):
    """The tiny config with other values."""
    config = tiny_ddpm.get_config()
    config.model.update(model or {})
    config.diffusion.update(diffusion or {})
    config.update(others)
    return config


@functools.cache
def image_batch():
    """A batch as the step hands it over."""
    image = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE, SIDE, 3)).astype(np.uint8)
    return {
        "image": jnp.asarray(image),
        "valid": jnp.full((ROWS, 2), SIDE),
        "row": jnp.arange(ROWS),
        "class": jnp.arange(ROWS) % 3,
    }


def scaled(image):
    return np.asarray(image, np.float32) / 127.5 - 1


def shown_to(output_of, num_classes=0):
    """A network that returns `output_of(x, t)`, and the list of its inputs."""
    seen = []

    def model(x, t, classes=None, key=None):
        seen.append(SimpleNamespace(x=x, t=t, classes=classes, key=key))
        return output_of(x, t), {}

    model.settings = SimpleNamespace(num_classes=num_classes)
    return SimpleNamespace(bind=lambda params, stats: model), seen


def loss_of(network, batch, options=FIXED, stats=None, key=KEY, params=None):
    return ddpm_seg.diffusion_loss(network, PROCESS, options, params, stats or {}, batch, key)


def noise_in(x, t, image):
    """The noise that brought the image to x."""
    alpha_bar = PROCESS.alphas_cumprod[np.asarray(t)][:, None, None, None]
    return (np.asarray(x) - np.sqrt(alpha_bar) * scaled(image)) / np.sqrt(1 - alpha_bar)


def drawn(key=KEY, stats=None):
    """(t, noise) that a loss with this key draws for every row."""
    network, seen = shown_to(lambda x, t: x)
    loss_of(network, image_batch(), stats=stats, key=key)
    return np.asarray(seen[0].t), noise_in(seen[0].x, seen[0].t, image_batch()["image"])


# --- the loss of a batch --------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_a_perfect_prediction_costs_nothing(target):
    image = scaled(image_batch()["image"])

    def output_of(x, t):
        alpha_bar = PROCESS.alphas_cumprod[np.asarray(t)][:, None, None, None]
        eps = noise_in(x, t, image_batch()["image"])
        velocity = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * image
        return jnp.asarray({"noise": eps, "image": image, "velocity": velocity}[target])

    loss, (weight, _, metrics) = loss_of(
        shown_to(output_of)[0], image_batch(), FIXED | {"target": target}
    )
    assert weight == ROWS and 0 <= loss < 1e-8 and metrics["mse"] == loss


def test_a_prediction_of_zero_costs_the_noise_itself():
    loss, (weight, _, _) = loss_of(shown_to(lambda x, t: 0 * x)[0], image_batch())
    t, eps = drawn()
    np.testing.assert_allclose(loss / weight, np.mean(eps**2), rtol=1e-4)


class Toy:
    """A network of a few numbers that reads everything: x, t and the class."""

    settings = SimpleNamespace(num_classes=3)
    params = {
        "gain": jnp.asarray([0.1, -0.2, 0.3, 0.4, -0.5, 0.6]),
        "time": jnp.linspace(-0.5, 0.5, T),
        "classes": jnp.asarray([0.2, -0.1, 0.4]),
    }

    def bind(self, params, stats):
        def model(x, t, classes=None, key=None):
            shift = params["time"][t] + (0 if classes is None else params["classes"][classes])
            return jnp.concatenate([x, x], -1) * params["gain"] + shift[:, None, None, None], {}

        model.settings = self.settings
        return model


toy_loss = functools.partial(ddpm_seg.diffusion_loss, Toy(), PROCESS, OPTIONS)
SGD, RATES = optax.sgd(0.01), (0.5, 0.9)


@functools.cache
def updates(accumulate, steps=3):
    """[(state, metrics)] after each of a few updates of the toy network."""
    step = quick(functools.partial(train_step, toy_loss, SGD, accumulate, RATES))
    network = {"params": Toy.params, "stats": timesteps.start("loss_second_moment", T)}
    state = new_state(network, lambda path: True, SGD, RATES)
    batch = {name: value for name, value in image_batch().items() if name != "row"}
    made = []
    for _ in range(steps):
        state, metrics = step(state, batch, KEY)
        made.append((state, metrics))
    return made


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_one_batch(parts):
    (once, together), (again, apart) = updates(1)[0], updates(parts)[0]
    for path, leaf in flatten({"params": once["params"], "ema": once["ema"]}).items():
        other = flatten({"params": again["params"], "ema": again["ema"]})[path]
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-7)
    assert together.keys() == apart.keys() >= {"loss", "mse", "vb", "grad_norm"}
    for name in together:
        np.testing.assert_allclose(together[name], apart[name], rtol=1e-5)
    assert not np.allclose(once["params"]["classes"], Toy.params["classes"], atol=1e-4)


def test_the_loss_is_a_sum_over_images_however_they_are_split():
    loss, split = quick(toy_loss), [1, 1, 1, ROWS - 3]
    whole, (_, _, metrics) = loss(Toy.params, {}, image_batch(), KEY)
    edges = np.cumsum([0, *split])
    parts = [
        loss(Toy.params, {}, jax.tree.map(operator.itemgetter(slice(a, b)), image_batch()), KEY)
        for a, b in zip(edges, edges[1:])
    ]
    assert [part[1][0] for part in parts] == split
    np.testing.assert_allclose(sum(part[0] for part in parts), whole, rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(
            sum(part[1][2][name] for part in parts), metrics[name], rtol=1e-5
        )


def test_dropout_differs_between_parts_of_a_batch():
    network, seen = shown_to(lambda x, t: x)
    for first in (0, ROWS):
        loss_of(network, image_batch() | {"row": first + image_batch()["row"]})
    first, second = (np.asarray(jax.random.key_data(each.key)) for each in seen)
    assert not np.array_equal(first, second)


def test_only_a_network_with_classes_is_told_them():
    for num_classes in (0, 3):
        network, seen = shown_to(lambda x, t: x, num_classes)
        loss_of(network, image_batch())
        if num_classes:
            np.testing.assert_array_equal(seen[0].classes, image_batch()["class"])
        else:
            assert seen[0].classes is None


# --- which timesteps ------------------------------------------------------------------------------


def test_every_row_and_step_draws_its_own_noise():
    (t, eps), again = drawn(), drawn()
    later, other = drawn(jax.random.fold_in(KEY, 1))
    np.testing.assert_array_equal(t, again[0])
    np.testing.assert_array_equal(eps, again[1])
    assert set(t) == set(range(T)) and np.mean(t == later) < 0.5
    flat, others = eps.reshape(ROWS, -1), other.reshape(ROWS, -1)
    assert np.max(np.corrcoef(flat) - np.eye(ROWS)) < 0.9  # rows
    assert np.max(np.abs(np.sum(flat * others, 1) / np.sum(flat**2, 1))) < 0.9  # steps
    assert abs(eps.mean()) < 0.1 and abs(eps.std() - 1) < 0.1


def test_a_row_draws_the_same_in_any_batch():
    network, seen = shown_to(lambda x, t: x)
    order = np.roll(np.arange(ROWS), 5)
    for rows in (np.arange(ROWS), order):
        loss_of(network, jax.tree.map(operator.itemgetter(rows), image_batch()))
    np.testing.assert_array_equal(seen[0].t[order], seen[1].t)
    np.testing.assert_allclose(seen[0].x[order], seen[1].x, atol=1e-6)


def history(loud):
    """A full history in which step `loud` has by far the largest loss."""
    losses = np.full((T, timesteps.HISTORY), 0.1, np.float32)
    losses[loud] = 1.0
    counts = jnp.full(T, timesteps.HISTORY, jnp.int32)
    return {"losses": jnp.asarray(losses), "counts": counts}


def test_the_history_of_losses_changes_what_is_drawn():
    for loud in (1, 4):
        t, _ = drawn(stats=history(loud))
        assert np.mean(t == loud) > 0.4
    fresh = timesteps.start("loss_second_moment", T)
    assert len(set(drawn(stats=fresh)[0])) == T  # uniform until every step has ten


def test_rare_steps_weigh_more():
    """The weights make the mean that of steps drawn evenly."""
    stats = history(2)
    t, eps = drawn(stats=stats)
    weights = 1 / (T * np.asarray(timesteps.probabilities(stats, T))[t])
    assert weights.max() > 5 * weights.min()
    network = shown_to(lambda x, t: 0 * x)[0]
    loss, (weight, _, metrics) = loss_of(network, image_batch(), stats=stats)
    errors = np.mean(eps**2, (1, 2, 3))
    np.testing.assert_allclose(loss, weights @ errors, rtol=1e-4)
    np.testing.assert_allclose(metrics["mse"], errors.sum(), rtol=1e-4)  # as it is, for the log
    assert weight == ROWS


@pytest.mark.parametrize("parts", [1, 4])
def test_the_state_keeps_the_loss_of_every_image(parts):
    for step, (state, metrics) in enumerate(updates(parts), 1):
        stats = jax.tree.map(np.asarray, state["stats"])
        assert stats["counts"].sum() == step * ROWS
        full = np.minimum(stats["counts"], timesteps.HISTORY)
        np.testing.assert_array_equal((stats["losses"] > 0).sum(1), full)
        if step == 1:
            np.testing.assert_allclose(stats["losses"].sum() / ROWS, metrics["loss"], rtol=1e-5)


# --- samples --------------------------------------------------------------------------------------


def generated(step=None, seed=0, indices=range(4), size=(6, 8), process=PROCESS, **options):
    step = step or (lambda params, x, index, keys, classes: x)  # the start itself
    return ddpm_sampling.sample_images(
        step, process, {}, seed=seed, indices=indices, size=size, **options
    )


def test_samples_of_any_seed_share_their_programs():
    compiled = ddpm_sampling._compiled
    programs = compiled(ddpm_sampling._begin, None, (0,)), compiled(ddpm_sampling._same, None)
    first = generated(seed=1)
    sizes = [program._cache_size() for program in programs]
    assert all(sizes) and not np.array_equal(first, generated(seed=2, indices=range(5, 9)))
    assert sizes == [program._cache_size() for program in programs]


def toy_step(sampler="ddim", eta=0.0):
    network = SimpleNamespace(bind=lambda params, stats: Toy().bind(Toy.params, stats))
    return quickly(ddpm_sampling.make_step(network, PROCESS, OPTIONS, sampler, eta))


def quickly(jitted):
    """The same compiled function, sooner."""
    return quick(jitted.__wrapped__, donate_argnums=1)


@pytest.mark.parametrize("sampler, eta", [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_an_image_depends_on_its_seed_and_index_alone(sampler, eta):
    """A byte may differ by one where another batch shape rounds float32 differently."""
    step = toy_step(sampler, eta)
    whole = generated(step).astype(int)
    assert whole.shape == (4, 6, 8, 3) and whole.std() > 10
    for indices in ([3, 1], range(2)):
        assert np.abs(generated(step, indices=indices) - whole[list(indices)]).max() <= 1
    assert len({image.tobytes() for image in whole}) == 4
    assert np.mean(generated(step, seed=1) != whole) > 0.5


def test_steps_are_taken_from_the_noisiest_to_the_first():
    taken = []

    def step(params, x, index, keys, classes):
        taken.append((int(index), None if classes is None else classes.tolist()))
        return x

    shown = []
    generated(step, classes=np.array([2, 0, 1, 1]), progress=lambda s: shown.append(len(s)) or s)
    assert taken == [(index, [2, 0, 1, 1]) for index in reversed(range(T))] and shown == [T]


def test_samples_are_noise_where_nothing_is_removed():
    start = generated(size=(32, 32)).astype(np.float64) / 127.5 - 1
    inside = np.mean(np.abs(start) < 0.5)  # 0.3829 of a normal distribution
    assert abs(inside - 0.383) < 0.02


def test_ddim_without_noise_is_decided_by_its_start():
    x = jax.random.normal(KEY, (2, 4, 4, 3))
    keys = [jax.random.split(jax.random.key(seed), 2) for seed in (1, 2)]
    classes, apart = jnp.array([0, 1]), {}
    for name, eta in (("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)):
        step = toy_step(name, eta)
        one, other = (step({}, jnp.copy(x), jnp.int32(3), key, classes) for key in keys)
        apart[name, eta] = float(jnp.max(jnp.abs(one - other)))
        last = [step({}, jnp.copy(x), jnp.int32(0), key, classes) for key in keys]
        np.testing.assert_array_equal(*last)  # no noise after the last step
    assert apart["ddim", 0.0] == 0
    assert apart["ddim", 0.7] > 0.1 and apart["ddpm", 0.0] > 0.1


@pytest.mark.parametrize("target, variance", [
    ("noise", "learned"), ("image", "fixed_large"), ("velocity", "fixed_small"),
])  # fmt: skip
def test_a_network_that_knows_the_image_samples_it(target, variance):
    """This holds for any noise, any sampler and any target of the network."""
    image = scaled(image_batch()["image"][:2])

    def output_of(x, t):
        alpha_bar = jnp.asarray(PROCESS.alphas_cumprod, jnp.float32)[t][:, None, None, None]
        eps = (x - jnp.sqrt(alpha_bar) * image) / jnp.sqrt(1 - alpha_bar)
        velocity = jnp.sqrt(alpha_bar) * eps - jnp.sqrt(1 - alpha_bar) * image
        mean = {"noise": eps, "image": jnp.broadcast_to(image, x.shape), "velocity": velocity}
        return jnp.concatenate([mean[target]] + [0 * x] * (variance == "learned"), -1)

    options = OPTIONS | dict(target=target, variance=variance)
    for sampler in ddpm_sampling.SAMPLERS:
        network = shown_to(output_of)[0]
        step = quickly(ddpm_sampling.make_step(network, PROCESS, options, sampler, 0.0))
        made = generated(step, indices=range(2), size=(SIDE, SIDE)).astype(int)
        assert np.abs(made - np.asarray(image_batch()["image"][:2])).max() <= 1


def test_the_network_is_told_the_names_of_the_steps_that_were_kept():
    kept = make_process("cosine", T, "ddim3", rescale_timesteps=True)
    network, seen = shown_to(lambda x, t: x)
    step = ddpm_sampling.make_step(network, kept, FIXED, "ddim", 0.0).__wrapped__  # not compiled
    generated(step, process=kept, indices=[0])
    np.testing.assert_allclose(
        [float(each.t[0]) for each in seen], np.array([4, 2, 0]) * 1000 / T, rtol=1e-6
    )


# --- tasks, and where a stage starts --------------------------------------------------------------


@functools.cache
def task_of(**model):
    config = make_config(model)
    return ddpm_seg_config.make_task(config, "pretrain", (16, 16), config.model.num_classes)


@functools.cache
def shapes_of(**model):
    """Shapes of the network of `task_of`."""
    return jax.eval_shape(task_of(**model).init, KEY)


def filled(tree, seed=0):
    """Small random values of these shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: 0.05 * rng.standard_normal(s.shape, np.float32), tree)


def test_a_checkpoint_tells_how_to_make_its_network():
    task = task_of(num_classes=3)
    meta = json.loads(json.dumps(task.meta))
    assert meta["kind"] == "pretrain" and meta["size"] == [16, 16]
    assert meta["diffusion"] == make_config().diffusion.to_dict()
    network = make_network(make_settings(meta["model"]), "float32", False)
    shape = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shape(network.abstract["params"]) == shape(shapes_of(num_classes=3)["params"])
    assert task.predict is None and task.denoise is None and task.sample is not None
    samples = make_config().samples
    assert (samples.images, samples.steps, task.passes) == (3, "ddim4", 12)
    assert task.trainable(("head", "kernel"))


@pytest.mark.parametrize("kind", timesteps.TIMESTEP_SAMPLERS)
def test_the_history_of_losses_is_part_of_the_state(kind):
    config = make_config(diffusion=dict(timesteps=kind))
    task = ddpm_seg_config.make_task(config, "pretrain", (16, 16), 0)
    stats = jax.eval_shape(task.init, KEY)["stats"]
    assert set(stats) == (set() if kind == "uniform" else {"losses", "counts"})


def test_a_stage_takes_over_parameters_and_no_history():
    task = task_of()
    previous = {"params": filled(shapes_of()["params"]), "stats": history(1)}
    taken = ddpm_seg_config.adopt(shapes_of(), task, previous, task.meta)
    assert taken.keys() == {"params"} and taken["params"] is previous["params"]


@pytest.mark.parametrize("other", [
    dict(channels=64), dict(res_blocks=2), dict(learn_sigma=False), dict(num_classes=3),
    dict(scale_shift=False),
], ids=str)  # fmt: skip
def test_another_network_is_refused(other):
    """In both directions: a network with more parts holds everything that is wanted here."""
    for here, there in (({}, other), (other, {})):
        task, previous = task_of(**here), {"params": filled(shapes_of(**there)["params"])}
        with pytest.raises(UserError, match=r"another network: .*params\..*same model settings"):
            ddpm_seg_config.adopt(shapes_of(**here), task, previous, task_of(**there).meta)


@pytest.mark.parametrize("wanted, given, parts", [
    (3, 0, ["num_classes is 3", "no classes", "--config.model.num_classes=0", "name the classes"]),
    (3, 5, ["num_classes is 3", "have 5 classes", "Try --config.model.num_classes=5,"]),
    (0, 5, ["num_classes is 0", "have 5 classes", "whose options name no classes"]),
])  # fmt: skip
def test_classes_that_the_images_do_not_have_are_refused(wanted, given, parts):
    with pytest.raises(UserError) as error:
        config = make_config(dict(num_classes=wanted))
        ddpm_seg_config.make_task(config, "pretrain", (16, 16), given)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("file", [TINY, ROOT / "configs/ddpm_camvid.py"], ids=lambda f: f.stem)
def test_the_configs_hold_valid_options(file):
    config = run_config(str(file))
    ddpm_seg_config.check(config)
    values = config.to_dict()
    check_options({name: values[name] for name in ddpm_seg_config.OPTIONS}, ddpm_seg_config.OPTIONS)


# --- a whole run ----------------------------------------------------------------------------------


@pytest.fixture
def run(diffusion_run):
    return diffusion_run


def test_a_run_without_labels_leaves_what_a_reader_needs(run):
    assert run.err == ""
    config = json.loads((run.workdir / "config.json").read_text())
    assert not {"data", "evaluate"} & config.keys()
    assert not (run.workdir / "results.json").exists()
    assert "-m diffseg_jax.sample --checkpoint=" in run.out.splitlines()[-1]
    lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    for record in records:  # hybrid: both parts, added up
        np.testing.assert_allclose(record["loss"], record["mse"] + record["vb"], rtol=1e-4)
    _, meta = open_network(run.workdir / "checkpoints/pretrain")
    assert meta["ema"] == [0.5, 0.9] and meta["task"]["size"] == [16, 16] and meta["step"] == 8


def test_the_sheet_shows_samples_of_the_first_moving_average(run):
    """Bytes may differ by 1, because programs compiled apart may round differently."""
    with Image.open(run.workdir / "pictures/pretrain_000008.png") as file:
        shown = np.asarray(file).astype(int)
    assert (run.workdir / "pictures/pretrain_000004.png").exists()
    config = make_config()
    process = make_process("cosine", config.diffusion.steps, config.samples.steps)
    network = make_network(make_settings(config.model), "float32", False)
    made = ddpm_sampling.make_step(network, process, config.diffusion.to_dict(), "ddim", 0.0)
    step, apart = quickly(made), {}
    for rate in (0.5, 0.9, "off"):
        values, _ = open_network(run.workdir / "checkpoints/pretrain", ema=rate)
        images = ddpm_sampling.sample_images(
            step, process, values["params"], seed=config.seed, indices=range(3), size=(16, 16)
        )
        apart[rate] = np.abs(layout.grid(images).astype(int) - shown).max()
    assert apart[0.5] <= 1 and apart[0.9] > 1 and apart["off"] > 1


def test_evaluation_says_that_there_is_nothing_to_evaluate(run):
    with pytest.raises(UserError, match="labels.*diffseg_jax.sample"):
        main.MODES["eval"](make_config(), run.workdir)


def test_check_shows_the_cropped_squares(tmp_path, capsys):
    main.MODES["check"](make_config(), tmp_path / "run")
    printed = capsys.readouterr()
    assert "16 x 16 (10)" in printed.out and printed.err == ""
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "check_unlabelled.png", "check_unlabelled_changed.png",
    ]  # fmt: skip
