from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.config import (
    Settings,
    load_settings,
)
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
NOWHERE: Mapping[str, str] = {}


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "settings.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def refusal(**given: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(**{"environ": NOWHERE, **given})  # type: ignore[arg-type]  # as the test says
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value)


# --- sources -------------------------------------------------------------------------------------


def test_without_any_source_the_defaults_hold() -> None:
    assert load_settings(environ=NOWHERE) == Settings()


def test_the_constructor_reads_nothing_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API", '{"base_url": "https://elsewhere.example"}')
    monkeypatch.setenv("ORCHESTRATOR_API__BASE_URL", "https://elsewhere.example")
    Path(".env").write_text('API={"base_url": "https://elsewhere.example"}', "utf-8")
    assert Settings().api.base_url == "https://api.recoupable.com"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DEFAULTS__QUEUE", "night")
    assert load_settings().defaults.queue == "night"


def test_variables_override_the_file_and_flags_override_both(
    toml: Callable[[str], Path],
) -> None:
    settings = load_settings(
        toml("[worker]\nconcurrency = 1\nheartbeat = '1s'\npoll_interval = 2\n"),
        environ={
            "ORCHESTRATOR_WORKER__CONCURRENCY": "2",
            "ORCHESTRATOR_WORKER__HEARTBEAT": "2s",
        },
        overrides={"worker": {"concurrency": 3}},
    )
    worker = settings.worker
    assert (worker.concurrency, worker.heartbeat, worker.poll_interval) == (3, 2.0, 2.0)
    assert worker.dead_after == 60.0


def test_a_variable_that_says_the_default_still_overrides(toml: Callable[[str], Path]) -> None:
    path = toml("[submit]\nconcurrency = 1\n")
    environ = {"ORCHESTRATOR_SUBMIT__CONCURRENCY": "8"}
    assert load_settings(path, environ=environ).submit.concurrency == 8


def test_a_flag_that_is_none_was_not_given(toml: Callable[[str], Path]) -> None:
    path = toml("[submit]\nconcurrency = 1\n")
    overrides = {"submit": {"concurrency": None}}
    assert load_settings(path, environ=NOWHERE, overrides=overrides).submit.concurrency == 1


def test_an_empty_variable_takes_back_what_the_file_says(toml: Callable[[str], Path]) -> None:
    path = toml("[submit]\nmax_per_minute = 5\n[worker]\nqueues = ['a']\n")
    environ = {"ORCHESTRATOR_SUBMIT__MAX_PER_MINUTE": "", "ORCHESTRATOR_WORKER__QUEUES": ""}
    settings = load_settings(path, environ=environ)
    assert settings.submit.max_per_minute is None
    assert settings.worker.queues == ()


@pytest.mark.parametrize("text", ["a, b", '["a", "b"]', "a,b,"])
def test_lists_in_variables_are_words_or_json(text: str) -> None:
    settings = load_settings(environ={"ORCHESTRATOR_WORKER__QUEUES": text})
    assert settings.worker.queues == ("a", "b")


def test_the_search_for_the_file_ends_at_the_first_that_is_named(
    toml: Callable[[str], Path],
) -> None:
    def queue(path: Path | None, environ: Mapping[str, str]) -> str:
        return load_settings(path, environ=environ).defaults.queue

    flag = toml("[defaults]\nqueue = 'flag'\n")
    Path("variable.toml").write_text("[defaults]\nqueue = 'variable'\n", "utf-8")
    Path("orchestrator.toml").write_text("[defaults]\nqueue = 'here'\n", "utf-8")
    variable = {"ORCHESTRATOR_CONFIG": "variable.toml"}
    assert queue(flag, variable) == "flag"
    assert queue(None, variable) == "variable"
    assert queue(None, {"ORCHESTRATOR_CONFIG": ""}) == "here"


def test_a_named_file_must_exist() -> None:
    assert "file gone.toml does not exist" in refusal(path=Path("gone.toml"))
    said = refusal(environ={"ORCHESTRATOR_CONFIG": "gone.toml"})
    assert "gone.toml, which ORCHESTRATOR_CONFIG names, does not exist" in said


