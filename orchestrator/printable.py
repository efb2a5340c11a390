"""Text made fit to be shown: what a terminal would obey, hide or reorder becomes visible.

Leaf module: the log and the command line both use it, and it imports nothing of ours.
"""

from __future__ import annotations

import io
import re
from typing import TextIO

# Ranges are spelled out because scanning all of Unicode at import costs a third of a second.
# A test compares them with `unicodedata`.
_UNSAFE = (
    r"\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: every escape sequence begins with one of them
    r"\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"  # format characters
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"  # zero width, bidi, separators
    r"\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\uffa0"  # invisible letters and marks
    r"\ufe00-\ufe0f"  # variation selectors, which can carry a hidden message
    r"\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff"  # surrogates, private, noncharacters
    r"\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff\U000f0000-\U0010ffff"  # tags, selectors, private planes
    + "".join(f"\\U{plane:04x}fffe\\U{plane:04x}ffff" for plane in range(1, 15))
)
_EMOJI = r"[#*0-9\xa9\xae\u203c\u2049\u2100-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
# A joiner or an emoji selector is part of a picture where emoji surround it, and suspect elsewhere.
# Asked after the character has matched: the scan for that is what takes the time in a long text.
_NOT_IN_EMOJI = rf"(?<!{_EMOJI}\ufe0f)(?<!(?:{_EMOJI}|\ufe0f)\u200d(?={_EMOJI}))"
_ONE_LINE = re.compile(rf"[{_UNSAFE}]{_NOT_IN_EMOJI}")
_LINES = re.compile(rf"[{_UNSAFE}](?<![\n\t]){_NOT_IN_EMOJI}")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

_KEY = re.compile(r"recoup_sk_[A-Za-z0-9_-]+")


def printable(text: str, *, multiline: bool = False) -> str:
    r"""Show the invisible and the dangerous in a text as escapes such as `\x1b` and `\u202e`.

    Escaped are control characters, line and paragraph separators, format characters (bidi
    controls, zero-width characters, tags), invisible fillers, lone surrogates, private-use
    characters and noncharacters. Letters of every script and emoji stay as they are.

    Args:
        text: any string, lone surrogates included.
        multiline: keep newline and tab, which are otherwise shown as `\n` and `\t`.

    Returns:
        One line (or lines) that a terminal shows as it stands.
    """
    return (_LINES if multiline else _ONE_LINE).sub(_escape, text)


def redacted(text: str) -> str:
    """Replace everything in a text that looks like an API key by `***`."""
    return _KEY.sub("***", text)


def never_raise(stream: TextIO) -> None:
    """Let a text stream show what its encoding lacks as escapes, where it would raise.

    Streams that are no `TextIOWrapper` (a `StringIO`) encode nothing and stay as they are.
    """
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
