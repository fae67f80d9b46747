"""A video becomes LoRA weights of a frozen vision-language model, which then answers without seeing it.

The method of arXiv 2606.04351 (Video2LoRA). Needs torch, transformers and a decoder; knows nothing of clusters.
"""
