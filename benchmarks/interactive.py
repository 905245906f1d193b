"""What a click costs once a view is encoded: the session against the bare decoder, in turns in one run.

    python -m benchmarks.interactive [--size vit_b] [--image 1024] [--rounds 9] [--picture 768x1024]

The bare decoder is the network's ``decode`` on an embedding in memory, with the same prompts: one mask, scaled to the
picture's size. A click is ``InteractiveSession.add_point`` and ``mask()``, where the view is encoded already; the second click on
an object, so that it takes the mask of the first. Printed are the medians, the median over rounds of click over decoder in
the same round, the time of the encoder, and that of a first click after a restart, whose embedding comes from disk.
Weights are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture

from benchmarks.measure import machine, paired
from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models.interfaces import Prompts
from models.sam import SamSegmenter
from tasks.interactive import EmbeddingCache, InteractiveSession, PromptModel
from tasks.model_file import Description


def timed(run: object) -> float:
    start = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="vit_b", help="vit_b, vit_l, vit_h or tiny")
    parser.add_argument("--image", type=int, default=1024, help="side of the square that the network sees")
    parser.add_argument("--picture", default="768x1024", help="rows x columns")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    print(json.dumps(machine()))
    rows, columns = map(int, options.picture.split("x"))
    torch.manual_seed(0)
    network = SamSegmenter(3, 1, prompts=True, size=options.size, image_size=options.image)
    description = Description(
        Preprocessing(("red", "green", "blue")),
        Patch((options.image,) * 2),
        Classes(["background", "object"]),
    )
    model = PromptModel(network, description)
    with tempfile.TemporaryDirectory() as folder:
        file, cache = Path(folder) / "picture.png", EmbeddingCache(Path(folder) / "embeddings")
        pixels = np.random.default_rng(0).integers(0, 255, (rows, columns, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(file)
        session = InteractiveSession(file, model, cache)
        encoding = timed(session.encode)
        features = cache.get(model.key_of(session.planes.pixels(session.view)))
        assert features is not None
        clicks: list[float] = []
        bare: list[float] = []
        for turn in range(options.rounds + 1):
            first = (rows / 2, columns / 3)
            second = (rows / 3 + turn, columns / 2)
            session.add_object()
            session.add_point(first)
            mask = session.candidates()[0].coarse
            prompts = Prompts(
                points=torch.tensor([[first, second]]), labels=torch.ones(1, 2, dtype=torch.long), mask=mask
            )

            def decode(prompts: Prompts = prompts) -> None:
                with torch.inference_mode():
                    network.decode(features, (rows, columns), prompts)

            def click(second: tuple[float, float] = second) -> None:
                session.add_point(second)
                session.mask()

            pair = {"click": click, "decode": decode}
            found = {name: timed(pair[name]) for name in list(pair)[:: 1 if turn % 2 else -1]}
            if turn:  # the first warms up
                clicks.append(found["click"])
                bare.append(found["decode"])
        again = InteractiveSession(file, model, EmbeddingCache(Path(folder) / "embeddings"))
        restart = timed(lambda: again.add_point((5, 5)))
        assert session.encodings == 1
        assert again.encodings == 0
    print(f"decoder       {1000 * statistics.median(bare):8.1f} ms")
    print(
        f"second click  {1000 * statistics.median(clicks):8.1f} ms, {paired(clicks, bare):.2f} x the decoder"
    )
    print(f"encoder       {1000 * encoding:8.1f} ms, once")
    print(f"restart       {1000 * restart:8.1f} ms for a first click: picture read, embedding from disk")


if __name__ == "__main__":
    main()
