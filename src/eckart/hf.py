"""The transformers plug-in: after `import eckart.hf`, from_pretrained loads what `eckart compress` has saved.

>>> import eckart.hf                                                         # doctest: +SKIP
>>> AutoModelForCausalLM.from_pretrained("demo-out/model")                   # doctest: +SKIP
"""

from eckart.models._factored_classes import register

__all__ = ["register"]

register()
