"""What can be wrong with an export."""


class ExportError(ValueError):
    """A network cannot be exported. The message says why, and what to do."""
