"""What can be wrong with data, said in one sentence that names the file and what to do next."""


class DataError(ValueError):
    """A file or dataset cannot be used. The message names it, what came, what is accepted, what to do."""
