"""Every block, from a configuration, in a small U-Net: it trains there; and large maps stay within memory."""

from pathlib import Path

import pytest
import torch
import yaml

from models import EncoderDecoder
from models.attention import ATTENTION
from models.attention.placement import PLACES
from tasks.losses import DiceCE
from tests.attention.zoo import every_key, make, maps

CONFIGURATION = """
ndim: {ndim}
encoder: {{name: residual, widths: [8, 16, 32], norm: group}}
attention: {{name: {key}, at: {place}}}
"""


def blobs(ndim, batch=2):
    """Noisy images with a bright box each, and the masks of the boxes."""
    generator = torch.Generator().manual_seed(0)
    side, box = (16, 7) if ndim == 2 else (8, 4)
    mask = torch.zeros(batch, *(side,) * ndim, dtype=torch.long)
    for i in range(batch):
        mask[(i, *(slice(2 + i, 2 + i + box),) * ndim)] = 1
    noise = torch.randn(batch, 1, *(side,) * ndim, generator=generator)
    return mask.unsqueeze(1) + 0.5 * noise, mask


def network(key, ndim, place="[encoder, decoder]"):
    torch.manual_seed(0)
    return EncoderDecoder(1, 2, **yaml.safe_load(CONFIGURATION.format(key=key, ndim=ndim, place=place)))


@pytest.mark.parametrize(
    ("key", "ndim"), [(key, n) for key, cls in ATTENTION.items() for n in sorted(cls.ndims)]
)
def test_twenty_steps_lower_the_loss(key, ndim):
    model, loss = network(key, ndim), DiceCE()
    image, mask = blobs(ndim)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    history = []
    for _ in range(20):
        value = loss(model(image).logits, mask)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 12.0)
        optimizer.step()
        history.append(value.item())
    assert sum(history[-3:]) / 3 < 0.9 * history[0]


@every_key
@pytest.mark.parametrize("place", PLACES)
def test_goes_to_every_place(key, place):
    model = network(key, 2, place).eval()
    image, _ = blobs(2)
    cls = ATTENTION[key]
    assert any(isinstance(module, cls) for module in model.modules())
    assert model(image).logits.shape == (2, 2, 16, 16)


@pytest.mark.parametrize("key", [key for key, cls in ATTENTION.items() if cls.cost != "quadratic"])
def test_large_map_within_two_gibibytes(key):
    """65,536 tokens of 64 channels; all pairs of them would take 16 GiB per head."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("peak memory is read from /proc")

    def kib(field):
        return int(
            next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1]
        )

    block, x = make(key, {}, 2).eval(), maps(2, batch=1, size=(256, 256))
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    before = kib("VmRSS:")
    with torch.no_grad():
        assert block(x).isfinite().all()
    assert (kib("VmHWM:") - before) / 2**20 < 2
