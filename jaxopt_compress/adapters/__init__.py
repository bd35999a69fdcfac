"""Adapters: low-rank factors beside a frozen base."""

from jaxopt_compress.adapters import products
from jaxopt_compress.adapters.lora import add_lora as add_lora
from jaxopt_compress.adapters.lora import LoRA as LoRA
from jaxopt_compress.adapters.lora import with_lora as with_lora
from jaxopt_compress.adapters.merge import merge_lora as merge_lora

products.register()
