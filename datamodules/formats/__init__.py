"""The image formats. Each module has one :class:`~datamodules.image.Image` and one writer; the table that
chooses between them is in :mod:`datamodules.open`.
"""
