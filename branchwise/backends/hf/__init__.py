"""The local engine: transformers supplies the model, the loop over its rows is our own."""

from branchwise.backends.hf.backend import HF

__all__ = ["HF"]
