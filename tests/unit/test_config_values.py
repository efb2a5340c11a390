from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import KeySource, fingerprint, load_settings, parse_duration, safe_url
from orchestrator.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90.0),
        (0.5, 0.5),
        ("90", 90.0),
        ("1.5", 1.5),
        ("90s", 90.0),
        ("2h", 7_200.0),
        ("1h30m", 5_400.0),
        (" 1H 30m ", 5_400.0),
        ("500ms", 0.5),
        ("1m500ms", 60.5),
        ("1d12h", 129_600.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_seconds_or_numbers_with_units(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "", "  ", "s", "-1s", "1x", "30m1h", "1h1h", "1 2", "h1", "1_0", "٣s", "1e3", "inf", "nan",
        "1" * 400, "9999d", -1, math.nan, math.inf, 10**400, True, None, [1], b"1s",
    ],
)  # fmt: skip
def test_anything_else_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="1h30m"):
        parse_duration(value)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_duration_is_the_sum_of_its_parts(h: int, m: int, s: int, ms: int) -> None:
    total = parse_duration(f"{h}h{m}m{s}s{ms}ms")
    assert total == pytest.approx(h * 3600 + m * 60 + s + ms / 1000)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p@/x:y@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://h/d?user=u&password=p&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("sqlite:////home/me@work/jobs.db", "sqlite:////home/me@work/jobs.db"),
        ("https://token@h/d", "https://***@h/d"),
        ("https://h/recoup_sk_abc-1", "https://h/***"),
        ("u:p@h", "***@h"),
        ("https://h:1/d", "https://h:1/d"),
    ],
)
def test_safe_url_hides_what_is_secret(url: str, shown: str) -> None:
    assert safe_url(url) == shown


def test_the_variable_comes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("recoup_sk_file\n", "utf-8")
    settings = load_settings(environ={"ORCHESTRATOR_API__API_KEY_FILE": str(path)})
    both = settings.api.key_source({"RECOUP_API_KEY": " recoup_sk_variable\n"})
    assert both.read_key() == "recoup_sk_variable"
    assert settings.api.key_source({"RECOUP_API_KEY": " "}).read_key() == "recoup_sk_file"


def test_the_file_is_read_again_each_time(tmp_path: Path) -> None:
    path = tmp_path / "key"
    source = KeySource({}, path)
    path.write_text("recoup_sk_old\n", "utf-8")
    assert source.read_key() == "recoup_sk_old"
    path.write_text("  recoup_sk_rotated\r\n", "utf-8")
    assert source.read_key() == "recoup_sk_rotated"
    path.unlink()
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        source.read_key()


@pytest.mark.parametrize(
    "content",
    [b"", b" \n", b"a b", b"a\nb", b"a\x00b", "ä".encode(), b"\xff", b"x" * 5000 + b"\n y"],
)
def test_a_file_without_a_usable_key_is_named_but_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        KeySource({}, path).read_key()
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", ["", "recoup sk", "recoup_sk_\x7f", "recoup_sk_é"])
def test_a_bad_variable_is_named_but_not_shown(value: str) -> None:
    with pytest.raises(ConfigError, match="RECOUP_API_KEY") as caught:
        KeySource({"RECOUP_API_KEY": value}).read_key()
    assert not value or value not in str(caught.value)


def test_a_path_that_looks_like_a_key_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        KeySource({}, tmp_path / "recoup_sk_secret").read_key()
    assert "recoup_sk_secret" not in str(caught.value)


def test_a_key_source_shows_no_key() -> None:
    assert "recoup_sk_" not in repr(KeySource({"RECOUP_API_KEY": "recoup_sk_secret"}))


def test_fingerprints_tell_keys_apart() -> None:
    assert fingerprint("recoup_sk_a") == fingerprint("recoup_sk_a")
    assert fingerprint("recoup_sk_a") != fingerprint("recoup_sk_b")
    assert re.fullmatch("[0-9a-f]{12}", fingerprint("recoup_sk_a"))
