"""A page that is started again has the address of its last start."""

import contextlib
import shutil

import pytest

from diffseg_jax.server.listening import bound_socket
from diffseg_jax.server.page_address import (
    ADDRESS_FILE,
    bound_as_before,
    keep_address,
    write_for_owner,
)


def test_a_second_start_has_the_port_and_the_token_of_the_first(tmp_path):
    bound, token = bound_as_before(tmp_path, "127.0.0.1", 0)
    with contextlib.closing(bound):
        bound.listen()
        port = bound.getsockname()[1]
        keep_address(tmp_path, port, token)
        other, other_token = bound_as_before(tmp_path, "127.0.0.1", 0)  # while the port is taken
        other.close()
        assert other is not bound and other_token != token  # a tab tells it to who has the port
    again, same_token = bound_as_before(tmp_path, "127.0.0.1", 0)
    with contextlib.closing(again):
        assert again.getsockname()[1] == port and same_token == token
    named, same_token = bound_as_before(tmp_path, "127.0.0.1", port)
    named.close()
    assert same_token == token
    assert (tmp_path / ADDRESS_FILE).stat().st_mode & 0o077 == 0


def test_a_file_that_holds_no_address_gives_a_new_one(tmp_path):
    tokens = set()
    for content in ("", "[]", '{"port": "80", "token": "short"}', '{"port": 80, "token": null}'):
        write_for_owner(tmp_path / ADDRESS_FILE, content)
        bound, token = bound_as_before(tmp_path, "127.0.0.1", 0)
        with contextlib.closing(bound):
            assert bound.getsockname()[1] > 80
        tokens.add(token)
    assert len(tokens) == 4 and all(len(token) == 32 for token in tokens)


def token_in(folder):
    bound, token = bound_as_before(folder, "127.0.0.1", 0)
    bound.close()
    return token


@pytest.mark.parametrize("how", ["readable", "copied", "a link"])
def test_a_token_that_others_may_know_is_not_used_again(tmp_path, how):
    """A copy of the folder has the token of the one who made it."""
    folder, token = tmp_path / "annotated", "t" * 32
    folder.mkdir()
    with contextlib.closing(bound_socket("127.0.0.1", 0)) as free:
        keep_address(folder, free.getsockname()[1], token)
    assert token_in(folder) == token
    if how == "readable":
        (folder / ADDRESS_FILE).chmod(0o644)
    elif how == "copied":
        folder = shutil.copytree(folder, tmp_path / "copy")
        assert (folder / ADDRESS_FILE).stat().st_mode & 0o777 == 0o600
    else:
        (folder / ADDRESS_FILE).rename(folder / "other.json")
        (folder / ADDRESS_FILE).symlink_to(folder / "other.json")
    assert token_in(folder) != token
