"""Names of quantizations, apart from what needs numpy: command lines list them."""

QUANTIZATIONS = (
    "none", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32",
)  # fmt: skip
