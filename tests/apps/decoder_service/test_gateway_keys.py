"""Bearer tokens: who is let in, and files that cannot be used."""

import os
from pathlib import Path

import pytest

from flagsplit.apps.decoder_service.gateway_keys import ApiKeys
from flagsplit.errors import ConfigError

ANNA, BERT = "anna-0123456789abcdef", "bert-0123456789abcdef"


def keys_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_whose_token(tmp_path: Path) -> None:
    keys = ApiKeys(keys_file(tmp_path, f"# people\nanna {ANNA}\n\nbert {BERT}  # since May\nanna {ANNA}x\n"))
    assert [keys.client(token) for token in (ANNA, BERT, ANNA + "x", ANNA[:-1], "", "\udcff")] == [
        "anna",
        "bert",
        "anna",
        "",
        "",
        "",
    ]


def test_changes_count_at_once(tmp_path: Path) -> None:
    keys = ApiKeys(path := keys_file(tmp_path, f"anna {ANNA}\n"))
    path.write_text(f"bert {BERT}\n")
    os.utime(path, ns=(1, 1))
    assert (keys.client(ANNA), keys.client(BERT)) == ("", "bert")
    path.write_text("nonsense\n")
    os.utime(path, ns=(2, 2))
    for _ in range(2):
        with pytest.raises(ConfigError, match="expected NAME TOKEN"):
            keys.client(BERT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no tokens"),
        ("anna\n", "line 1: expected NAME TOKEN"),
        (f"anna {ANNA} more\n", "line 1: expected NAME TOKEN"),
        ("# a\nanna short\n", "line 2: a token needs at least 16 characters"),
        (f"anna {ANNA}\nbert {ANNA}\n", "line 2: the token belongs to someone else"),
        (f"an/na {ANNA}\n", "line 1: expected NAME TOKEN"),
        ("é" * (1 << 20), "at most 1048576 bytes"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ApiKeys(keys_file(tmp_path, text))


def test_a_file_that_others_can_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="others may read the tokens"):
        ApiKeys(keys_file(tmp_path, f"anna {ANNA}\n", 0o644))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the tokens"):
        ApiKeys(tmp_path / "none")
