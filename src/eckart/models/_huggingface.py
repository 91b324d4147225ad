"""Models of the transformers library: dense ones and those that Eckart has factored."""

from __future__ import annotations

import contextlib
import copy
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eckart._kernels import first_nonfinite
from eckart.errors import InputError, NumericalError, UsageError
from eckart.models._blocks import BlockRunner, block_names, check_blocks_stand_alone, home_of
from eckart.models._factored_layers import FactoredLayer
from eckart.models._folding import Fold, candidates, fold_, verified
from eckart.models._layers import Embedding, Factors, LayerType, layer_type, placeholder
from eckart.models._model import Layer, Weight
from eckart.models._option import Option
from eckart.models._shared import share_downs_
from eckart.models._shelf import Shelf, rounded
from eckart.models._table import scale_of, tie_head_, tied_head
from eckart.models._taps import Gradients, TableTaps, Taps, table_tapped, tapped
from eckart.models._tensors import dtype_name

__all__ = ["HuggingFaceModel", "OpenedWhenUsed", "stored_in"]

LARGEST_OUTPUT = 16384  # rows; a layer with more would need an output Gram of over 2 GB in float64


class HuggingFaceModel:
    """A transformers model on its device, in float32, with its tokenizer if it has one.

    stored_dtype: of the weights in the file, "float16" for a quantised file, whose own format cannot hold factors.
    input_bytes: size of the weight files it was read from. replaced: the layers that are stored in another way, and in
    which. plan, recovery, measurement, source_bytes: what `compress` did and found, and the size of its input, where it
    made this model. shelf: the weights of its blocks that wait in files, for which `module` has meta tensors; whole:
    why there are none though that was asked for, or "".
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        *,
        name: str,
        path: str,
        stored_dtype: str,
        input_bytes: int,
        quantised: bool = False,
        licence: str = "",
        replaced: Mapping[str, Option] | None = None,
        shelf: Shelf | None = None,
        whole: str = "",
    ) -> None:
        self.module, self.tokenizer, self.name, self.path = module.eval().requires_grad_(False), tokenizer, name, path
        self.stored_dtype, self.input_bytes, self.quantised = stored_dtype, input_bytes, quantised
        self.licence = licence
        self.replaced, self.shelf, self.whole = dict(replaced or {}), shelf or Shelf(), whole
        self.plan: Any = None
        self.recovery: Any = None
        self.source_bytes = input_bytes
        self.measurement: dict[str, Any] | None = None

    # What it is

    @property
    def model_type(self) -> str:
        return str(self.module.config.model_type)

    @property
    def predicts_next_token(self) -> bool:
        """Whether the next-token loss of a causal language model applies."""
        return bool(self.module.can_generate()) and not self.module.config.is_encoder_decoder

    @property
    def parameters(self) -> int:
        """How many numbers it stores, tied ones once; the orders of rows in factored layers are among them."""
        orders: int = sum(m.further_numbers for m in self.module.modules() if isinstance(m, FactoredLayer))
        return orders + sum(int(parameter.numel()) for parameter in self.module.parameters())

    @property
    def device(self) -> torch.device:
        return home_of(self.module)

    @property
    def context(self) -> int:
        """The longest input that the model takes, in tokens."""
        return int(getattr(self.module.config, "max_position_embeddings", 512))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over what a checkpoint of this model stores: parameters and persistent buffers, tied ones once.

        Those that wait are meta tensors; shelf.value reads them.
        """
        tied = getattr(self.module, "all_tied_weights_keys", {})
        seen: dict[int, str] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if name not in tied and seen.setdefault(id(tensor), name) == name:
                yield name, tensor

    def weights(self) -> Iterator[Weight]:
        for name, tensor in self.tensors():
            yield Weight(name, tuple(tensor.shape), dtype_name(tensor), partial(self._array, tensor))

    def _array(self, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
        return self.shelf.value(tensor).detach().cpu().numpy()

    def layers(self) -> dict[str, Layer]:
        """Return every Linear, Conv1D and Embedding; those inside a factored layer are part of it and not listed."""
        modules = dict(self.module.named_modules())
        factored = [(name, m) for name, m in modules.items() if isinstance(m, FactoredLayer)]
        inside = {f"{name}.{part}" for name, m in factored for part, _ in m.named_children()}
        found = {name: m for name, m in modules.items() if name not in inside and layer_type(m) is not None}
        groups = _groups(found)
        tied, tables = _tied(found), self._tables()
        return {
            name: _describe(name, module, "" if name in tables else tied.get(name, ""), name in tables, groups[name])
            for name, module in found.items()
        }

    def _tables(self) -> list[str]:
        """Return the names of what can be factored in groups of rows: the input embedding, tied to nothing or to the
        head alone, and a head that is tied to nothing and has so many outputs that they are no axis of a Gram matrix.
        """
        table, head = self.module.get_input_embeddings(), self.module.get_output_embeddings()
        tied = tied_head(self.module)
        wanted: list[nn.Module] = [table] if isinstance(table, nn.Embedding) and scale_of(table) else []
        if type(head) is nn.Linear and not tied and head.out_features > LARGEST_OUTPUT:
            wanted.append(head)
        found = []
        for one in wanted if self.blocks() else ():
            owners = [name for name, m in self.module.named_modules() if getattr(m, "weight", None) is one.weight]
            names = [name for name in owners if name != tied]
            found += names if len(names) == 1 else []
        return found

    def folds(self) -> list[Fold]:
        """Return where a layer's order of rows can be folded into its neighbours, each tried out on the blocks."""
        if self.module.config.is_encoder_decoder:
            return []
        names = [name for name, layer in self.layers().items() if not layer.kept and not layer.table]
        with self.running():
            return verified(
                self.module, self.blocks(), candidates(names, _table_of_names()["hidden_units"]), self.shelf
            )

    def blocks(self) -> list[str]:
        """Return the names of the repeated blocks, in the order in which they run."""
        return block_names(self.module)

    # Running it

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the first output for token ids (b, t): logits, or hidden states for a model without a head."""
        with torch.no_grad(), self.running():
            output: torch.Tensor = self.module(batch.to(self.device))[0]
        return output

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Let `module` be called inside the block; weights that wait are read for as long as their block runs."""
        return self.shelf.in_turn(self._blocks())

    def runner(self, batches: Sequence[torch.Tensor], device: Any = None, folder: Path | None = None) -> BlockRunner:
        """Return what runs these batches of token ids one block at a time; InputError where that cannot be done.

        folder: where it keeps hidden states meanwhile, by default that of temporary files.
        """
        if self.module.config.is_encoder_decoder:
            raise InputError(
                f"{self.model_type} is an encoder-decoder, which cannot be calibrated", fix="method='plain'"
            )
        blocks = self._blocks()
        check_blocks_stand_alone(self.module, blocks, batches[0][:1, :32].to(self.device), self.shelf)
        return BlockRunner(self.module, blocks, batches, device or self.device, folder, self.shelf)

    def _blocks(self) -> list[nn.Module]:
        return [self.module.get_submodule(name) for name in self.blocks()]

    def tap(self, names: Sequence[str], *, gradients: Gradients) -> contextlib.AbstractContextManager[Taps]:
        """Collect sums over inputs and gradients of these layers from whatever runs inside the block."""
        groups = {layer.group for name, layer in self.layers().items() if name in names}
        return tapped({name: self.module.get_submodule(name) for name in names}, sorted(groups), gradients=gradients)

    def tap_table(self, name: str) -> contextlib.AbstractContextManager[TableTaps]:
        """Collect how often rows of a table are looked up, and predicted by the head that multiplies by it."""
        table, head = self.module.get_submodule(name), tied_head(self.module)
        if not isinstance(table, nn.Embedding):
            return table_tapped(None, table)
        return table_tapped(table, self.module.get_submodule(head) if head else None)

    # Changing it

    def weight(self, name: str) -> torch.Tensor:
        """Return W, (m, n), of a layer."""
        module, kind = self._layer(name)
        return kind.matrix(self.shelf.read(module)).detach()

    def options(self, name: str, dtype: str, ranks: Mapping[str, Sequence[Any]]) -> list[Option]:
        """Return what a layer can be stored as: dense first, then each format at each of its `ranks`."""
        module, kind = self._layer(name)
        return kind.options(module, dtype, ranks)

    def stored(self, name: str, option: Option) -> dict[str, torch.Tensor]:
        """Return the tensors, without their values, that a layer is stored in once it is what `option` says."""
        return placeholder(self._layer(name)[0], option, "meta").state_dict()

    def _layer(self, name: str) -> tuple[nn.Module, LayerType]:
        module = self.module.get_submodule(name)
        kind = layer_type(module)
        assert kind is not None, name
        return module, kind

    def copy(self, folder: Path | None = None) -> HuggingFaceModel:
        """Return a model whose layers can be replaced without touching this one; the weights themselves are shared.

        folder: where the new layers wait, in a file that vanishes with the process, if the old ones do.
        """
        shared = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        twin = copy.copy(self)
        twin.module, twin.replaced = copy.deepcopy(self.module, shared), dict(self.replaced)
        twin.shelf = self.shelf.copy(folder)
        return twin

    def replace_(self, name: str, option: Option, factors: Factors) -> HuggingFaceModel:
        """Put what `option` says in the place of a dense layer; the head that is tied to an embedding follows it.

        A layer that is to share another's factor needs that other one to have been replaced.
        """
        module, kind = self._layer(name)
        head = tied_head(self.module) if isinstance(kind, Embedding) else ""
        new = kind.factored(self.shelf.read(module), option, factors)
        if self.shelf.waits(module):
            self.shelf.put(new)
        self.module.set_submodule(name, new)
        if option.down_of:
            share_downs_(self.module, {name: option.down_of})
        if head and option.replaces:
            tie_head_(self.module, head)
        self.replaced[name] = option
        return self

    def fold_(self) -> HuggingFaceModel:
        """Let the neighbours of layers that are stored without their order of rows follow that order."""
        names = [name for name, _ in self.module.named_modules()]
        fold_(self.module, candidates(names, _table_of_names()["hidden_units"]), self.shelf)
        return self

    def round_(self, dtype: str) -> HuggingFaceModel:
        """Round every floating-point weight to what it will be stored in; they stay float32 tensors.

        dtype: of all that `replaced` says nothing else of. NumericalError where a weight is too large for its type; of
        one that waits, when it is read.
        """
        done: dict[int, nn.Parameter] = {}
        for name, module in self.module.named_modules():
            for leaf, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_floating_point():
                    target = stored_in(f"{name}.{leaf}", parameter, self.replaced, dtype)
                    if parameter.device.type == "meta":
                        self.shelf.round_(parameter, target)
                        continue
                    if id(parameter) not in done:
                        done[id(parameter)] = nn.Parameter(rounded(parameter, target), requires_grad=False)
                    module._parameters[leaf] = done[id(parameter)]
        return self

    def assign_(self, name: str, option: Option, factors: Factors) -> HuggingFaceModel:
        """Give a dense layer the matrix that `option` makes of it as its weight; it stays dense."""
        module, kind = self._layer(name)
        head = tied_head(self.module) if isinstance(kind, Embedding) else ""
        waits = self.shelf.waits(module)
        if waits:
            module = self.shelf.read(module)
            self.module.set_submodule(name, module)
        alone = replace(option, format="pair", down_of="") if option.format == "shared" else option
        made = kind.factored(module, alone, factors)
        if isinstance(made, FactoredLayer):
            kind.assign_(module, made.weight)
        if waits:
            self.shelf.put(module)
        if head:
            self.module.get_submodule(head).weight = kind.matrix(module)
        return self

    # Checking it

    def check_finite(self) -> None:
        """Raise NumericalError naming the first tensor, and the place in it, that holds NaN or infinity."""
        for name, tensor in self.tensors():
            if tensor.is_floating_point() and (place := first_nonfinite(values := self._array(tensor))) is not None:
                index = [int(i) for i in np.unravel_index(place, tuple(tensor.shape))]
                raise NumericalError(
                    f"{float(values.flat[place])} in {name}, first at {index}",
                    why="the singular values of a matrix that is not finite do not exist",
                    fix="repair or download the model again",
                    file=self.path,
                    tensor=name,
                )

    def check_dense(self) -> None:
        """Raise UsageError when the model has compressed layers already."""
        if self.replaced:
            raise UsageError(
                f"{self.name} has {len(self.replaced)} compressed layers already",
                fix="compress the dense model that it came from, to the size you want",
            )


class OpenedWhenUsed(HuggingFaceModel):
    """A saved model that takes no memory before its module is asked for; the rest was known when it was saved."""

    def __init__(self, saved: HuggingFaceModel) -> None:
        vars(self).update({name: value for name, value in vars(saved).items() if name != "module"}, shelf=Shelf())

    @cached_property
    def module(self) -> Any:
        from eckart.models import open_model

        opened = open_model(self.path)
        assert isinstance(opened, HuggingFaceModel)
        return opened.module


def _describe(name: str, module: nn.Module, tied_to: str, table: bool, group: tuple[str, ...]) -> Layer:
    kind = layer_type(module)
    assert kind is not None
    rows, columns = kind.matrix(module).shape
    kept = ""
    if tied_to:
        kept = f"tied to {tied_to}"
    elif isinstance(kind, Embedding) and not table:
        kept = "an embedding table"
    elif rows > LARGEST_OUTPUT and not table:
        kept = f"its {rows} outputs are more than {LARGEST_OUTPUT}"
    bias = getattr(module, "bias", None) is not None
    looked_up = isinstance(kind, Embedding)
    return Layer(name, type(module).__name__, rows, columns, bias, kept, group, table or looked_up, looked_up)


def _tied(found: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return for each layer whose weight is also another layer's the name of that other one."""
    owners: dict[int, list[str]] = {}
    for name, module in found.items():
        owners.setdefault(id(module.weight), []).append(name)
    return {name: next(o for o in names if o != name) for names in owners.values() if len(names) > 1 for name in names}


def _groups(found: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Return for each layer the layers that models/groups.toml says read the same input, itself included."""
    table = _table_of_names()["shared_input"]
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in found}
    for name in found:
        parent, _, leaf = name.rpartition(".")
        for leaves in table:
            if leaf in leaves:
                members = tuple(f"{parent}.{other}" for other in leaves if f"{parent}.{other}" in found)
                groups[name] = members
    return groups


def _table_of_names() -> dict[str, list[list[str]]]:
    return tomllib.loads(resources.files("eckart.models").joinpath("groups.toml").read_text())


def stored_in(name: str, tensor: torch.Tensor, replaced: Mapping[str, Option], dtype: str) -> str:
    """Return the type in which a tensor of a checkpoint is written.

    replaced: layers and their options; what belongs to none of them is written in `dtype` if it is floating-point, and
    as it is if it is not (positions, masks, orders, int8).
    """
    if not tensor.is_floating_point():
        return dtype_name(tensor)
    while name and name not in replaced:
        name = name.rpartition(".")[0]
    own = replaced[name].dtype if name else dtype
    return "float32" if own == "int8" else own  # scales and biases beside int8
