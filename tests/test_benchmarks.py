"""The benchmark runs programs in turn, survives failures, and its rows name programs there are."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import jax
import pytest

import diffseg_jax
from diffseg_jax.errors import UserError

FOLDER = Path(__file__).parent / "benchmarks"
LINE = """
import json, sys

print("a note")
seconds = 0.25 if "--compile" in sys.argv else {seconds}
print(json.dumps(dict(first=3.0, seconds=[seconds, 2 * seconds, 3 * seconds], peak_rss_mb=2048,
                      rise_mb=1024, device="cpu", versions=dict(jax="9.9"), first_cpu=5.5)))
"""
FORMS = (  # sizes at which each form of bench_forms.py is chosen with the fixture `forms`
    ("pointwise", (1, 4, 4, 3, 5)), ("patches", (1, 2, 2, 8, 3)), ("filter_rows", (1, 5, 4, 2, 2)),
    ("row_gradient", (1, 2, 4, 2, 3)), ("blocks", (1, 5, 4, 2, 3)),
    ("kernel_gradient", (1, 4, 5, 2, 3, 3)), ("image_gradient", (1, 4, 5, 2, 3, 2)),
    ("stop_fusion", ("vit", 2, 1, 3, 8)), ("stop_fusion", ("convnext", 2, 1, 3, 4, 8)),
    ("enlarged", (1, 4, 4, 2, 3)), ("depthwise", (1, 5, 6, 4, 3)),
    ("depthwise_halved", (1, 6, 4, 4, 3)),
    ("finished", (1, 5, 6, 4, 3)), ("taps", (1, 5, 6, 4, 3)), ("pieces", (1, 4, 5, 8)),
    ("few_rows", (1, 2, 3, 8)), ("map_pieces", (4, 5, 8)), ("group_norm", (1, 4, 4, 8, 4)),
    ("gelu", (3, 4)), ("attend", (1, 5, 2, 4)), ("attend_windows", (2, 4, 2, 4)),
    ("by_rows", (1, 3, 2, 4, 5)), ("sample", (3, 4, 2, 2, 4)),
)  # fmt: skip
LINE_GIVEN = json.dumps(dict(first=3.0, seconds=[1.0], peak_rss_mb=2048, rise_mb=1, device="cpu"))


@pytest.fixture
def modules(monkeypatch):
    """The modules of the benchmark, which find each other as in its programs."""
    monkeypatch.syspath_prepend(FOLDER)
    import driver
    import rows
    import timing

    return driver, rows, timing


@pytest.fixture
def run(modules, tmp_path, monkeypatch):
    """A function that runs stand-in rows and returns both files."""
    driver, _, _ = modules

    def run(rows, *options, peaks=()):
        output = tmp_path / "output"
        monkeypatch.setattr(sys, "argv", ["x", f"--output={output}", "--no-compile", *options])
        monkeypatch.setattr(driver.importlib.util, "find_spec", lambda name: name)  # torch is there
        driver.main(rows, peaks)
        return json.loads((output / "benchmark.json").read_text()), (
            output / "benchmark.md"
        ).read_text()

    return run


@pytest.fixture
def stand_in(modules, tmp_path):
    """A function that makes a row whose programs are given as code."""
    _, rows, _ = modules

    def stand_in(name, here, torch="", seconds=1.0, **fields):
        def command(code, side):
            file = tmp_path / f"{name}_{side}.py"
            file.write_text(code)
            return (str(file),) if code else ()

        return rows.Row(
            name, "a stand-in", "contributing", command(here, "here"), command(torch, "torch"),
            {"cpu": seconds}, **fields,
        )  # fmt: skip

    return stand_in


def test_programs_alternate_and_are_compared(run, stand_in, capsys):
    peak = stand_in("product", LINE.format(seconds=1.0), flop=4e9)
    row = stand_in("sum", LINE.format(seconds=1.0), LINE.format(seconds=2.0), flop=2e9, bytes=6e9)
    found, page = run([row], "--rounds=2", peaks=(peak,))
    order = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": " in line]
    assert order[:6] == ["product, here", "sum, here", "sum, PyTorch"] * 2
    here, torch = found["summary"]["sum"]["here"], found["summary"]["sum"]["PyTorch"]
    assert (here["median"], here["min"], here["max"], here["rounds"]) == (2.0, 1.0, 3.0, 2)
    assert torch["ratio"] == 2.0
    assert here["flop_share"] == 2e9 / 2.0 / (4e9 / 1.0)  # the peak is of its fastest call
    assert here["bytes"] == 3e9
    assert found["machine"]["versions"] == {"jax": "9.9"}
    row_of = lambda name: next(line for line in page.splitlines() if f"| sum | {name} |" in line)
    assert "| 3 s (3 s) | 5.5 s |" in row_of("here")
    assert "2 s (1 s-3 s)" in row_of("here") and "| 1 G (25%) | 3 G |" in row_of("here")
    assert "| 2.00 |" in row_of("PyTorch") and "2.00 GB, +1.00" in row_of("PyTorch")


def test_what_fails_is_named_and_the_rest_goes_on(run, stand_in):
    fails = stand_in("fails", LINE.format(seconds=1.0), "raise SystemExit('no such kernel')")
    silent = stand_in("silent", "pass")
    last = stand_in("last", LINE.format(seconds=1.0))
    found, page = run([fails, silent, last], "--rounds=1")
    assert list(found["summary"]["fails"]) == ["here"]
    assert found["rows"]["fails"]["failed"] == {"PyTorch": "exit code 1: no such kernel"}
    assert found["summary"]["silent"] == {} and found["summary"]["last"]["here"]["calls"] == 3
    assert "- `silent`, here: exit code 0: it printed nothing" in page


@pytest.fixture
def each_takes(modules, monkeypatch):
    """each_takes(seconds): programs give a line at once, and a clock that only they move moves."""
    driver, now = modules[0], [0.0]

    def each_takes(seconds):
        def call(command, limit, scratch):
            now[0] += seconds
            return json.loads(LINE_GIVEN) | dict(load=0.0)

        monkeypatch.setattr(driver, "call", call)
        monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: now[0]))

    return each_takes


def test_rows_that_do_not_fit_are_skipped_and_said(run, stand_in, each_takes):
    each_takes(40)
    short, long = stand_in("short", "pass"), stand_in("long", "pass", seconds=10_000.0)
    found, page = run([long, short], "--rounds=1", "--minutes=1")
    assert found["skipped"] == {"long": "expected to take 10000 s, when 60 s were left"}
    assert "- `long`: expected" in page and found["summary"]["short"] and found["fewer"] == {}


def test_rounds_that_do_not_fit_are_said(run, stand_in, each_takes):
    each_takes(40)
    rows = [stand_in("first", "pass"), stand_in("second", "pass")]
    found, page = run(rows, "--rounds=3", "--minutes=2.5")  # both, and the first once more
    rounds = {name: each["here"]["rounds"] for name, each in found["summary"].items()}
    assert rounds == {"first": 2, "second": 1} and found["skipped"] == {}
    # 40 s less the 2 of the first call that are beyond the longest other
    why = "1 of 3 rounds; the next was expected to take 38 s, when 30 s were left"
    assert found["fewer"]["second"] == why and f"- `second`: {why}" in page
    assert found["fewer"]["first"].startswith("2 of 3 rounds")
    assert "| first | here | 2 |" in page and "| second | here | 1 |" in page


def test_all_pairs_come_before_other_programs(run, stand_in, each_takes, capsys):
    each_takes(40)
    alone = dict(compiles=False)
    rows = [
        stand_in("first", "pass", "pass", variants={"--threads=1": "1 thread"}, **alone),
        stand_in("second", "pass", "pass", seconds=20.0, variants={"--x": "x"}, **alone),
        stand_in("third", "pass", "pass", **alone),
    ]
    found, page = run(rows, "--compile", "--rounds=1", "--minutes=4.9")
    order = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": " in line]
    pairs = [f"{row.name}, {side}" for row in rows for side in ("here", "PyTorch")]
    assert order[:7] == [*pairs, "first, 1 thread"]
    assert list(found["skipped"]) == ["second, x"]
    assert "- `second, x`: expected to take 20 s, when 14 s were left" in page


def test_what_failed_counts_no_time_of_later_rounds(run, stand_in, each_takes, modules):
    each_takes(40)
    driver, call = modules[0], modules[0].call
    failing = lambda command, *rest: (
        call(command, *rest) | (dict(failed="x") if "_torch" in command[1] else {})
    )
    driver.call = failing  # `each_takes` restores it
    found, _ = run([stand_in("one", "pass", "pass")], "--rounds=2", "--minutes=2")
    assert found["summary"]["one"]["here"]["rounds"] == 2 and found["fewer"] == {}


def test_shares_are_of_a_product_of_the_same_precision(modules):
    driver, rows, _ = modules
    chosen = {row.name: row for row in rows.ROWS}
    peaks = lambda device, name: [
        peak.name for peak in driver.with_peaks([chosen[name]], rows.PEAKS, device)[:-1]
    ]
    assert peaks("gpu", "ensemble_heads") == ["product_exact_gpu"]
    assert peaks("cpu", "ensemble_heads") == ["product_cpu"] == peaks("cpu", "ddp_t_train")
    assert peaks("gpu", "dino_one") == ["product_gpu"]
    assert peaks("gpu", "adm_train_bf16") == ["product_bf16_gpu"]
    assert peaks("gpu", "bev_pool") == ["copy_gpu"]


def test_each_side_has_the_operations_that_it_makes(modules):
    driver, rows, _ = modules
    heads = next(row for row in rows.ROWS if row.name == "ensemble_heads")
    line = dict(first=2.0, seconds=[1.0])
    here, torch = (driver.summary(heads, name, [line])["flop"] for name in ("here", "PyTorch"))
    assert here == heads.flop < torch == heads.torch_flop


def test_a_machine_without_git_is_described(modules, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    about = modules[0].machine(SimpleNamespace(device="gpu"))
    assert (about["commit"], about["gpus"]) == ("", [])


def test_a_program_that_hangs_is_stopped(modules, tmp_path):
    found = modules[0].call([sys.executable, "-c", "import time; time.sleep(600)"], 0.2, tmp_path)
    assert found["failed"].startswith("stopped after 0 s")


def test_data_that_is_not_there_is_neither_drawn_nor_measured(run, stand_in, modules, tmp_path):
    with pytest.raises(SystemExit):
        run([stand_in("one", "pass")], f"--data={tmp_path}/camvld")
    import bench_input

    for scratch in ("", str(tmp_path / "other")):
        args = SimpleNamespace(data=str(tmp_path / "camvld"), scratch=scratch, workers=1)
        with pytest.raises(UserError, match="camvld"):
            bench_input.make_step(args)
    assert not (tmp_path / "camvld").exists()


def test_only_names_rows_by_their_start(run, stand_in, capsys):
    rows = [stand_in(name, LINE.format(seconds=1.0)) for name in ("adm_one", "adm_two", "ddp")]
    found, _ = run(rows, "--only=adm", "--rounds=1")
    assert list(found["summary"]) == ["adm_one", "adm_two"]
    with pytest.raises(SystemExit):
        run(rows, "--only=adn")
    assert "--only=adn starts no row of cpu: adm_one, adm_two, ddp" in capsys.readouterr().err


def test_a_real_program_is_timed(run, modules):
    _, rows, _ = modules
    row = rows.Row("tiny", "a product", "contributing",
                   ("bench_matmul.py", "--size=64", "--repeats=4", "--seconds=0"), (),
                   {"cpu": 20.0}, flop=2 * 64**3)  # fmt: skip
    found, _ = run([row], "--rounds=1")
    assert found["rows"]["tiny"]["failed"] == {}
    here = found["summary"]["tiny"]["here"]
    assert here["calls"] == 4 and 0 < here["min"] <= here["median"] < here["first"]
    assert here["host_mb"] > 50 and here["flop"] > 0
    assert {"jax", "jaxlib", "python"} <= set(found["machine"]["versions"])


def test_the_rows_have_programs_that_take_their_options(modules, monkeypatch):
    _, rows, timing = modules
    taken = []

    def parse(doc, whats, make, **options):
        taken.append(Path(sys.argv[0]).name)
        timing.arguments(doc, whats, options)

    monkeypatch.setattr(timing, "jax_program", parse)
    monkeypatch.setattr(timing, "torch_program", parse)
    without_torch(monkeypatch)
    commands = {command for row in (*rows.PEAKS, *rows.ROWS) for command in (row.here, row.torch)}
    commands = [command for command in commands if command]
    variants = {option for row in rows.ROWS for option in row.variants} - {"--workers=0"}
    for file, *options in commands:
        monkeypatch.setattr(sys, "argv", [file, *options, "--device=gpu", "--compile", *variants])
        runpy.run_path(str(FOLDER / file), run_name="__main__")
    assert taken == [file for file, *_ in commands]
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)


def test_programs_that_are_compiled_are_those_of_rows(modules, monkeypatch):
    import bench_compile

    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(bench_compile.timing, "jax_program", None)
    monkeypatch.setattr(bench_compile.runpy, "run_path", lambda file, run_name: (
        bench_compile.timing.jax_program(file, ("steps_3", "forward", "train"), call_of, batch=3)
    ))  # fmt: skip
    call_of = lambda args: SimpleNamespace(func=dict, args=())
    of_rows = [name for name, (_, make) in bench_compile.PROGRAMS.items() if "row" in make.__name__]
    for name in of_rows:
        assert bench_compile.of_row(name).func is dict
        row = next(row for row in bench_compile.ROWS if row.name == name)
        assert sys.argv == list(row.here)
    assert len(of_rows) == 3


def test_programs_are_counted_by_the_inputs_that_predict_gives_them(modules):
    import bench_compile

    segmenter = diffseg_jax.load("scenes")
    sizes = [bench_compile.inputs_for(segmenter, (96, width)) for width in (128, 130, 1280)]
    shapes = [{images.shape for (_, images, _), _ in given} for given in sizes]
    assert shapes == [{(1, 96, width, 3)} for width in (128, 130, 1280)]
    rounded = bench_compile.inputs_for(segmenter, (96, 130), round_to=128)
    assert [images.shape for (_, images, _), _ in rounded] == [(1, 128, 128, 3)]


@pytest.fixture
def forms(modules, monkeypatch):
    """The program of forms, which layers choose at tiny sizes too."""
    import bench_forms

    from diffseg_jax.layers import conv, pieces

    monkeypatch.setattr(conv, "MIN_WIDE", 0)
    monkeypatch.setattr(conv, "MIN_FILTERED", (0, 0))
    monkeypatch.setattr(conv, "MIN_FOLDED_RATIO", 0)
    monkeypatch.setattr(pieces, "ROWS", 4)
    monkeypatch.setattr(pieces, "MIN_ROWS", 16)
    return bench_forms


@pytest.mark.slow
@pytest.mark.parametrize(("form", "sizes"), FORMS)
def test_a_form_is_another_program_of_the_same_arithmetic(forms, form, sizes):
    gradients = any(with_gradients for name, _, with_gradients in forms.CASES if name == form)
    plain, ours, apart, is_same = forms.measure(form, sizes, gradients, 0)
    assert len(plain) == len(ours) == forms.LEAST and apart < 1e-5 and not is_same


def test_a_form_that_is_not_chosen_is_said(modules):
    import bench_forms

    case = "filter_rows", (1, 5, 4, 2, 2), False  # few channels
    found = bench_forms.measure(*case, 0)
    assert bench_forms.line(*case, *found).endswith(" 0.0e+00  same program")


def test_every_form_can_be_traced_with_and_without_it(forms):
    for form, sizes in FORMS:
        pair = forms.FORMS[form](*sizes)
        ours = jax.eval_shape(pair.ours, *pair.inputs)
        with pair.off:
            assert ours == jax.eval_shape(pair.plain, *(pair.plain_inputs or pair.inputs)), form


def test_every_form_has_published_sizes_and_a_line_of_its_docstring(forms, capsys, monkeypatch):
    names = {name for name, _ in FORMS}
    assert set(forms.FORMS) == names == {name for name, _, _ in forms.CASES}
    assert names <= set(re.findall(r"\w+", forms.__doc__.partition("layers/conv.py")[2]))
    monkeypatch.setattr(forms, "CASES", (("gelu", (3, 4), False), ("taps", (), False)))
    monkeypatch.setattr(sys, "argv", ["bench_forms.py", "--form=gelu", "--seconds=0"])
    forms.main()
    head, found = capsys.readouterr().out.splitlines()
    assert head.startswith("form ") and found.split()[:2] == ["gelu", "3x4"]
    assert not found.endswith("same program")
    monkeypatch.setattr(sys, "argv", ["bench_forms.py", "--form=gelo"])
    with pytest.raises(SystemExit, match="no form gelo. Known: pointwise"):
        forms.main()


def test_the_guide_of_a_row_names_its_command(modules):
    for row in (row for row in modules[1].ROWS if "cpu" in row.seconds):
        page = (FOLDER.parents[1] / ".docs" / f"{row.guide}.md").read_text()
        only = re.findall(r"python tests/benchmarks --only=([\w,]+)", page)
        starts = tuple(start for each in only for start in each.split(","))
        assert row.name.startswith(starts), f"{row.guide}.md names no --only=... of {row.name}"


def test_the_memory_of_a_command_is_taken_after_functions_that_there_are():
    source = (FOLDER / "bench_ensemble.py").read_text()
    watched = re.findall(r"watch\((\w+), \"(\w+)\"", source)
    rooms = {"fit_loop": "training"}
    assert len(watched) == 5
    for module, name in watched:
        full = f"diffseg_jax.{rooms.get(module, 'experiment')}.{module}"
        assert callable(getattr(importlib.import_module(full), name))


def test_strokes_shows_the_pairs_of_its_seeds(modules, tmp_path, monkeypatch, capsys):
    import strokes

    monkeypatch.setattr(strokes, "draw_plot", lambda rows, file: None)
    flags = ["strokes.py", "--data=none", f"--output={tmp_path}", "--show"]
    for seed, way in ((2, "uncertain"), (2, "random"), (10, "uncertain"), (3, "random")):
        row = dict(mIoU=seed + 0.5, strokes=9, pixels=900, held_out=1.0, ECE=0.1, AUROC=0.9)
        strokes.file_of(tmp_path, seed, way).write_text(json.dumps([row] * 6))
    for seeds, means in (("2,3,10", ["2.5 ± 0.0"] * 2), ("10", [])):
        monkeypatch.setattr(sys, "argv", [*flags, f"--seeds={seeds}"])
        strokes.main()
        said = capsys.readouterr().out
        assert re.findall(r"[\d.]+ ± [\d.]+", said) == means * 6
    assert "holds no finished fits of these seeds" in said


def test_forests_of_other_data_or_versions_are_not_shown_as_these(modules, tmp_path, monkeypatch):
    for name in ("skimage", "sklearn"):
        monkeypatch.setitem(sys.modules, name, stand_in := ModuleType(name))
        stand_in.__version__ = "1.0"
    import bench_forest

    output, made, rows = tmp_path / "forest.json", bench_forest.made_from("camvid"), [{"draw": 0}]
    assert bench_forest.read_rows(output, made) == []
    bench_forest.write_rows(output, rows, made)
    assert bench_forest.read_rows(output, made) == rows
    other = made | {"forest": {"n_estimators": 9}}
    newer = made | {"versions": {}}
    cases = (bench_forest.made_from("mine"), "data"), (other, "forest"), (newer, "versions")
    for changed, said in cases:
        with pytest.raises(SystemExit, match=f"holds forests of other {said}. Take another"):
            bench_forest.read_rows(output, changed)


def without_torch(monkeypatch):
    """A stand-in of PyTorch, which need not be installed: enough to define what programs define."""

    class Torch(ModuleType):
        def __getattr__(self, name):
            return type(name, (), {}) if name[0].isupper() else MagicMock()

    utils = ("torch.utils", "torch.utils.data", "torch.utils.checkpoint")
    for name in ("torch", "torch.nn", "torch.nn.functional", *utils):
        parent, _, last = name.rpartition(".")
        monkeypatch.setitem(sys.modules, name, module := Torch(name))
        if parent:
            setattr(sys.modules[parent], last, module)
