"""The small VLM that ships with the project: transformers' own SmolVLM at 1.2 M parameters, trained on the made world.

`build` makes its config, tokenizer and first weights, `train` teaches it; the folder `vlm` holds what came out,
with `training.json` saying how it came to be.
"""
