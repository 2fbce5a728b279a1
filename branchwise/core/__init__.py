"""The values, the roles and the verb; imports nothing else of the package."""
