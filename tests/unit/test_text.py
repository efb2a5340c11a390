from __future__ import annotations

import io
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from orchestrator.cli.text import console, foreign
from orchestrator.printable import never_raise, printable, redacted

EVERYTHING = [chr(code) for code in range(sys.maxunicode + 1)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\nc\td\x00\x7f", r"a\rb\nc\td\x00\x7f"),
        ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
        ("\u2066\u2069\u061c\u200e\u200f", r"\u2066\u2069\u061c\u200e\u200f"),
        ("pass\u200bword\ufeff\xad", r"pass\u200bword\ufeff\xad"),
        ("a\u2028b\u2029c\x85", r"a\u2028b\u2029c\x85"),
        ("\ud800x\udfff", r"\ud800x\udfff"),
        ("\ue000\ufffe\ufdd0\U000f0000\U0001fffe", r"\ue000\ufffe\ufdd0\U000f0000\U0001fffe"),
        ("hi\U000e0041\U000e0100", r"hi\U000e0041\U000e0100"),
        ("a\ufe0fb\u200dc", r"a\ufe0fb\u200dc"),
    ],
)
def test_the_dangerous_and_the_invisible_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "plain [bold]text[/] :smile: \\x1b",
        "Übung, Ελληνικά, 日本語, हिन्दी, עברית, العربية",
        "👍🏽 ❤️ 1️⃣ ⚠️ 👨‍👩‍👧 ❤️‍🔥 🏳️‍🌈",
        "no\xa0break – “quotes” …",
    ],
)
def test_letters_and_emoji_stay(text: str) -> None:
    assert printable(text) == text


def test_lines_keep_newline_and_tab_and_nothing_else() -> None:
    assert printable("a\n\tb\r\n\x1b", multiline=True) == "a\n\tb\\r\n\\x1b"


def test_no_character_of_a_dangerous_category_passes() -> None:
    dangerous = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    passed = [c for c in EVERYTHING if unicodedata.category(c) in dangerous and printable(c) == c]
    assert passed == []


def test_no_assigned_visible_character_is_escaped() -> None:
    escaped = {
        c
        for c in EVERYTHING
        if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        and printable(c) != c
    }
    names = {unicodedata.name(c) for c in escaped}
    words = ("VARIATION SELECTOR", "FILLER", "JOINER", "VOWEL INHERENT")
    assert {name for name in names if not any(word in name for word in words)} == set()


@given(st.text(st.characters(codec=None)))
def test_what_was_made_printable_stays_as_it_is(text: str) -> None:
    once = printable(text)
    assert printable(once) == once
    assert "\n" not in once
    once.encode()  # no lone surrogate is left


def test_keys_are_masked_wherever_they_stand() -> None:
    assert redacted("x-api-key: recoup_sk_aB-3_z, and recoup_sk_2") == "x-api-key: ***, and ***"
    assert redacted("recoup_sk_") == "recoup_sk_"


def test_foreign_text_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(foreign("[red]x[/red] :bomb: 'q' 12 \x1b]0;title\x07", style="bold"))
    assert capsys.readouterr().out == "[red]x[/red] :bomb: 'q' 12 \\x1b]0;title\\x07\n"


def test_strings_given_to_the_console_are_no_markup_either(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console(stderr=True).print("[red]x[/red] :bomb: 12")
    assert capsys.readouterr().err == "[red]x[/red] :bomb: 12\n"


def test_off_a_terminal_nothing_is_wrapped_or_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 400 + "end"
    table = Table(box=None, show_header=False)
    table.add_row(foreign(long), foreign("second"))
    out = console()
    out.print(foreign(long))
    out.print(table)
    line, row = capsys.readouterr().out.splitlines()
    assert line == long
    assert row.split() == [*long.split(), "second"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_output_with_a_small_encoding_never_raises(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    out = console()
    table = Table("état")
    table.add_row(foreign("日本 👍 \ud800"))
    out.print(foreign("日本 👍 \ud800"), table)
    out.file.flush()
    shown = raw.getvalue().decode(encoding)
    assert ("日本" if encoding == "utf-8" else r"\u65e5\u672c") in shown


def test_no_color_is_honoured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def printed() -> str:
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        console().print(foreign("x", style="red"))
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert printed() == "\x1b[31mx\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed() == "x\n"


def test_a_stream_without_encoding_is_left_alone() -> None:
    stream = io.StringIO()
    never_raise(stream)
    stream.write("日本")
    assert stream.getvalue() == "日本"
