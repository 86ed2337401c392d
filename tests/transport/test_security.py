"""The key store: made safely, refused when others could tamper with it, read anew at each handshake."""

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

from flagsplit.errors import ConfigError
from flagsplit.transport.security import KeyStore, default_key_directory


def new_key() -> str:
    return zmq.curve_keypair()[0].decode()


def test_a_new_store_is_private_and_keeps_its_identity(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "a" / "keys")
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((store.directory / "identity.secret").stat().st_mode) == 0o600
    assert (store.directory / "identity.public").read_text().strip() == store.public_key
    again = KeyStore(store.directory)
    assert again.public_key == store.public_key
    assert store.security().secret_key not in repr(store.security())
    assert sorted(path.name for path in store.directory.iterdir()) == [
        "authorized",
        "identity.public",
        "identity.secret",
    ]


def test_a_new_identity_never_looks_like_an_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pairs = [pair for pair in (zmq.curve_keypair() for _ in range(99)) if not pair[0].startswith(b"-")][:2]
    monkeypatch.setattr(zmq, "curve_keypair", iter([(b"-" + pairs[0][0][1:], pairs[0][1]), pairs[1]]).__next__)
    store = KeyStore(tmp_path)
    assert (tmp_path / "identity.secret").read_text().strip() == pairs[1][1].decode()
    assert store.public_key == pairs[1][0].decode()


