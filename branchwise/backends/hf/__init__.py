"""The local engine on Hugging Face transformers."""
