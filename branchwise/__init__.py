"""Inference-time search over language models."""
