"""Whose output layer an adapter writes with: the kinds of `adapter.output`."""

from hra_jax.text.vocabularies import LEARNT_VOCABULARIES

# Layers in new vocabularies, learnt from the training texts: one for each task, or one for all of them.
SHARED_VOCABULARIES = ("shared_characters", "shared_sentencepiece")
OWN_VOCABULARIES = (*LEARNT_VOCABULARIES, *SHARED_VOCABULARIES)
PIECE_VOCABULARIES = ("sentencepiece", "shared_sentencepiece")  # those made of pieces, whose number can be chosen
OUTPUTS_OF_TASKS = ("task", *LEARNT_VOCABULARIES)  # those of which every task owns one
OUTPUTS = ("backbone", "task", *OWN_VOCABULARIES)
NEVER = -1e30  # logit of an output that a vocabulary does not have; finite, so that 0 times it is 0
