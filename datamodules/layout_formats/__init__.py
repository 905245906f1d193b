"""One module per way in which a dataset lies on disk; :func:`datamodules.layouts.read_layout` chooses among them."""
