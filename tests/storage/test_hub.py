"""hf:// without a network: checkpoints in the Hub of fake_hub.py, and its errors."""

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
from diffseg_jax.inference import sharing
from diffseg_jax.inference.sharing import copy_to, prepare_copy
from diffseg_jax.storage import hub
from diffseg_jax.storage.networks import open_meta

ROOT = Path(__file__).parents[2]
UNREACHABLE = "http://127.0.0.1:9"  # a port without a listener
SMALL = {"README.md": b"# streets", "a/b/c.txt": b"deep", "a/d.txt": b"flat", "ab/e.txt": b"near"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A Hub and a cache for this module; huggingface_hub reads their addresses at import."""
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
    """The name of a repository of four files for one test."""
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


def test_a_fetched_checkpoint_equals_the_uploaded_one(service, tiny_run):
    service.store_folder("anna/streets", tiny_run.workdir)
    stage = tiny_run.workdir / "checkpoints/finetune"
    fetched = hub.fetch("hf://anna/streets/checkpoints/finetune")
    assert open_meta(fetched) == open_meta(stage)
    assert files_in(fetched) == files_in(stage)
    downloaded, uploaded = load("hf://anna/streets/checkpoints/finetune"), load(stage)
    assert downloaded.names == uploaded.names and downloaded.step == uploaded.step
    chex.assert_trees_all_equal(downloaded.network, uploaded.network)
    repository = hub.fetch("hf://anna/streets")
    assert files_in(repository) == files_in(tiny_run.workdir)


def test_an_uploaded_run_is_private_and_loaded_again(service, tiny_run, tmp_path, monkeypatch):
    prepare_copy(tiny_run.workdir, "hf://anna/shared", tmp_path / "copy")
    with pytest.raises(UserError, match="may not write to anna/shared. Log in"):
        copy_to("hf://anna/shared", tmp_path / "copy")
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    assert copy_to("hf://anna/shared", tmp_path / "copy").endswith("anna/shared")
    assert 'load("hf://anna/shared")' in (tmp_path / "copy/README.md").read_text()
    assert service.closed["anna/shared"] == "private" and len(service.commits["anna/shared"]) == 1
    uploaded = load("hf://anna/shared")
    chex.assert_trees_all_equal(uploaded.network, load(tiny_run.workdir).network)


def test_an_upload_removes_what_an_earlier_one_wrote_and_nothing_else(service, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    old = {"20000/state/x": b"old", "pictures/a.png": b"old", "notes.md": b"mine"}
    service.store("anna/again", old, closed="private")
    hub.upload("hf://anna/again", {"800/state/x": b"new"}, sharing.is_of_a_copy)
    assert files_in(hub.fetch("hf://anna/again")) == {"800/state/x": b"new", "notes.md": b"mine"}


def test_only_the_requested_folder_is_fetched(service, small):
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


def test_cached_files_are_not_fetched_again(service, small):
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


def test_errors_name_what_is_missing(service, small):
    message = refusal(f"hf://{small}/checkpoints/train")
    assert f"repository {small} has no folder checkpoints/train at revision main" in message
    assert f"{service.environment['HF_ENDPOINT']}/{small}/tree/main" in message
    assert "has no folder README.md" in refusal(f"hf://{small}/README.md")
    assert "has no revision v9" in refusal(f"hf://{small}/a@v9")
    message = refusal("hf://anna/nothing/a")
    assert "no model repository anna/nothing" in message and "hf auth login" in message
    service.store("anna/empty", {})
    assert "anna/empty has no files" in refusal("hf://anna/empty")


def test_closed_repositories_require_a_login(service, monkeypatch):
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
def test_a_malformed_address_is_refused_without_a_request(service, address):
    del service.requests[:]
    message = refusal(address)
    assert "hf://user/repository[/folder][@revision]" in message and "\x1b" not in message
    assert not service.requests


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
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


def test_without_a_network_the_cache_is_used(service, small):
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
    (cached, unreachable), err = run(UNREACHABLE)
    assert err == "" and cached == fetched and (Path(cached) / "d.txt").exists()
    assert "the Hub is not reachable, and no complete copy was found in the cache" in unreachable
