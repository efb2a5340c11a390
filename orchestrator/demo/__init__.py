"""The demo: a dev server, a worker that is killed half-way, another that finishes its work."""

from __future__ import annotations

from orchestrator.demo.play import run

__all__ = ["run"]
