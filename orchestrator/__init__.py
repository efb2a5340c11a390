"""Durable job orchestrator for the Recoup chat API."""
