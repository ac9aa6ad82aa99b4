"""DINOv2 inside an ONNX file -> a plain HF folder: the backbone's tensors under transformers' names.

An exporter keeps the names of tensors that a graph uses as they are, and renames two kinds: a linear layer's weight is
stored transposed and told by the name of its MatMul node; position embeddings are cut into the class token's and the
patches', which the graph resizes to the image's side.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from harness.failures import UserError
from harness.models import quiet

BACKBONE = "backbone"
CLASS_POSITION, PATCH_POSITIONS = "embeddings/Concat_6", "embeddings/Reshape_1"


def convert(file: Path, folder: Path) -> None:
    """Write config.json and model.safetensors (float32) of the backbone in ``file`` into ``folder``."""
    from transformers import Dinov2Config, Dinov2Model

    state = backbone(file)
    hidden, _, patch, _ = state["embeddings.patch_embeddings.projection.weight"].shape
    side = patch * round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    config = Dinov2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64, image_size=side, patch_size=patch
    )  # fmt: skip
    from safetensors.torch import save_file

    config.architectures = ["Dinov2Model"]
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with quiet():  # reads old names, writes today's
        model, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
        wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
        if wrong:
            raise UserError(f"{file}: not the backbone of a DINOv2: {', '.join(map(str, wrong[:4]))}")
        model.save_pretrained(folder)


def backbone(file: Path) -> dict[str, Tensor]:
    """The backbone's tensors by the names of DINOv2's first release in transformers."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError("to read an ONNX file, install the package for it: pip install '.[images]'") from None
    graph = onnx.load(file).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {
        node.name.removeprefix(f"/{BACKBONE}/"): node for node in graph.node if node.name.startswith(f"/{BACKBONE}/")
    }

    def read(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(stored[name]).copy())

    def of(node: str) -> Tensor:
        return next(read(name) for name in nodes[node].input if name in stored)

    state = {name.removeprefix(f"{BACKBONE}."): read(name) for name in stored if name.startswith(f"{BACKBONE}.")}
    for name, node in nodes.items():
        if node.op_type == "MatMul" and any(given in stored for given in node.input):
            state[f"{name.removesuffix('/MatMul').replace('/', '.')}.weight"] = of(name).T.contiguous()
    state["embeddings.position_embeddings"] = torch.cat([of(CLASS_POSITION), of(PATCH_POSITIONS)], 1)
    state["embeddings.mask_token"] = torch.zeros(1, state["embeddings.cls_token"].shape[-1])  # of pretraining alone
    return state
