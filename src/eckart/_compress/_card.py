"""The model card of a compressed model: where it comes from, how it was made, and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eckart._compress._plan import Plan
    from eckart.models._huggingface import HuggingFaceModel

__all__ = ["model_card"]


def model_card(small: HuggingFaceModel, dense: HuggingFaceModel, plan: Plan, measurement: dict[str, Any] | None) -> str:
    """Return the README.md of the saved folder, with the front matter that model hubs read."""
    import eckart
    from eckart._table import asked, recovered

    front = [f"base_model: {dense.name}", "library_name: transformers", "tags: [eckart, low-rank, compressed]"]
    if dense.licence:
        front.append(f"license: {dense.licence}")
    if plan.change is None:
        factored = sum(bool(option.ranks) for option in plan.options.values())
        rounded = sum(option.dtype == "int8" for option in plan.options.values())
        done = f"{factored} of {len(plan.layers)} layers of {dense.name} were replaced by low-rank approximations" + (
            f", and {rounded} layers stored in int8 with a scale a row" if rounded else ""
        )
    else:
        done = f"Of {dense.name}, " + ", ".join(f"{what}: {value}" for what, value in plan.change.items())
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# {dense.name}, {'compressed' if small.replaced or plan.change else 'approximated'} by Eckart",
        "",
        f"{done} (method {plan.method}, asked for: {asked(plan)}, seed {plan.seed}, Eckart {eckart.__version__}): "
        f"{plan.parameters_before:,} parameters became {small.parameters:,}, {plan.bytes_before:,} bytes of weights in "
        f"{plan.dtype} became {small.input_bytes:,}. `eckart_plan.json` says what each layer became.",
        "",
    ]
    if small.replaced:
        lines += [
            "```python",
            "import eckart.hf  # pip install eckart[hf]; without it transformers refuses this folder",
            "from transformers import AutoModelForCausalLM, AutoTokenizer"
            if small.predicts_next_token
            else "from transformers import AutoModel, AutoTokenizer",
            f'model = {"AutoModelForCausalLM" if small.predicts_next_token else "AutoModel"}.from_pretrained("PATH")',
            "```",
            "",
        ]
    elif plan.change is None:
        lines += ["The layers were multiplied out again: an ordinary checkpoint, of the size of the original.", ""]
    if small.recovery is not None:
        lines += [f"Then {recovered(small.recovery)}.", ""]
    if measurement is not None:
        from eckart._table import markdown_table

        lines += ["## Measured", "", markdown_table(measurement), ""]
    return "\n".join(lines)
