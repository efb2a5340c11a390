from __future__ import annotations

import pytest

from orchestrator.store.verbs import look, people

from .desk import Desk


@pytest.mark.parametrize("strangers", [0, 2_000, 40_000])
def test_known_chats_are_found_among_any_number(desk: Desk, strangers: int) -> None:
    """An account may have more chats than a statement may have bound values."""
    first, second = desk.running(), desk.failed()
    desk.write(people.retry, second.id)  # its chat is an older attempt's now
    known = [first.chat_id or "", second.chat_id or ""]
    unknown = [f"stranger-{number}" for number in range(strangers)]
    middle = strangers // 2
    asked = [known[0], *unknown[:middle], known[1], *unknown[middle:], known[0]]
    assert desk.read(look.known_chats, asked) == set(known)
    assert desk.read(look.known_chats, unknown) == set()
