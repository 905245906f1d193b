"""Encoders of monai: against monai's own forward pass, weight files in its format, any size, attention inside."""

import pytest
import torch
from monai.networks.nets import SegResNet, SwinUNETR, swin_unetr
from safetensors.torch import save_file

from models import EncoderDecoder
from models.encoders import MonaiEncoder
from tests.attention.zoo import count
from tests.test_encoders import Touching, assert_block_is_seen_from, assert_maps_are_as_declared

SMALL = {
    "segresnet": {"width": 8, "blocks": [1, 2, 1]},
    "swin_unetr": {"width": 12, "heads": [1, 2, 2, 4], "blocks": [2, 1, 1, 1], "window": 3},
}
every_network = pytest.mark.parametrize("network", SMALL)
SIZES = [(37, 45), (35, 40, 47), (64, 64)]


@pytest.fixture(autouse=True)
def transpositions(monkeypatch):
    """monai's own forward pass moves axes by einops, which need not be installed."""
    monkeypatch.setattr(swin_unetr, "rearrange", lambda x, axes: torch.einsum(axes.replace(" ", ""), x))


def encoder(network, in_channels=2, ndim=2, **options):
    return MonaiEncoder(in_channels, ndim=ndim, network=network, **{**SMALL[network], **options})


def whole(network, in_channels=2, ndim=2):
    if network == "segresnet":
        return SegResNet(
            ndim, init_filters=8, in_channels=in_channels, blocks_down=(1, 2, 1), blocks_up=(1, 1)
        )
    return SwinUNETR(
        in_channels,
        3,
        feature_size=12,
        depths=(2, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
        window_size=3,
        spatial_dims=ndim,
    )


def maps_of(network, image):
    """What monai's own forward pass hands to its decoder."""
    if isinstance(network, SegResNet):
        return network.encode(image)[1]
    seen = {}
    parts = ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10", "decoder5")
    handles = [
        getattr(network, part).register_forward_hook(
            lambda _, given, out, part=part: seen.update({part: (given, out)})
        )
        for part in parts
    ]
    network(image)
    for handle in handles:
        handle.remove()
    return [*(seen[p][1] for p in parts[:4]), seen["decoder5"][0][1], seen["encoder10"][1]]


@every_network
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("in_channels", [1, 5])
def test_any_size_and_number_of_channels(network, size, in_channels):
    made = encoder(network, in_channels, len(size)).eval()
    assert made.strides == tuple((2**i,) * len(size) for i in range(len(made.out_channels)))
    with torch.no_grad():
        assert_maps_are_as_declared(made, torch.randn(1, in_channels, *size))


@every_network
@pytest.mark.parametrize(
    ("ndim", "name", "wrap"), [(2, "a.pt", None), (3, "a.pth", "state_dict"), (2, "a.safetensors", None)]
)
def test_weights_of_a_file_give_the_maps_of_monai(network, ndim, name, wrap, tmp_path):
    """And so the computation is monai's, and any size is monai's where monai takes it."""
    torch.manual_seed(0)
    theirs = whole(network, ndim=ndim).eval()
    state = {key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}
    file = tmp_path / name
    if name.endswith("safetensors"):
        save_file(state, file)
    elif wrap:
        torch.save({wrap: {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 3}, file)
    else:
        torch.save(state, file)
    ours = encoder(network, ndim=ndim, weights=str(file)).eval()
    image = torch.randn(1, 2, *(64, 32, 32)[:ndim])
    with torch.no_grad():
        for own, other in zip(ours(image), maps_of(theirs, image), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_second_version_of_swin_unetr_computes_what_monai_computes(ndim):
    torch.manual_seed(0)
    ours = encoder("swin_unetr", ndim=ndim, v2=True).eval()
    image = torch.randn(1, 2, *(64, 32, 32)[:ndim])
    with torch.no_grad():
        theirs = ours.body.swinViT(image)
        for own, other in zip(ours.body._transformed(image), theirs, strict=True):
            torch.testing.assert_close(own, other)


def test_self_supervised_weights_of_the_transformer_alone(tmp_path):
    theirs = whole("swin_unetr")
    state = {
        "module." + key.replace("linear1", "fc1").replace("linear2", "fc2"): tensor
        for key, tensor in theirs.swinViT.state_dict().items()
    }
    torch.save({"state_dict": {**state, "module.norm.weight": torch.ones(3)}}, tmp_path / "a.pt")
    ours = encoder("swin_unetr", weights=str(tmp_path / "a.pt"))
    for key, tensor in theirs.swinViT.state_dict().items():
        assert torch.equal(ours.body.swinViT.state_dict()[key], tensor), key
    # And as monai itself reads it.
    again = whole("swin_unetr")
    again.load_from({"state_dict": state})
    for name, parameter in again.swinViT.named_parameters():
        assert torch.equal(ours.body.swinViT.get_parameter(name), parameter), name


@every_network
def test_weights_of_another_network_are_refused(network, tmp_path):
    other = next(name for name in SMALL if name != network)
    torch.save(whole(other).state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=rf"a\.pt is not of this {network}; missing: .* more; unexpected: .* more"
    ):
        encoder(network, weights=str(tmp_path / "a.pt"))
    torch.save(whole(network).state_dict(), tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"of another shape: .*, 2, .* not .*, 3, "):
        encoder(network, in_channels=3, weights=str(tmp_path / "b.pt"))
    state = whole(network).state_dict()
    first = next(iter(state))
    state.pop(first)
    torch.save({**state, "spare": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=rf"missing: {first}; unexpected: spare; of another shape: nothing"):
        encoder(network, weights=str(tmp_path / "c.pt"))


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(ValueError, match=r"a\.pt is not a file"):
        encoder("segresnet", weights=str(tmp_path / "a.pt"))
    marker = tmp_path / "ran"
    torch.save({"state_dict": whole("segresnet").state_dict(), "note": Touching(marker)}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt cannot be read as tensors alone"):
        encoder("segresnet", weights=str(tmp_path / "b.pt"))
    assert not marker.exists()
    torch.save({"weights": [1, 2]}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt is not a state dict"):
        encoder("segresnet", weights=str(tmp_path / "c.pt"))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_block_behind_a_level_of_segresnet_is_seen_by_all_below(level):
    torch.manual_seed(0)
    assert_block_is_seen_from(encoder("segresnet"), level, torch.randn(1, 2, 40, 33))


def test_block_behind_a_level_of_swin_unetr_is_seen_by_its_skip():
    made, image = encoder("swin_unetr").eval(), torch.randn(1, 2, 40, 33)
    with torch.no_grad():
        before = made(image)
        for level in range(6):
            made.append(level, torch.nn.Flatten(2))
        for old, new in zip(before, made(image), strict=True):
            assert torch.equal(old.flatten(2), new)


@every_network
@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
def test_norms_and_gradient(network, norm):
    torch.manual_seed(0)
    made = encoder(network, norm=norm)
    sum((m * torch.randn_like(m)).sum() for m in made(torch.randn(2, 2, 70, 66))).backward()
    for name, parameter in made.named_parameters():
        # A bias in front of a softmax that is the same for all keys does nothing; of the qkv bias a part counts.
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("network", "blocks"), [("segresnet", 4), ("swin_unetr", 5)])
def test_attention_goes_into_residual_blocks(network, blocks):
    options = {"name": "monai", "network": network, **SMALL[network]}
    attention = {"name": "eca", "at": "residual", "kernel": 3}
    model = EncoderDecoder(2, 2, encoder=options, attention=attention).eval()
    assert count(model) - count(EncoderDecoder(2, 2, encoder=options)) == 3 * blocks
    with torch.no_grad():
        assert model(torch.randn(1, 2, 40, 35)).logits.shape == (1, 2, 40, 35)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "unetr"}, "monai network 'unetr' is not known; choose from: segresnet, swin_unetr"),
        ({"heads": [1, 2, 2, 4]}, "monai network 'segresnet' has no option 'heads'"),
        ({"width": 12}, "width 12 is no multiple of 8"),
        ({"norm": "layer"}, "norm 'layer' is not known"),
        ({"network": "swin_unetr", "width": 20}, "a multiple of 12, got 20"),
        ({"network": "swin_unetr", "blocks": [2, 2]}, "want four entries"),
        ({"network": "swin_unetr", "heads": [5, 6, 12, 24]}, "must divide the widths"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        MonaiEncoder(1, **options)
