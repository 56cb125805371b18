"""Step variances and the steps that a shorter process keeps: recorded tables and identities."""

import re

import numpy as np
import pytest

from diffseg_jax.diffusion.process import Process
from diffseg_jax.diffusion.schedules import (
    BETAS,
    cosine_betas,
    kept_timesteps,
    linear_betas,
    respaced_betas,
)
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

OURS = {  # recorded name of a table -> ours, where they differ
    "posterior_log_variance_clipped": "posterior_log_variance",
    "posterior_mean_coef1": "posterior_mean_clean",
    "posterior_mean_coef2": "posterior_mean_noisy",
}


def matches(golden, pattern):
    """(match, value, its file's arrays) for every recorded key of a form; there must be one."""
    found = []
    for path in golden("adm/diffusion*.npz"):
        arrays = np.load(path)
        found += [(m, arrays[k], arrays) for k in arrays if (m := re.fullmatch(pattern, k))]
    assert found
    return found


@pytest.mark.golden
def test_recorded_tables(golden):
    """All tables but alphas_cumprod_next, which only the inverted DDIM step reads."""
    pattern = r"(linear|cosine)(\d+)__(?!alphas_cumprod_next)(\w+)"
    for match, recorded, _ in matches(golden, pattern):
        schedule, steps, name = match[1], int(match[2]), match[3]
        process = Process(BETAS[schedule](steps), tuple(range(steps)))
        table = getattr(process, OURS.get(name, name))
        assert table.dtype == np.float64 and table.shape == (steps,)
        np.testing.assert_allclose(table, recorded, rtol=1e-12, err_msg=match[0])


@pytest.mark.golden
def test_recorded_kept_steps(golden):
    for match, recorded, _ in matches(golden, r"space__(\d+)_(\w+)"):
        kept = kept_timesteps(int(match[1]), match[2].replace("_", ","))
        assert kept == tuple(recorded), match[0]


@pytest.mark.golden
def test_recorded_respaced_processes(golden):
    for match, _, arrays in matches(golden, r"(respaced_(\d+)_(\w+))__betas"):
        names = ("base_schedule", "timestep_map", "betas", "alphas_cumprod")
        schedule, kept, betas, alphas = (arrays[f"{match[1]}__{name}"] for name in names)
        found = kept_timesteps(int(match[2]), match[3].replace("_", ","))
        assert found == tuple(kept)
        ours = respaced_betas(BETAS[str(schedule)](int(match[2])), found)
        np.testing.assert_allclose(ours, betas, rtol=1e-12)
        np.testing.assert_allclose(Process(ours, found).alphas_cumprod, alphas, rtol=1e-12)


def test_linear_noise_levels_are_the_published_ones():
    alphas = np.cumprod(1 - linear_betas(1000))[[50, 150, 250, 999]]
    published = [0.9699514936, 0.7858870240, 0.5214230306, 4.0358e-5]
    np.testing.assert_allclose(alphas, published, rtol=1e-5)


@pytest.mark.parametrize("schedule", BETAS)
@pytest.mark.parametrize("steps", [1, 21, 100, 4000])
def test_variances_lie_between_zero_and_one_and_grow(schedule, steps):
    betas = BETAS[schedule](steps)
    assert betas.shape == (steps,) and betas.dtype == np.float64
    assert np.all(betas > 0) and np.all(betas < 1) and np.all(np.diff(betas) >= 0)


def test_cosine_levels_are_a_squared_cosine():
    level = lambda u: (
        np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.004 / 1.008 * np.pi) ** 2
    )
    alphas = np.cumprod(1 - cosine_betas(50))
    np.testing.assert_allclose(alphas[:-1], level(np.arange(1, 50) / 50), rtol=1e-10)
    assert cosine_betas(50)[-1] == 0.999


@pytest.mark.parametrize("steps", [2, 20])
def test_too_few_linear_steps_are_refused(steps):
    with pytest.raises(UserError, match=f"linear schedule of {steps} steps.*Use 21 steps or more"):
        linear_betas(steps)


