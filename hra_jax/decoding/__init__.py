"""From log-probabilities to words: search, language models, phrases, times, and tasks that nobody has named."""
