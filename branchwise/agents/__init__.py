"""Policies: how a node becomes a prompt and a reply becomes a step."""
