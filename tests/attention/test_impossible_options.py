"""Options that cannot be: each is refused by name, with what would do, before torch stumbles over it."""

import pytest

from models.attention import ATTENTION
from models.errors import ModelError

REFUSED = [
    ("gpsa", {"heads": -1}, "heads that divide its 64 channels, got -1; try 2"),
    ("vsa", {"window": 0}, "window of at least 1, got 0"),
    ("aggregated", {"width": 0}, "width of at least 1, got 0"),
    ("lsda", {"heads": 0}, "heads that divide its 64 channels, got 0; try 2"),
    ("lsda", {"group": 1}, "group from 2"),
    ("wavemix", {"mult": 0}, "mult of at least 1, got 0"),
    ("wavemix", {"hidden": -1}, "hidden of at least 1, got -1"),
    ("wavemix", {"dropout": 2}, "dropout from 0 to 1, got 2"),
    ("wavelet", {"expand": 0}, "expand above 0, got 0"),
    ("wavelet", {"multiple": 0}, "multiple of at least 1, got 0"),
    ("raft_mlp", {"side": 0}, "side of at least 1, got 0"),
    ("raft_mlp", {"raft": 0}, "raft of at least 1, got 0"),
    ("raft_mlp", {"expansion": 0}, "expansion of at least 1, got 0"),
    ("region", {"heads": -1}, "heads that divide its 64 channels, got -1"),
    ("cab", {"compress": 0}, "compress of at least 1, got 0"),
    ("cab", {"squeeze": 0}, "squeeze of at least 1, got 0"),
    ("ocab", {"heads": -2}, "heads that divide its 64 channels, got -2"),
    ("ocab", {"window": -4}, "window of at least 1, got -4"),
    ("rgt", {"heads": -1}, "heads that divide 64 and 32 channels, got -1; try 2"),
    ("rgt", {"ratio": 0}, "ratio above 0, got 0"),
    ("craft_window", {"heads": -1}, "heads that divide its 32 channels, got -1; try 1"),
    ("craft_window", {"bias_width": 0}, "bias_width of at least 1, got 0"),
    ("token_aggregation", {"decay": 2.0}, "decay from 0 to 1, got 2.0"),
    ("token_aggregation", {"qk_channels": 0}, "qk_channels of at least 1, got 0"),
    ("dau", {"reduction": 0}, "reduction of at least 1, got 0"),
    ("pat_self", {"heads": -1}, "48 of 64 channels, which -1 heads do not divide; try 4"),
    ("head_tokens", {"heads": -1}, "heads that divide its 64 channels, got -1"),
    ("pyramid_sparse", {"heads": -1}, "heads that divide its 64 channels, got -1"),
    ("contmix", {"groups": -1}, "groups that divide half of its channels, 32, got -1; try 2"),
    ("contmix", {"regions": 0}, "regions of at least 1, got 0"),
    ("double_window", {"heads": -2}, "even number of heads that divides 64, got -2; try 2"),
    ("double_window", {"window": 0}, "window of at least 1, got 0"),
]


@pytest.mark.parametrize(("key", "options", "message"), REFUSED)
def test_is_refused_with_a_remedy(key, options, message):
    with pytest.raises(ModelError, match=message):
        ATTENTION[key](64, **options)
