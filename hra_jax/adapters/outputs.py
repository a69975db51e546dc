"""The output layers that a task may have, by name. Imports nothing, so that readers of folders need no JAX."""

# Output layers in new vocabularies, learnt from the training texts: one for each task, or one for all of them.
SHARED_VOCABULARIES = ("shared_characters", "shared_sentencepiece")
OWN_VOCABULARIES = ("characters", "sentencepiece", *SHARED_VOCABULARIES)
PIECE_VOCABULARIES = ("sentencepiece", "shared_sentencepiece")  # those made of pieces, whose number can be chosen
OUTPUTS_OF_TASKS = ("task", "characters", "sentencepiece")  # those of which every task owns one
OUTPUTS = ("backbone", "task", *OWN_VOCABULARIES)
NEVER = -1e30  # logit of an output that a vocabulary does not have; finite, so that 0 times it is 0
