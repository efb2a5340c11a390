"""The remote side: the Recoup chat API and the streams that it sends. Knows no SQL."""

from __future__ import annotations

from orchestrator.recoup.fold import Folded, MessageFold, fold_message
from orchestrator.recoup.sse import BadEvent, EventParser

__all__ = ["BadEvent", "EventParser", "Folded", "MessageFold", "fold_message"]