@pytest.mark.parametrize("content", [b"[worker\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert str(path) in refusal(path=path)


def test_a_directory_is_no_configuration_file(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(path=tmp_path)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf[log]\r\nlevel = 'DEBUG'\r\n")
    assert load_settings(path, environ=NOWHERE).log.level == "debug"


def test_settings_are_frozen() -> None:
    settings = load_settings(environ=NOWHERE)
    with pytest.raises(ValueError, match="frozen"):
        settings.worker.concurrency = 1  # type: ignore[misc]  # that is what is refused
    with pytest.raises(ValueError, match="frozen"):
        settings.worker = settings.worker  # type: ignore[misc]  # the same


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("[worker]\nconcurency = 1\n", "did you mean worker.concurrency?"),
        ("[folow]\n", "did you mean [follow]?"),
        ("[follow]\npoll_interval = 1\n", "did you mean worker.poll_interval?"),
        ("concurrency = 1\n", "did you mean worker.concurrency or submit.concurrency?"),
        ("worker = 1\n", "write it as a table, [worker]"),
        ("[generate]\nqqq = 1\n", "there are timeout"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known(
    toml: Callable[[str], Path], text: str, remedy: str
) -> None:
    path = toml(text)
    said = refusal(path=path)
    assert remedy in said
    assert str(path) in said


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ORCHESTRATOR_WORKER__CONCURENCY", "ORCHESTRATOR_WORKER__CONCURRENCY?"),
        ("ORCHESTRATOR_API_BASE_URL", "ORCHESTRATOR_API__BASE_URL?"),
        ("ORCHESTRATOR_worker__queues", "ORCHESTRATOR_WORKER__QUEUES?"),
        ("ORCHESTRATOR_X__Y__Z", "ORCHESTRATOR_"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known(name: str, remedy: str) -> None:
    said = refusal(environ={name: "5"})
    assert name in said
    assert remedy in said


def test_variables_of_others_are_left_alone() -> None:
    environ = {"ORCHESTRATOR_SERVICE_HOST": "10.0.0.1", "ORCHESTRATOR_PORT": "1", "WORKER__X": "1"}
    assert load_settings(environ=environ) == Settings()


def test_all_mistakes_are_listed_with_key_source_value_and_remedy(
    toml: Callable[[str], Path],
) -> None:
    path = toml("[follow]\nmode = 'sometimes'\n[nonsense]\n")
    said = refusal(
        path=path,
        environ={"ORCHESTRATOR_FOLLOW__POLL_MIN": "2m"},
        overrides={"worker": {"concurrency": 0}},
    ).splitlines()
    assert len(said) == 5
    assert f"follow.mode ({path}): \"sometimes\": Input should be 'auto', 'stream'" in said[-2]
    assert any(line.startswith("  worker.concurrency (given explicitly): 0: ") for line in said)
    assert "follow.poll_max (the default): 30.0: must not be shorter" in said[-1]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("worker", "concurrency", 0),
        ("worker", "concurrency", True),
        ("worker", "concurrency", "many"),
        ("worker", "queues", ["a", ""]),
        ("worker", "queues", ["a\x1b"]),
        ("worker", "queues", '["a"'),
        ("worker", "poll_interval", 0),
        ("worker", "drain_timeout", -1),
        ("worker", "dead_after", 20),
        ("submit", "timeout", 0),
        ("submit", "max_per_minute", 0),
        ("submit", "on_in_doubt", "retry"),
        ("follow", "trial_streams", -1),
        ("follow", "poll_max", 0.5),
        ("collect", "accept_finish", ["stopped"]),
        ("defaults", "queue", ""),
        ("defaults", "max_attempts", 0),
        ("log", "level", "loud"),
    ],
)
def test_values_out_of_range_are_refused(section: str, key: str, value: object) -> None:
    assert f"  {section}.{key}" in refusal(overrides={section: {key: value}})


def test_small_but_possible_values_are_taken() -> None:
    small: dict[str, dict[str, object]] = {
        "worker": {"heartbeat": 0.05, "dead_after": 0.2, "drain_timeout": 0},
        "submit": {"timeout": "100ms"},
        "follow": {"poll_min": 0.01, "poll_max": 0.01, "trial_streams": 0},
    }
    settings = load_settings(environ=NOWHERE, overrides=small)
    assert settings.submit.timeout == 0.1
    assert settings.follow.poll_max == 0.01


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://api.example.com/", "https://api.example.com"),
        ("HTTPS://API.Example.com", "https://api.example.com"),
        ("https://example.com/recoup//", "https://example.com/recoup"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.9:1/", "http://127.0.0.9:1"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_base_urls_are_brought_into_one_form(given: str, kept: str) -> None:
    settings = load_settings(environ={"ORCHESTRATOR_API__BASE_URL": given})
    assert settings.api.base_url == kept


@pytest.mark.parametrize(
    "value",
    [
        "", "api.example.com", "ftp://example.com", "https://", "https://exa mple.com",
        "http://example.com", "http://127.0.0.1.example.com", "http://localhost.example.com",
        "https://user:hunter2@example.com", "https://hunter2@example.com",
        "https://example.com?token=hunter2", "https://example.com#x", "https://example.com?",
        "https://example.com:99999", "https://[::1", "https://exämple.com",
        "http://localhost\\@example.com", "https://example.com\x00",
    ],
)  # fmt: skip
def test_unsafe_base_urls_are_refused_without_showing_secrets(value: str) -> None:
    said = refusal(environ={"ORCHESTRATOR_API__BASE_URL": value})
    assert "api.base_url (variable ORCHESTRATOR_API__BASE_URL)" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("sqlite:///jobs.db", "sqlite:///jobs.db"),
        ("sqlite:////var/lib/o/jobs.db", "sqlite:////var/lib/o/jobs.db"),
        ("postgres://u@h/d", "postgresql://u@h/d"),
        ("postgresql:///d?host=/run/pg", "postgresql:///d?host=/run/pg"),
    ],
)
def test_plain_database_urls_are_taken(given: str, kept: str) -> None:
    settings = load_settings(environ={"ORCHESTRATOR_DATABASE__URL": given})
    assert settings.database.url == kept


@pytest.mark.parametrize(
    "value",
    [
        "jobs.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://jobs.db",
        "mysql://u:hunter2@h/d", "postgresql+asyncpg://u:hunter2@h/d", "u:hunter2@h/d",
        "postgresql:/u:hunter2@h/d",
    ],
)  # fmt: skip
def test_other_databases_are_refused_without_showing_passwords(value: str) -> None:
    said = refusal(overrides={"database": {"url": value}})
    assert "database.url (given explicitly)" in said
    assert "hunter2" not in said


def test_passwords_do_not_show_in_the_settings() -> None:
    settings = load_settings(
        environ={
            "ORCHESTRATOR_DATABASE__URL": "postgresql://u:hunter2@h/d",
            "ORCHESTRATOR_API__PROXY": "http://u:hunter2@proxy:3128",
        }
    )
    shown = f"{settings!r} {settings} {settings.api!r} {settings.database} {[settings]}"
    assert "hunter2" not in shown
    assert "postgresql://u:***@h/d" in shown
    assert settings.database.url == "postgresql://u:hunter2@h/d"


def test_a_key_in_place_of_its_file_is_refused_and_not_shown() -> None:
    said = refusal(overrides={"api": {"api_key_file": "recoup_sk_secret"}})
    assert "RECOUP_API_KEY" in said
    assert "recoup_sk_secret" not in said


# --- the example ---------------------------------------------------------------------------------


def test_the_example_says_the_defaults() -> None:
    assert load_settings(EXAMPLE, environ=NOWHERE) == Settings()


def test_the_example_shows_every_key_in_its_section_and_unset_ones_in_comments() -> None:
    text = EXAMPLE.read_text("utf-8")
    live = tomllib.loads(text)
    everything = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    defaults = Settings().model_dump()
    assert {name: set(table) for name, table in everything.items()} == {
        name: set(table) for name, table in defaults.items()
    }
    for name, table in defaults.items():
        assert set(live[name]) == {key for key, value in table.items() if value is not None}


def test_the_examples_in_comments_are_valid_too(toml: Callable[[str], Path]) -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
    text = text.replace("sqlite:///orchestrator.db", "postgresql://pooler.example/name")
    settings = load_settings(toml(text), environ=NOWHERE)
    assert settings.submit.max_per_minute == 30
    assert settings.database.listen_url == "postgresql://user:password@host:5432/name"
    assert settings.defaults.model == "moonshotai/kimi-k3"


def test_a_url_to_listen_at_goes_with_postgresql_only() -> None:
    with pytest.raises(ConfigError, match=r"database\.listen_url.*pooler"):
        load_settings(environ={"ORCHESTRATOR_DATABASE__LISTEN_URL": "postgresql://host/name"})
