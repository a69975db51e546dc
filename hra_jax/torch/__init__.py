"""Adapters that were trained with hra_jax, in PyTorch beside a transformers model. Needs torch, not JAX.

model = Wav2Vec2BertForCTC.from_pretrained(...)
adapted = AdaptedModel(model, "runs/w2v_bert/adapter")
logits = adapted(tasks=["nicolas", "__base__"], input_features=features, attention_mask=mask)
"""

from hra_jax.torch.adapted import AdaptedModel

__all__ = ["AdaptedModel"]
