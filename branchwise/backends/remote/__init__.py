"""Parts of the client for OpenAI-compatible servers: one noun a file."""
