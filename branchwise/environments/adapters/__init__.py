"""Worlds that others have built, each as sessions of its own library."""
