"""Batches, loss, DeepSpeed, the training loop; answers, report, promotion."""
