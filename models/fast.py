"""A network that runs faster and answers nearly the same: opt-in, and tried on the first window before it is trusted."""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.interfaces import Output
from models.layers import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from models.memory_format import channels_last_weights

# How far logits may lie from the plain network's, over their spread in the first batch: by rounding alone, in 32 bits
# and in 16. A network that a step breaks is off by orders of magnitude more.
_FLOAT, _HALF = 1e-3, 0.1
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class FastNetwork(nn.Module):
    """Runs a segmenter with batch norm folded into convolutions, in bfloat16 where the processor has it, compiled.

    Each step is tried on the first batch of windows. One whose logits are not finite, or are not those of the plain
    network but for rounding, is left out, and :attr:`notes` says why. So is one that the machine cannot do. The plain
    network is not changed; it answers where channels are told to be missing, and for windows of another size.

    Args:
        network: a segmenter in evaluation mode, on its device.
        compiled: whether to try compilation, which takes up to a minute.
    """

    def __init__(self, network: nn.Module, compiled: bool = True) -> None:
        super().__init__()
        # Not a submodule: its tensors are those of the network, whoever asks for them.
        self._plain = [network]
        self._compiled = compiled
        self._run: Callable[[Tensor], Tensor] | None = None
        self._shape: torch.Size | None = None
        self.used: list[str] = []
        self.notes: list[str] = []

    @property
    def plain(self) -> nn.Module:
        """The network as it was given."""
        return self._plain[0]

    def forward(self, image: Tensor, present: Tensor | None = None) -> Output:
        """As the network: ``(B, C, *S)`` -> logits ``(B, K, *S)``, float32."""
        if present is not None:
            return self._answer(self.plain(image, present=present))
        if self._run is None:
            # What is made in inference mode cannot be compiled.
            with torch.inference_mode(False), torch.no_grad():
                return Output(self._tried(image.clone()))
        if self._shape is None or image.shape[1:] != self._shape[1:] or len(image) > self._shape[0]:
            return self._answer(self.plain(image))
        if len(image) == self._shape[0]:
            return Output(self._run(image).float())
        # The last batch is smaller. Another shape would be compiled anew.
        full = image.new_zeros(self._shape)
        full[: len(image)] = image
        return Output(self._run(full)[: len(image)].float())

    @staticmethod
    def _answer(output: Output) -> Output:
        return Output(output.logits.float())

    def _tried(self, image: Tensor) -> Tensor:
        """Find out what works, and return the plain network's logits."""
        wanted = self.plain(image).logits.float()
        self._shape = image.shape
        network = copy.deepcopy(self.plain)
        run: Callable[[Tensor], Tensor] = lambda x: network(x).logits  # noqa: E731

        folded = copy.deepcopy(network)
        count = fold_batch_norm(folded, image)
        if count:
            by_folded: Callable[[Tensor], Tensor] = lambda x: folded(x).logits  # noqa: E731
            if self._agrees(f"{count} batch norms folded", by_folded, image, wanted, _FLOAT):
                network, run = folded, by_folded
        channels_last_weights(network)

        half = has_bfloat16(image.device)
        if not half:
            self.notes.append("no bfloat16: this processor does not compute with it in hardware")

        def in_half(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                return network(x).logits

        if half and self._agrees("bfloat16", in_half, image, wanted, _HALF):
            run = in_half
        else:
            half = False
        if self._compiled:
            compiled = self._compile(network, half)
            tolerance = _HALF if half else _FLOAT
            if compiled is not None and self._agrees("compiled", compiled, image, wanted, tolerance):
                run = compiled
        self._run = run
        return wanted

    def _agrees(
        self, name: str, run: Callable[[Tensor], Tensor], image: Tensor, wanted: Tensor, tolerance: float
    ) -> bool:
        """Whether a way to run gives the same; notes why not."""
        try:
            found = run(image).float()
        except Exception as error:  # compilers raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self.notes.append(f"not {name}: it fails ({type(error).__name__}: {reason})")
            return False
        if not bool(found.isfinite().all()):
            self.notes.append(f"not {name}: its logits are not finite")
            return False
        off = float((found - wanted).pow(2).mean().sqrt() / wanted.std().clamp_min(1e-6))
        if not off <= tolerance:
            self.notes.append(f"not {name}: its logits are off by {off:.2g} of their spread")
            return False
        self.used.append(name)
        return True

    def _compile(self, network: nn.Module, half: bool) -> Callable[[Tensor], Tensor] | None:
        device = next(network.parameters()).device
        if device.type == "cpu" and not has_compiler():
            self.notes.append("not compiled: there is no C++ compiler (g++ or clang++)")
            return None
        _compile_in_a_temporary_folder()
        try:
            # Weights are constants: they are laid out once, as the kernels want them.
            options: dict[str, Any] = {
                "compile_threads": 1,
                "freezing": device.type == "cpu",
                "cpp_cache_precompile_headers": False,  # they would lie elsewhere, and stay
            }
            made = torch.compile(network, dynamic=False, options=options)
        except Exception as error:  # a platform that torch does not compile for
            self.notes.append(f"not compiled: {str(error).splitlines()[0][:200]}")
            return None

        def run(x: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.no_grad():
                x = x.clone() if x.is_inference() else x
                with torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
                    logits: Tensor = made(x).logits
                    return logits

        return run


def fold_batch_norm(network: nn.Module, example: Tensor) -> int:
    """Fold batch norms into the convolutions whose answers they get, in place; how many.

    What follows what is seen while ``example`` runs. A layer that is used more than once is left as it is. That nothing
    else reads a convolution's answer is not known here: compare the answers afterwards.
    """
    made: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def seen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
                made[id(output)] = (name, output)  # kept, so that no other tensor gets its id
            elif inputs and id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][0], name))

        return hook

    layers = {
        name: module
        for name, module in network.named_modules()
        if type(module) in (*CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS)
    }
    hooks = [module.register_forward_hook(seen(name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    done = 0
    for conv_name, norm_name in pairs:
        conv, norm = layers[conv_name], layers[norm_name]
        if calls[conv_name] != 1 or calls[norm_name] != 1 or norm.running_mean is None:
            continue
        folded = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, TRANSPOSED))
        network.set_submodule(conv_name, folded)
        network.set_submodule(norm_name, nn.Identity())
        done += 1
    return done


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes with bfloat16 itself. Where it does not, bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def has_compiler() -> bool:
    """Whether there is what compiles kernels for CPUs."""
    named = os.environ.get("CXX", "").split()
    return any(shutil.which(name) for name in (*named[:1], "g++", "clang++", "c++"))


def _compile_in_a_temporary_folder() -> None:
    """What is compiled lies below the temporary folder and goes with the process, unless the user named a place."""
    if _CACHE in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="delineate-compiled-")
    os.environ[_CACHE] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
