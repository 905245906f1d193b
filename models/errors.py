"""What can be wrong with a network's configuration, said in one sentence."""


class ModelError(ValueError):
    """A network cannot be built or fed as asked. The message says what came and what is accepted."""