@pytest.mark.parametrize("steps", [0, -3, 2.5, True, "10"])
def test_a_number_of_steps_that_is_no_positive_integer_is_refused(steps):
    for call in (linear_betas, cosine_betas, lambda steps: kept_timesteps(steps, "")):
        with pytest.raises(UserError, match="whole number from 1"):
            call(steps)


@pytest.mark.parametrize("steps, spec", [(7, ""), (7, "7"), (7, "4,3"), (7, "ddim7"), (1, "1")])
def test_all_steps_can_be_kept_in_several_ways(steps, spec):
    assert kept_timesteps(steps, spec) == tuple(range(steps))


@pytest.mark.parametrize(
    "steps, spec, kept",
    [
        (1000, "ddim25", tuple(range(0, 1000, 40))),
        (10, "ddim4", (0, 3, 6, 9)),
        (10, "ddim2", (0, 5)),  # the smallest stride, though 6 to 9 keep two as well
        (10, "ddim1", (0,)),
        (10, "1", (0,)),
        (10, "2", (0, 9)),
        (10, "3", (0, 4, 9)),  # 4.5 goes to the even neighbour
        (12, "3", (0, 6, 11)),
        (11, "2,2", (0, 5, 6, 10)),  # the first section is the longer one
        (11, "1,0,2", (0, 8, 10)),
        (10, " 2, 1 ", (0, 4, 5)),
    ],
)
def test_respacing_keeps_the_listed_steps(steps, spec, kept):
    assert kept_timesteps(steps, spec) == kept


@pytest.mark.parametrize("steps", [1, 5, 36, 97])
def test_every_count_keeps_so_many_from_first_to_last(steps):
    for count in range(1, steps + 1):
        kept = kept_timesteps(steps, str(count))
        assert len(kept) == count and kept == tuple(sorted(set(kept)))
        assert kept[0] == 0 and (count == 1 or kept[-1] == steps - 1)


@pytest.mark.parametrize(
    "steps, spec, sentence",
    [
        (1000, "ddim600", 'nearest possible is ddim500; "600"'),
        (100, "ddim35", "nearest possible is ddim34"),
        (10, "ddim11", 'nearest possible is ddim10; "10"'),
        (10, "ddim0", 'nearest possible is ddim1; "1"'),
        (10, "11", "11 of a section of 10. Ask for at most 10"),
        (10, "2,6", "6 of a section of 5. Ask for at most 5"),
        (2, "1,1,1", "1 of a section of 0"),
        (10, "0", "at least one"),
        (10, "ddim", "cannot be parsed"),
        (10, "ten", "cannot be parsed"),
        (10, "-3", "cannot be parsed"),
        (10, "2,,3", "cannot be parsed"),
        (10, "2.5", "cannot be parsed"),
    ],
)
def test_steps_that_cannot_be_kept_are_refused(steps, spec, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        kept_timesteps(steps, spec)


def test_a_named_neighbour_exists():
    for count in range(1, 60):
        try:
            assert len(kept_timesteps(40, f"ddim{count}")) == count
        except UserError as error:
            named = re.search(r"is (ddim(\d+))", str(error))
            assert len(kept_timesteps(40, named[1])) == int(named[2])


def test_dropped_steps_leave_the_noise_levels_of_the_kept_ones():
    betas, kept = cosine_betas(60), kept_timesteps(60, "3,4")
    levels = np.cumprod(1 - betas)[list(kept)]
    np.testing.assert_allclose(np.cumprod(1 - respaced_betas(betas, kept)), levels, rtol=1e-12)


@pytest.mark.parametrize("schedule", BETAS)
def test_keeping_all_steps_changes_nothing(schedule):
    betas = BETAS[schedule](100)
    np.testing.assert_allclose(respaced_betas(betas, tuple(range(100))), betas, rtol=1e-11)
