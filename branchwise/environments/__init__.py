"""Worlds as functions of their state."""
