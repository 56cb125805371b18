"""hf:// without a network: checkpoints in the Hub of fake_hub.py, and what can go wrong there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import pytest

import fake_hub
from diffseg_jax import load
from diffseg_jax.errors import UserError
from diffseg_jax.storage import hub
from diffseg_jax.storage.networks import open_meta

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"  # a port that nobody listens at
SMALL = {"README.md": b"# streets", "a/b/c.txt": b"deep", "a/d.txt": b"flat", "ab/e.txt": b"near"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A Hub for this module, and a cache; the package reads where they are when it is imported."""
    if importlib.util.find_spec("huggingface_hub") is None:
        pytest.skip("huggingface_hub is not installed")
    with fake_hub.serve() as fake, pytest.MonkeyPatch.context() as patch:
        fake.environment["HF_HOME"] = str(tmp_path_factory.mktemp("hub"))
        for name, value in fake.environment.items():
            patch.setenv(name, value)
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            patch.delitem(sys.modules, name)
        yield fake
        for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            del sys.modules[name]


@pytest.fixture
def small(service, request):
    """A repository of four files for one test: its name."""
    name = f"anna/{request.node.name.partition('[')[0]}"
    service.store(name, SMALL)
    return name


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refusal(address):
    with pytest.raises(UserError) as caught:
        hub.fetch(address)
    return str(caught.value)


def test_a_checkpoint_arrives_as_it_left(service, tiny_run):
    service.store_folder("anna/streets", tiny_run.workdir)
    stage = tiny_run.workdir / "checkpoints/finetune"
    fetched = hub.fetch("hf://anna/streets/checkpoints/finetune")
    assert open_meta(fetched) == open_meta(stage)
    assert files_in(fetched) == files_in(stage)
    opened, left = load("hf://anna/streets/checkpoints/finetune"), load(stage)
    assert opened.names == left.names and opened.step == left.step
    chex.assert_trees_all_equal(opened.network, left.network)
    whole = hub.fetch("hf://anna/streets")
    assert files_in(whole) == files_in(tiny_run.workdir)


def test_a_folder_comes_alone(service, small):
    folder = hub.fetch(f"hf://{small}/a/")
    assert files_in(folder) == {"b/c.txt": b"deep", "d.txt": b"flat"}
    assert {path.name for path in folder.parent.iterdir()} == {"a"}
    service.store(small, {"[ab]/x": b"odd", "a/y": b"other"}, revision="odd")
    odd = hub.fetch(f"hf://{small}/[ab]@odd")
    assert files_in(odd.parent) == {"[ab]/x": b"odd"}


def test_a_revision_is_a_branch_a_tag_or_a_commit(service, small):
    older = service.store(small, {"a/d.txt": b"older"}, revision="v0.1")
    service.store(small, {"a/d.txt": b"asked for"}, revision="refs/pr/1")
    assert (hub.fetch(f"hf://{small}/a@v0.1") / "d.txt").read_bytes() == b"older"
    assert (hub.fetch(f"hf://{small}@refs/pr/1") / "a/d.txt").read_bytes() == b"asked for"
    assert hub.fetch(f"hf://{small}@{older}/").samefile(hub.fetch(f"hf://{small}@v0.1"))
    assert files_in(hub.fetch(f"hf://{small}")) == SMALL
    service.store(small, {"a/d.txt": b"newer"})
    assert files_in(hub.fetch(f"hf://{small}")) == {"a/d.txt": b"newer"}


def test_what_is_here_is_not_fetched_again(service, small):
    hub.fetch(f"hf://{small}/a")
    del service.requests[:]
    hub.fetch(f"hf://{small}/a")
    assert not [path for _, path in service.requests if "/resolve/" in path]
    service.failing(99)
    try:
        assert files_in(hub.fetch(f"hf://{small}/a")) == {"b/c.txt": b"deep", "d.txt": b"flat"}
        assert "not reachable" in refusal("hf://anna/streets_never_fetched")
    finally:
        service.failing(0)


def test_what_is_not_there_is_said(service, small):
    said = refusal(f"hf://{small}/checkpoints/train")
    assert f"repository {small} has no folder checkpoints/train at revision main" in said
    assert f"{service.environment['HF_ENDPOINT']}/{small}/tree/main" in said
    assert "has no folder README.md" in refusal(f"hf://{small}/README.md")
    assert "has no revision v9" in refusal(f"hf://{small}/a@v9")
    said = refusal("hf://anna/nothing/a")
    assert "no model repository anna/nothing" in said and "hf auth login" in said
    service.store("anna/empty", {})
    assert "anna/empty has no files" in refusal("hf://anna/empty")


def test_closed_repositories_want_a_login(service, monkeypatch):
    service.store("anna/mine", SMALL, closed="private")
    service.store("anna/ask", SMALL, closed="gated")
    assert "if it is private, log in by `hf auth login`" in refusal("hf://anna/mine/a")
    assert "anna/ask is gated: ask its owners" in refusal("hf://anna/ask/a")
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    for name in ("mine", "ask"):
        assert files_in(hub.fetch(f"hf://anna/{name}")) == SMALL


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://anna", "hf://anna/", "hf:///anna/a", "hf://anna/a@", "hf://anna/a@v1@v2",
     "hf://anna/a/../../b", "hf://anna/a/b//c", "hf://anna/a/./b", "hf://../a", "hf://anna/..",
     "hf://anna/a/..\\b", "hf://an na/a", "hf:anna/a", "hf://anna/a/\x1b[2J", "hf://anna/a--b..c",
     "hf://anna/a@../../b"],
)  # fmt: skip
def test_an_address_has_one_form(service, address):
    del service.requests[:]
    said = refusal(address)
    assert "hf://user/repository[/folder][@revision]" in said and "\x1b" not in said
    assert not service.requests


def test_the_package_may_be_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install "diffseg_jax[hf]"' in refusal("hf://anna/streets")


PROGRAM = """
import json, sys
from diffseg_jax.errors import UserError
from diffseg_jax.storage.hub import fetch
found = []
for address in sys.argv[1:]:
    try: found.append(str(fetch(address)))
    except UserError as error: found.append(f"error: {error}")
print(json.dumps(found))
"""


def test_without_network_the_cache_answers(service, small):
    def run(endpoint):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint}
        addresses = [f"hf://{small}/a", "hf://anna/elsewhere"]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *addresses], env=environment, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        return json.loads(done.stdout), done.stderr

    (fetched, unknown), err = run(service.environment["HF_ENDPOINT"])
    assert err == "" and "no model repository anna/elsewhere" in unknown
    (cached, unreachable), err = run(NOBODY)
    assert err == "" and cached == fetched and (Path(cached) / "d.txt").exists()
    assert "the Hub is not reachable, and no whole copy was found in the cache" in unreachable
