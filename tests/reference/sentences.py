"""Sentences that vocabularies, phrases and language models are tested on."""

SENTENCES = [
    "turn the kitchen light on",
    "don't call anna before nine",
    "the train leaves on the third of may",
    "set an alarm for seven thirty",
    "what is the weather like in the morning",
    "play the next song and turn it up",
]
