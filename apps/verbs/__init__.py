"""One module per verb: ``HELP``, ``add_arguments(parser)`` and ``run(args) -> exit code``.

Nothing heavy is imported before ``run``: ``delineate --help`` answers at once.
"""
