"""The fold: chunks of a UI message stream to the message that they build."""

from __future__ import annotations

from orchestrator.recoup.fold.message import Folded, MessageFold, fold_message

__all__ = ["Folded", "MessageFold", "fold_message"]