def test_first_starts_at_the_same_moment_agree(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def start() -> str:
        together.wait()
        return KeyStore(tmp_path / "keys").public_key

    with ThreadPoolExecutor(4) as pool:
        assert len({future.result() for future in [pool.submit(start) for _ in range(4)]}) == 1


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAGSPLIT_HOME", str(tmp_path))
    assert default_key_directory() == tmp_path / "keys"
    monkeypatch.delenv("FLAGSPLIT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_key_directory() == tmp_path / ".config" / "flagsplit" / "keys"


def test_a_store_that_others_can_read_or_change_is_refused(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    (tmp_path / "identity.secret").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyStore(tmp_path)
    (tmp_path / "identity.secret").chmod(0o600)
    (tmp_path / "authorized").chmod(0o777)
    with pytest.raises(ConfigError, match="chmod go-w"):
        KeyStore(tmp_path)
    (tmp_path / "authorized").chmod(0o700)
    assert KeyStore(tmp_path).public_key == store.public_key


def test_damaged_files_are_named(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    (tmp_path / "authorized" / "phone.public").write_text("not a key")
    with pytest.raises(ConfigError, match=r"phone\.public.*40 Z85 characters"):
        KeyStore(tmp_path)
    assert not store.is_authorized("not a key ")
    store.revoke("phone")
    (tmp_path / "known_servers").write_text("tcp://edge:1 nonsense\n")
    with pytest.raises(ConfigError, match="line 1"):
        store.server_key_for("tcp://edge:1")
    (tmp_path / "identity.secret").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"identity\.secret"):
        KeyStore(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="FLAGSPLIT_HOME"):
        KeyStore(blocked / "keys")


@pytest.mark.parametrize("name", ["identity.secret", "authorized/ann.public", "known_servers"])
@pytest.mark.parametrize("content", [b"\xe3\x28\xff " * 20, None])
def test_files_that_are_no_text_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    """Bytes that are no UTF-8, and a folder of that name, which cannot be read as a file by anybody."""
    store = KeyStore(tmp_path)
    file = tmp_path / name
    file.unlink(missing_ok=True)
    if content is None:
        file.mkdir(mode=0o700)
    else:
        file.write_bytes(content)
        file.chmod(0o600)
    with pytest.raises(ConfigError, match=name):
        KeyStore(tmp_path).known_servers()
    assert not store.is_authorized(new_key())


def test_a_public_key_that_was_damaged_is_written_again(tmp_path: Path) -> None:
    key = KeyStore(tmp_path).public_key
    (tmp_path / "identity.public").write_bytes(b"\xf3\x01")
    assert KeyStore(tmp_path).public_key == key
    assert (tmp_path / "identity.public").read_text() == key + "\n"


def test_authorize_and_revoke_count_at_once(tmp_path: Path) -> None:
    store, phone = KeyStore(tmp_path), new_key()
    assert store.is_authorized(store.public_key)
    assert not store.is_authorized(phone)
    store.authorize("phone", phone)
    assert store.is_authorized(phone)
    assert store.authorized() == {"phone": phone}
    store.revoke("phone")
    assert not store.is_authorized(phone)
    with pytest.raises(ConfigError, match="there are: none"):
        store.revoke("phone")
    for name in ("", "../phone", ".hidden", "a/b", "x" * 65):
        with pytest.raises(ConfigError, match="client name"):
            store.authorize(name, phone)
    with pytest.raises(ConfigError, match="40 Z85"):
        store.authorize("phone", "ü" * 40)


def test_servers_are_known_by_address_and_else_have_our_key(tmp_path: Path) -> None:
    store, key = KeyStore(tmp_path), new_key()
    assert store.server_key_for("tcp://edge:7000") == store.public_key
    store.trust("tcp://Edge:7000", key)
    store.trust("ipc:///run/with space.sock", key)
    assert store.server_key_for("tcp://edge:7000") == key
    assert store.server_key_for("tcp://edge:7001") == store.public_key
    assert KeyStore(tmp_path).server_key_for("ipc:///run/with space.sock") == key
    with pytest.raises(ConfigError, match="address"):
        store.trust("edge", key)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_without_permission_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="FLAGSPLIT_HOME"):
        KeyStore(tmp_path / "keys")


def test_admins_are_clients_with_one_right_more(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    keys = {name: zmq.curve_keypair()[0].decode() for name in ("ann", "bob")}
    store.authorize("ann", keys["ann"], admin=True)
    store.authorize("bob", keys["bob"])
    assert store.authorized() == keys
    assert store.admins() == ["ann"]
    assert [store.is_authorized(key) for key in keys.values()] == [True, True]
    assert [store.is_admin(keys["ann"]), store.is_admin(keys["bob"])] == [True, False]
    assert store.is_admin(store.public_key)
    assert not store.is_admin("")
    store.authorize("ann", keys["ann"])
    assert not store.is_admin(keys["ann"])
    store.authorize("bob", keys["bob"], admin=True)
    store.revoke("bob")
    assert not store.is_authorized(keys["bob"])
    assert store.authorized() == {"ann": keys["ann"]}
    with pytest.raises(ConfigError, match="not ending in"):
        store.authorize("bob.admin", keys["bob"])


def test_workers_are_clients_with_another_right(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    edge, phone, both = (new_key() for _ in range(3))
    store.authorize("edge", edge, worker=True)
    store.authorize("phone", phone)
    store.authorize("boss", both, admin=True, worker=True)
    assert store.authorized() == {"boss": both, "edge": edge, "phone": phone}
    assert (store.workers(), store.admins()) == (["boss", "edge"], ["boss"])
    assert [store.is_worker(key) for key in (edge, phone, both, "", store.public_key)] == [1, 0, 1, 0, 1]
    assert [store.is_admin(key) for key in (edge, phone, both, "", store.public_key)] == [0, 0, 1, 0, 1]
    assert all(map(store.is_authorized, (edge, phone, both)))
    store.authorize("edge", edge)
    assert not store.is_worker(edge)
    assert store.is_authorized(edge)
    store.authorize("boss", both, worker=True)
    assert (store.is_admin(both), store.is_worker(both)) == (False, True)
    store.revoke("boss")
    assert not store.is_authorized(both)
    assert not store.is_worker(both)
    with pytest.raises(ConfigError, match="not ending in"):
        store.authorize("boss.worker", both)


def test_rights_that_were_written_by_hand_count_in_any_order(tmp_path: Path) -> None:
    store, key = KeyStore(tmp_path / "keys"), new_key()
    (store.directory / "authorized" / "boss.worker.admin.public").write_text(key)
    assert (store.workers(), store.admins()) == (["boss"], ["boss"])
    store.authorize("boss", key)
    assert not store.is_worker(key)
    assert not store.is_admin(key)
