"""Config and model classes of factored checkpoints, made by type() from those of transformers, for every architecture.

A factored checkpoint has `model_type: eckart_<base>` and its weights in `eckart-*.safetensors`, named by an index that
only the config *class* mentions. A process that has not called `register` knows neither the model type nor the file, so
every class of transformers refuses the folder; none fills layers with random numbers.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from eckart.errors import InputError, MissingExtraError
from eckart.models._factored_layers import FactoredLayer
from eckart.models._layers import layer_type, placeholder, shape_of
from eckart.models._option import Option, read_option
from eckart.models._shared import share_downs_
from eckart.models._table import tie_head_, tied_head

__all__ = ["PREFIX", "STEM", "factored_config", "factored_model", "register", "swap_layers"]

PREFIX = "eckart_"  # of model_type
STEM = "eckart"  # of the weight files
CONFIG_VERSION = 1
_AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)


@cache
def factored_config(model_type: str) -> type[PreTrainedConfig]:
    """Return the config class of factored models of this base type, such as "llama"; KeyError for an unknown one."""
    base = CONFIG_MAPPING[model_type]
    body = {
        "__module__": __name__,
        "__doc__": f"{base.__name__} of a model whose layers are factored; `eckart` says which, and how.",
        "model_type": PREFIX + model_type,
        "transformers_weights": f"{STEM}.safetensors.index.json",
    }
    made: type[PreTrainedConfig] = type(f"Eckart{base.__name__}", (base,), body)
    return made


@cache
def factored_model(base: type[PreTrainedModel], model_type: str) -> type[PreTrainedModel]:
    """Return the subclass of `base` that swaps its layers for factored ones before its weights are loaded."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        swap_layers(self, _options_of(config))
        self._tied_weights_keys = _found_in(self, self._tied_weights_keys or {})
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    def get_expanded_tied_weights_keys(self: Any, all_submodels: bool = False) -> dict[str, str]:
        """Return what transformers ties by name: not a factored table, to which its head refers by itself."""
        there = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        tied: dict[str, str] = base.get_expanded_tied_weights_keys(self, all_submodels)
        return {target: source for target, source in tied.items() if target in there and source in there}

    def save_pretrained(self: Any, save_directory: Any, **kwargs: Any) -> None:
        base.save_pretrained(self, save_directory, **kwargs)
        _rename_weights(Path(save_directory))

    body = {
        "__module__": __name__,
        "__doc__": f"{base.__name__} with the factored layers that its config names.",
        "__init__": __init__,
        "get_expanded_tied_weights_keys": get_expanded_tied_weights_keys,
        "save_pretrained": save_pretrained,
        "config_class": factored_config(model_type),
    }
    made: type[PreTrainedModel] = type(f"Eckart{base.__name__}", (base,), body)
    return made


def swap_layers(module: Any, options: dict[str, Any]) -> None:
    """Replace the layers that `options` (name -> option as JSON) names by factored ones, their values unset."""
    prefix = getattr(module, "base_model_prefix", "") + "."
    known = dict(module.named_modules())
    head = tied_head(module)
    owners: dict[str, str] = {}

    def within(full_name: str) -> str:
        # A bare base model, such as LlamaModel, has its layers without the prefix that the full model gives them.
        return full_name if full_name in known else full_name.removeprefix(prefix)

    for full_name, value in options.items():
        name = within(full_name)
        kind = layer_type(known[name]) if name in known else None
        if kind is None:
            raise InputError(f"config.json names the factored layer {full_name!r}, which this architecture lacks")
        option = read_option(value, *shape_of(known[name]))
        module.set_submodule(name, placeholder(known[name], option))
        if option.down_of:
            owners[name] = within(option.down_of)
    share_downs_(module, owners)
    if head and isinstance(module.get_input_embeddings(), FactoredLayer):
        tie_head_(module, head)


def options_to_config(options: dict[str, Option]) -> dict[str, Any]:
    """Return what the config's `eckart` entry says of the factored layers."""
    return {"version": CONFIG_VERSION, "layers": {name: option.to_json() for name, option in options.items()}}


def register() -> None:
    """Teach transformers' Auto classes every `eckart_<base>`, each made when it is first asked for. Idempotent."""
    if not hasattr(CONFIG_MAPPING, "_extra_content"):
        raise MissingExtraError("transformers>=5.23,<6", "hf", "loading factored models")
    if not isinstance(CONFIG_MAPPING._extra_content, _LazyConfigs):
        CONFIG_MAPPING._extra_content = _LazyConfigs(CONFIG_MAPPING._extra_content)


def _found_in(module: Any, tied: dict[str, str]) -> dict[str, str]:
    """Return those patterns of tied names that still match something; of others transformers makes an error."""
    there = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return {
        target: source
        for target, source in tied.items()
        if all(any(re.match(pattern, name) for name in there) for pattern in (target, source))
    }


class _LazyConfigs(dict[str, Any]):
    """The registry's table of added model types, in which every eckart_<base> is found without being listed."""

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, key) or (
            isinstance(key, str) and key.startswith(PREFIX) and key.removeprefix(PREFIX) in CONFIG_MAPPING._mapping
        )

    def __missing__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        base = key.removeprefix(PREFIX)
        config = factored_config(base)
        AutoConfig.register(key, config)
        for name in _AUTO_CLASSES:
            auto = getattr(transformers, name)
            if type_of := auto._model_mapping.get(CONFIG_MAPPING[base], None):
                auto.register(config, factored_model(type_of, base))
        return config


def _options_of(config: Any) -> dict[str, Any]:
    entry = getattr(config, "eckart", None)
    if not isinstance(entry, dict) or not isinstance(entry.get("layers"), dict):
        raise InputError("config.json has no list of factored layers", fix="save the model again with eckart compress")
    if entry.get("version") != CONFIG_VERSION:
        raise InputError(
            f"the factored layers are written in version {entry.get('version')!r}, this Eckart reads {CONFIG_VERSION}",
            fix="pip install --upgrade eckart",
        )
    layers: dict[str, Any] = entry["layers"]
    return layers


def _rename_weights(folder: Path) -> None:
    """Give the weight files that transformers has just written the names under which only Eckart looks for them."""
    index_path, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists():
        from eckart.models._safetensors import read_header

        names = [info.name for info in read_header(single)]
        total = single.stat().st_size
        index = {
            "metadata": {"total_size": total},
            "weight_map": dict.fromkeys(names, f"{STEM}-00001-of-00001.safetensors"),
        }
        single.rename(folder / f"{STEM}-00001-of-00001.safetensors")
    else:
        index = json.loads(index_path.read_text())
        for file in set(index["weight_map"].values()):
            (folder / file).rename(folder / file.replace("model", STEM, 1))
        index["weight_map"] = {name: file.replace("model", STEM, 1) for name, file in index["weight_map"].items()}
        index_path.unlink()
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
