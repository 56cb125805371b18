"""A page that is started again has the address of its last start."""

import contextlib

from diffseg_jax.server.page_address import ADDRESS_FILE, bound_as_before, keep_address


def test_a_second_start_has_the_port_and_the_token_of_the_first(tmp_path):
    bound, token = bound_as_before(tmp_path, "127.0.0.1", 0)
    with contextlib.closing(bound):
        port = bound.getsockname()[1]
        keep_address(tmp_path, port, token)
        other, same_token = bound_as_before(tmp_path, "127.0.0.1", 0)  # while the port is taken
        other.close()
        assert other is not bound and same_token == token
    again, same_token = bound_as_before(tmp_path, "127.0.0.1", 0)
    with contextlib.closing(again):
        assert again.getsockname()[1] == port and same_token == token
    assert (tmp_path / ADDRESS_FILE).stat().st_mode & 0o077 == 0


def test_a_file_that_holds_no_address_gives_a_new_one(tmp_path):
    tokens = set()
    for content in ("", "[]", '{"port": "80", "token": "short"}', '{"port": 80, "token": null}'):
        (tmp_path / ADDRESS_FILE).write_text(content)
        bound, token = bound_as_before(tmp_path, "127.0.0.1", 0)
        with contextlib.closing(bound):
            assert bound.getsockname()[1] > 80
        tokens.add(token)
    assert len(tokens) == 4 and all(len(token) == 32 for token in tokens)
