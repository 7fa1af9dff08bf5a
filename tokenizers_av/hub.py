"""Saving and loading a network as a folder: config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin


class HubModel(PyTorchModelHubMixin):
    """`from_pretrained`, `save_pretrained` and `push_to_hub`; weights must be all there and fit.

    The base class would leave what is missing at its random start.
    """

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        try:
            return super()._load_as_safetensor(model, model_file, map_location, True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{Path(model_file).parent}: the weights do not fit config.json ({reason})") from None

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """README.md of a saved network, for somebody to write on."""
        name = type(self).__name__
        module = type(self).__module__.rpartition(".")[0] or type(self).__module__
        return ModelCard(
            f"---\nlibrary_name: avpoet\n---\n\n`{name}` of avpoet:\n\n```python\nfrom {module} import {name}\n\n"
            f'model = {name}.from_pretrained("this folder, or its name on the hub")\n```\n'
        )
