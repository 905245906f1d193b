"""A trained network for other runtimes: ONNX, torch.export, int8; checked against the network it came from."""
